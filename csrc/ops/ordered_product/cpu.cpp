// ordered_product, ordered_spikes and ordered_radix_spikes on the CPU.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "ops/neuron_loop/cpu_run_neurons.h"
#include "ops/ordered_product/cpu_kernels.h"
#include "ops/ordered_product/plan.h"
#include "ops/product/cpu_pack_weight.h"
#include "ops/product/cpu_tiles.h"
#include "ops/radix_spikes/cpu_kernels.h"

namespace tandem {

namespace {

// The plan of the same product of images with their zeros around them.
OrderedPlan plan_with_zeros(const char* op, const OrderedPlan& plan) {
  const ConvGeometry& g = plan.geometry;
  if (g.padding_h == 0 && g.padding_w == 0) return plan;
  OrderedPlan wider = plan;
  wider.geometry = with_zeros(g);
  const Sizes sizes = {g.batch, g.in_channels, wider.geometry.height, wider.geometry.width};
  wider.input = empty_channels_last(op, plan.input, sizes, ScalarType::Float, 1);
  const auto* const from = static_cast<const float*>(plan.input.const_data_ptr());
  float* const to = output<float>(wider.input);
  parallel_ranges(g.batch * wider.geometry.height, 64,
                  [&](int64_t begin, int64_t end) { add_zeros(g, from, begin, end, to); });
  return wider;
}

// The sums of one tile of output pixels with all output channels, [rows, out_channels].
template <class E>
struct Tiles {
  const OrderedPlan& plan;
  const E* packed;
  PackedLayout layout = packed_layout<E>(plan.geometry);
  int64_t row_bytes = layout.block * static_cast<int64_t>(sizeof(float));

