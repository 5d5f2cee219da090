#include "ops/product/cpu_depthwise.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <type_traits>
#include <vector>

#include "cpu/finite.h"
#include "cpu/parallel.h"
#include "ops/product/cpu_depthwise_kernels.h"
#include "ops/product/cpu_pack_weight.h"
#include "ops/radix_spikes/cpu_fire.h"

namespace tandem {

namespace {

// weight [O, I, kH, kW], any strides -> [kH, kW, I, stride]; W: what the weight consists of.
template <class W, class T>
std::vector<T> taps_first(const Tensor& weight, const ConvGeometry& g, int64_t stride) {
  const W* w = static_cast<const W*>(weight.const_data_ptr());
  const WeightView view = weight_view(weight);
  std::vector<T> out(static_cast<size_t>(g.features() * stride));
  parallel_ranges(g.features(), std::max<int64_t>(1, 16384 / g.out_channels), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t tap = row / g.group_in(), input = row % g.group_in();
      const W* from = w + input * view.stride_c + tap / g.kernel_w * view.stride_h + tap % g.kernel_w * view.stride_w;
      T* to = out.data() + row * stride;
      for (int64_t o = 0; o < g.out_channels; ++o) to[o] = static_cast<T>(from[o * view.stride_o]);
    }
  });
  return out;
}

// The weights [taps, stride], if sums of 16 bits hold any numbers up to the plan's largest times these; else none.
template <class T>
std::vector<int16_t> short_weights(const ProductPlan& plan, const std::vector<T>& weight, int64_t stride) {
  const ConvGeometry& g = plan.geometry;
  const bool fits = plan.weight.scalar_type() == ScalarType::Char && plan.radix > 0 && g.group_in() == 1 &&
                    g.group_out() == 1 && g.out_channels >= kDepthwiseShorts;
  if (!fits) return {};
  for (int64_t o = 0; o < g.out_channels; ++o) {
    int64_t most = 0;
    for (int64_t tap = 0; tap < g.taps(); ++tap) most += std::abs(static_cast<int64_t>(weight[tap * stride + o]));
    if (most * largest_input(plan) > std::numeric_limits<int16_t>::max()) return {};
  }
  return {weight.begin(), weight.end()};
}

// The kernel for the pixels begin..end-1; sums that drive neurons are not kept.
template <class T>
void run_pixels(const DepthwiseArgs<T>& args, const ProductPlan& plan, int64_t begin, int64_t end) {
  const int64_t channels = args.geometry->out_channels;
  DepthwiseArgs<T> range = args;
  std::vector<DepthwiseTap> scratch(static_cast<size_t>(kDepthwisePixels * args.geometry->taps()));
  range.scratch = scratch.data();
  const auto& kernel = kernels<DepthwiseKernels>().depthwise;
  if (!plan.radix_neurons) return kernel(range, begin, end);
  const Joined<T> joined = joined_of<T>(plan);
  // As many pixels at once as the first level of the cache holds.
  const int64_t pixels = std::max<int64_t>(kDepthwisePixels, 4096 / channels);
  std::vector<T> sums(static_cast<size_t>(std::min(pixels, end - begin) * channels));
  range.sum = sums.data();
  for (int64_t pixel = begin; pixel < end; pixel += pixels) {
    const int64_t next = std::min(pixel + pixels, end);
    range.sum_pixel = pixel;
    kernel(range, pixel, next);
    uint8_t* const bits = output<uint8_t>(plan.out_bits) + pixel * channels;
    const int64_t n = (next - pixel) * channels;
    add_joined_values(joined, channels, pixel * channels, n, sums.data());
    fire_radix<T>(*plan.radix_neurons, sums.data(), n, bits);
  }
}

// args carries time steps and neuron; a count product has out_bits null.
template <class E, class T>
void run(const char* op, const ProductPlan& plan, DepthwiseArgs<T> args) {
  const ConvGeometry& g = plan.geometry;
  // Not used: so few weights are arranged faster than they are looked after.
  if (plan.packed) check_packed<E>(op, "packed", *plan.packed, plan.weight, g);
  args.weight_stride = std::max<int64_t>(g.out_channels, 64 / sizeof(T));
  std::vector<T> weight;
  dispatch_unpacked<E>(plan.weight.scalar_type(), [&](auto unpacked) {
    weight = taps_first<decltype(unpacked), T>(plan.weight, g, args.weight_stride);
  });
  const auto usable = [](T x) { return std::is_same_v<E, int16_t> ? std::fabs(x) <= T{kLargest16} : odd_bits(x) == 0; };
  if (!std::all_of(weight.begin(), weight.end(), usable)) report_odd_weight(op, plan.weight);
  args.geometry = &g;
  args.bits = static_cast<const uint8_t*>(plan.bits.const_data_ptr());
  args.planes = plan.bits.size(0);
  args.values = plan.radix > 0;
  args.weight = weight.data();
  const std::vector<int16_t> shorts = short_weights(plan, weight, args.weight_stride);
  args.short_weight = shorts.empty() ? nullptr : shorts.data();
  args.scale = data_or_null<T>(plan.scale);
  args.bias = data_or_null<T>(plan.bias);
  args.sum = plan.out_sum.numel() ? static_cast<T*>(plan.out_sum.mutable_data_ptr()) : nullptr;
  parallel_ranges(g.pixels_out(), std::max<int64_t>(1, 4096 / g.out_channels),
                  [&](int64_t begin, int64_t end) { run_pixels(args, plan, begin, end); });
}

// Whether the kernel adds as the product's definition says: integers exactly, which float32 does up to 2^24.
bool adds_exactly(const ProductPlan& plan, int64_t largest_input) {
  const ScalarType type = plan.weight.scalar_type();
  const int64_t most = (int64_t{1} << 24) / (type == ScalarType::Char ? 128 : kLargest16);
  return !is_integer(type) || plan.geometry.features() <= most / largest_input;
}

}  // namespace

bool is_depthwise(const ProductPlan& plan, int64_t largest_input) {
  const ConvGeometry& g = plan.geometry;
  return g.groups > 1 && g.group_in() == 1 && adds_exactly(plan, largest_input);
}

bool is_pairwise(const ProductPlan& plan) {
  const ConvGeometry& g = plan.geometry;
  return g.groups > 1 && g.group_in() == 2 && g.group_out() <= 2 && adds_exactly(plan, largest_input(plan));
}

void run_spiking_depthwise(const char* op, const ProductPlan& plan, int64_t time_steps) {
  dispatch_packed(plan.weight.scalar_type(), [&](auto element, auto type) {
    using T = decltype(type);
    DepthwiseArgs<T> args = {};
    args.initial = given_state<T>(plan.initial);
    args.out_bits = static_cast<uint8_t*>(plan.out_bits.mutable_data_ptr());
    args.state = wanted_state<T>(plan.out_state);
    args.joined = joined_of<T>(plan);
    args.time_steps = time_steps;
    args.neuron = plan.neuron;
    run<decltype(element)>(op, plan, args);
  });
}

void run_count_depthwise(const char* op, const ProductPlan& plan) {
  dispatch_packed(plan.weight.scalar_type(),
                  [&](auto element, auto type) { run<decltype(element)>(op, plan, DepthwiseArgs<decltype(type)>{}); });
}

}  // namespace tandem
