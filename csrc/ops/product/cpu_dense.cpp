#include "ops/product/cpu_dense.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <array>

#include "ops/neuron_loop/cpu_run_neurons.h"
#include "ops/product/cpu_pack_weight.h"
#include "ops/spike_train/cpu_kernels.h"

namespace tandem {

namespace {

using torch::stable::detail::from;
using torch::stable::detail::to;

// Unpacked spikes and currents of one pass take at most this many bytes, unless 8 time steps of one sample alone need
// more: an engine whose memory grew with T would not be one for long trains.
constexpr int64_t kPassBytes = int64_t{32} << 20;

template <size_t n>
Tensor call(const char* op, const char* name, ScalarType type, std::array<StableIValue, n> stack) {
  const bool ok = torch_call_dispatcher(name, "", stack.data(), TORCH_ABI_VERSION) == AOTI_TORCH_SUCCESS;
  TANDEM_CHECK(ok, op, name, " failed in engine 'dense'; torch wrote the reason to the standard error");
  Tensor out = to<Tensor>(stack[0]);
  // Autocast, where an operator is not registered for it, would make torch's product a narrower one.
  TANDEM_CHECK(out.scalar_type() == type, op, name, " must return ", name_of(type), " in engine 'dense', got ",
               name_of(out.scalar_type()));
  return out;
}

// weight * x for x [n, C, H, W] or [n, F], features last in memory; so is the result.
Tensor dense_product(const char* op, const ProductPlan& plan, const Tensor& x) {
  const ConvGeometry& g = plan.geometry;
  if (plan.weight.dim() == 2) {
    return call<3>(op, "aten::linear", plan.type, {from(x), from(plan.weight), from(std::nullopt)});
  }
  // Of one channel into columns of one pixel, torch convolves wrongly where strides are those of channels last.
  const bool plain = g.in_channels == 1 && g.out_width == 1;
  const Tensor input = plain ? canonical(x) : x, weight = plain ? canonical(plan.weight) : plan.weight;
  const Tensor out = call<9>(op, "aten::convolution", plan.type,
                             {from(input), from(weight), from(std::nullopt), from(Sizes{g.stride_h, g.stride_w}),
                              from(Sizes{g.padding_h, g.padding_w}), from(Sizes{g.dilation_h, g.dilation_w}),
                              from(false), from(Sizes{0, 0}), from(g.groups)});
  return channels_last(op, out, 1);
}

// A buffer for `n` samples of the input.
Tensor empty_input(const char* op, const ProductPlan& plan, int64_t n) {
  const ConvGeometry& g = plan.geometry;
  const Sizes sizes = plan.weight.dim() == 2 ? Sizes{n, g.in_channels} : Sizes{n, g.in_channels, g.height, g.width};
  return empty_channels_last(op, plan.weight, sizes, plan.type, 1);
}

template <class T>
void run(const char* op, const ProductPlan& plan, Samples all, int64_t time_steps) {
  const ConvGeometry& g = plan.geometry;
  const int64_t inputs = g.height * g.width * g.in_channels;  // of a sample
  const int64_t pixels = g.out_height * g.out_width, outputs = pixels * g.out_channels;
  const int64_t planes = plan.bits.size(0);
  const int64_t plane_bytes =
      std::min(time_steps, kStepsPerPlane) * (inputs + outputs) * static_cast<int64_t>(sizeof(T));
  const bool linear = plan.weight.dim() == 2;
  const int64_t most_planes = linear || time_steps <= kDenseSteps ? planes : 1;
  const int64_t pass_planes = std::clamp<int64_t>(kPassBytes / plane_bytes, 1, most_planes);
  const int64_t most_samples = linear ? all.count() : 1;
  const int64_t pass_samples = std::clamp<int64_t>(kPassBytes / (plane_bytes * pass_planes), 1, most_samples);
  const bool carries = pass_planes < planes;
  const auto* bits = static_cast<const uint8_t*>(plan.bits.const_data_ptr());
  T* sum = plan.out_sum.numel() ? static_cast<T*>(plan.out_sum.mutable_data_ptr()) : nullptr;
  const State<const T> initial = given_state<T>(plan.initial);
  const State<T> wanted = wanted_state<T>(plan.out_state);
  Tensor carried;
  if (carries && !wanted) {
    carried = empty_channels_last(op, plan.weight, {states_of(plan.neuron), pass_samples * outputs}, plan.type, 1);
  }

  Tensor dense;
  for (int64_t n = all.first; n < all.last; n += pass_samples) {
    const int64_t samples = std::min(pass_samples, all.last - n);
    for (int64_t p = 0; p < planes; p += pass_planes) {
      const int64_t steps =
          std::min(time_steps - p * kStepsPerPlane, std::min(pass_planes, planes - p) * kStepsPerPlane);
      if (!dense.defined() || dense.size(0) != steps * samples) dense = empty_input(op, plan, steps * samples);
      T* to = static_cast<T*>(dense.mutable_data_ptr());
      const uint8_t* packed = bits + (p * g.batch + n) * inputs;
      parallel_ranges(samples * inputs, 16384, [&](int64_t begin, int64_t end) {
        kernels<SpikeTrainKernels>().unpack(packed, g.batch * inputs, steps, samples * inputs, begin, end, to);
      });
      const Tensor current = dense_product(op, plan, dense);

      IntegrateAndFireArgs<T> args = {};
      args.current = static_cast<const T*>(current.const_data_ptr());
      args.current_stride = samples * outputs;
      args.scale = data_or_null<T>(plan.scale);
      args.bias = data_or_null<T>(plan.bias);
      args.bits = static_cast<uint8_t*>(plan.out_bits.mutable_data_ptr()) + (p * g.batch + n) * outputs;
      args.bits_stride = g.batch * outputs;
      args.sum = sum ? sum + n * outputs : nullptr;
      args.add_sum = p > 0;
      args.state = carries && !wanted ? wanted_state<T>(carried) : wanted + n * outputs;
      args.initial = p > 0 ? read_only(args.state) : initial + n * outputs;
      args.channels = g.out_channels;
      args.time_steps = steps;
      join_series(args, joined_of<T>(plan).at(p, n * outputs), static_cast<T*>(current.mutable_data_ptr()),
                  samples * outputs);
      args.mode = CurrentMode::kSeries;
      args.neuron = plan.neuron;
      run_neurons(args, samples * outputs);
    }
  }
}

}  // namespace

ProductPlan plan_dense(const char* op, ProductPlan plan) {
  if (plan.weight.scalar_type() != plan.type) {
    Tensor wide = empty_channels_last(op, plan.weight, sizes_of(plan.weight), plan.type, 1);
    torch::stable::copy_(wide, plan.weight);
    plan.weight = wide;
  }
  plan.weight = plan.weight.dim() == 2 ? canonical(plan.weight) : channels_last(op, plan.weight, 1);
  check_finite_weight(op, plan.weight);
  return plan;
}

void run_spiking_dense(const char* op, const ProductPlan& plan, Samples samples, int64_t time_steps) {
  if (plan.geometry.pixels_out() == 0) return;
  dispatch_floating(op, plan.type, [&](auto type) { run<decltype(type)>(op, plan, samples, time_steps); });
}

void run_count_dense(const char* op, const ProductPlan& plan, Samples samples) {
  const ConvGeometry& g = plan.geometry;
  if (g.pixels_out() == 0) return;
  dispatch_floating(op, plan.type, [&](auto type) {
    using T = decltype(type);
    const int64_t inputs = g.height * g.width * g.in_channels, planes = plan.bits.size(0);
    const int64_t pixels = g.out_height * g.out_width, channels = g.out_channels;
    const int64_t pass = plan.weight.dim() == 2 ? samples.count() : 1;
    const Tensor count = empty_input(op, plan, pass);
    const T* scale = data_or_null<T>(plan.scale);
    const T* bias = data_or_null<T>(plan.bias);
    for (int64_t n = samples.first; n < samples.last; n += pass) {
      const auto* bits = static_cast<const uint8_t*>(plan.bits.const_data_ptr()) + n * inputs;
      parallel_ranges(pass * inputs, 16384, [&](int64_t begin, int64_t end) {
        T* const to = static_cast<T*>(count.mutable_data_ptr());
        if (plan.radix) {
          std::copy(bits + begin, bits + end, to + begin);
        } else {
          kernels<SpikeTrainKernels>().spike_count(bits, planes, g.batch * inputs, begin, end, to);
        }
      });
      const Tensor product = dense_product(op, plan, count);
      const T* from = static_cast<const T*>(product.const_data_ptr());
      T* to = static_cast<T*>(plan.out_sum.mutable_data_ptr()) + n * pixels * channels;
      parallel_ranges(pass * pixels, std::max<int64_t>(1, 16384 / channels), [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
          for (int64_t c = 0; c < channels; ++c) {
            T value = from[row * channels + c];
            if (scale) value *= scale[c];
            if (bias) value += bias[c];
            to[row * channels + c] = value;
          }
        }
      });
    }
  });
}

}  // namespace tandem