  void add(int64_t row_begin, int64_t row_end, int64_t group, int64_t b, float* scratch, float* out) const {
    const ConvGeometry& g = plan.geometry;
    OrderedTileArgs<E> tile = {};
    tile.geometry = &g;
    tile.input = static_cast<const float*>(plan.input.const_data_ptr());
    tile.weight = packed + (group * layout.blocks + b) * layout.block_elements();
    tile.block = layout.block;
    tile.valid = std::min(layout.block, g.group_out() - b * layout.block);
    tile.group = group;
    tile.row_begin = row_begin;
    tile.row_end = row_end;
    tile.out = out + group * g.group_out() + b * layout.block;
    tile.scratch = scratch;
    kernels<OrderedProductKernels>().ordered_tile(tile);
  }
};

// f(Tiles<E>{...}) with the weights in order.
template <class F>
void with_tiles(const char* op, const OrderedPlan& given, const F& f) {
  const OrderedPlan plan = plan_with_zeros(op, given);
  dispatch_integers(plan.weight.scalar_type(), [&](auto element) {
    using E = decltype(element);
    if (plan.packed) check_packed<E>(op, "packed", *plan.packed, plan.weight, plan.geometry);
    const Tensor arranged = plan.packed ? *plan.packed : packed_weight(op, plan.weight, plan.geometry);
    f(Tiles<E>{plan, static_cast<const E*>(arranged.const_data_ptr())});
  });
}

Tensor ordered_product(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& packed,
                       const Sizes& stride, const Sizes& padding, const Sizes& dilation, int64_t groups,
                       const std::optional<Tensor>& master, const std::optional<Tensor>& unit) {
  const char* op = "ordered_product";
  const OrderedPlan plan = plan_ordered(op, input, weight, packed, stride, padding, dilation, groups);
  check_master(op, weight, master, unit);
  const Tensor out = empty_sums(op, plan);
  if (plan.geometry.pixels_out() == 0) return out;
  with_tiles(op, plan, [&](const auto& tiles) {
    const ConvGeometry& g = tiles.plan.geometry;
    const int64_t blocks = tiles.layout.blocks, rows = tile_rows(g, tiles.row_bytes, g.groups * blocks);
    const int64_t count = (g.pixels_out() + rows - 1) / rows;
    parallel_tasks(g.groups * blocks, count, [&](const auto& next) {
      const AlignedBuffer<float> scratch(op, rows * tiles.layout.block);
      for (int64_t task = next(); task >= 0; task = next()) {
        const int64_t begin = task % count * rows, end = std::min(g.pixels_out(), begin + rows);
        tiles.add(begin, end, task / count / blocks, task / count % blocks, scratch.data,
                  output<float>(out) + begin * g.out_channels);
      }
    });
  });
  return out;
}

// drive(current, first, n) for a few output pixels at a time, so that their currents stay in the caches: n neurons from
// `first` on, channels innermost.
template <class Drive>
void drive_neurons(const char* op, const OrderedPlan& plan, const Drive& drive) {
  with_tiles(op, plan, [&](const auto& tiles) {
    const ConvGeometry& g = tiles.plan.geometry;
    const int64_t blocks = tiles.layout.blocks;
    const int64_t rows = tile_rows(g, tiles.row_bytes * (1 + g.groups * blocks), 1);
    const int64_t count = (g.pixels_out() + rows - 1) / rows;
    parallel_tasks(1, count, [&](const auto& next) {
      const AlignedBuffer<float> scratch(op, rows * tiles.layout.block), current(op, rows * g.out_channels);
      for (int64_t task = next(); task >= 0; task = next()) {
        const int64_t begin = task * rows, end = std::min(g.pixels_out(), begin + rows);
        for (int64_t i = 0; i < g.groups * blocks; ++i) {
          tiles.add(begin, end, i / blocks, i % blocks, scratch.data, current.data);
        }
        drive(current.data, begin * g.out_channels, (end - begin) * g.out_channels);
      }
    });
  });
}

Tensor ordered_spikes(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& packed,
                      const std::optional<Tensor>& scale, const std::optional<Tensor>& bias, const Sizes& stride,
                      const Sizes& padding, const Sizes& dilation, int64_t groups, int64_t time_steps, int64_t mode,
                      int64_t neuron, const std::vector<double>& parameters) {
  const char* op = "ordered_spikes";
  const OrderedPlan plan = plan_ordered(op, input, weight, packed, stride, padding, dilation, groups);
  const OrderedNeurons neurons = plan_neurons(op, plan, scale, bias, time_steps, mode, neuron, parameters);
  const ConvGeometry& g = plan.geometry;
  if (g.pixels_out() == 0) return neurons.bits;
  IntegrateAndFireArgs<float> args = {};
  args.scale = data_or_null<float>(neurons.scale);
  args.bias = data_or_null<float>(neurons.bias);
  args.bits = output<uint8_t>(neurons.bits);
  args.bits_stride = g.pixels_out() * g.out_channels;
  args.channels = g.out_channels;
  args.time_steps = time_steps;
  args.mode = neurons.mode;
  args.neuron = neurons.neuron;
  const RepeatedChannels<float> repeated(args);
  drive_neurons(op, plan, [&](const float* current, int64_t first, int64_t n) {
    IntegrateAndFireArgs<float> here = args;
    here.current = current;
    here.bits += first;
    kernels<NeuronLoopKernels>().integrate_and_fire(here, 0, n);
  });
  return neurons.bits;
}

Tensor ordered_radix_spikes(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& packed,
                            const std::optional<Tensor>& scale, const std::optional<Tensor>& bias, const Sizes& stride,
                            const Sizes& padding, const Sizes& dilation, int64_t groups, int64_t time_steps,
                            double threshold, double initial) {
  const char* op = "ordered_spikes";
  const OrderedPlan plan = plan_ordered(op, input, weight, packed, stride, padding, dilation, groups);
  const RadixNeurons neurons = {time_steps, threshold, initial};
  const FiringPlan firing = plan_radix_neurons(op, plan, scale, bias, neurons);
  const ConvGeometry& g = plan.geometry;
  if (g.pixels_out() == 0) return firing.bits;
  RadixSpikesArgs<float> args = {};
  args.scale = data_or_null<float>(firing.scale);
  args.bias = data_or_null<float>(firing.bias);
  args.bits = output<uint8_t>(firing.bits);
  args.channels = g.out_channels;
  set_neurons<float>(args, neurons);
  const RepeatedChannels<float> repeated(args);
  drive_neurons(op, plan, [&](const float* current, int64_t first, int64_t n) {
    RadixSpikesArgs<float> here = args;
    here.current = current;
    here.bits += first;
    kernels<RadixSpikesKernels>().radix_spikes(here, 0, n);
  });
  return firing.bits;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tandem_cuda, CPU, m) {
  m.impl("ordered_product", TORCH_BOX(&ordered_product));
  m.impl("ordered_spikes", TORCH_BOX(&ordered_spikes));
  m.impl("ordered_radix_spikes", TORCH_BOX(&ordered_radix_spikes));
}

}  // namespace tandem
