#include "cpu/event_product.h"

#include <cstdlib>
#include <memory>
#include <new>

#include "cpu/isa.h"
#include "cpu/kernels/kernels.h"
#include "cpu/parallel.h"

namespace tandem {

namespace {

template <class T>
struct AlignedBuffer {
  explicit AlignedBuffer(int64_t n)
      : data(static_cast<T*>(::operator new(static_cast<size_t>(n) * sizeof(T), std::align_val_t{64}))) {}
  ~AlignedBuffer() { ::operator delete(data, std::align_val_t{64}); }
  AlignedBuffer(const AlignedBuffer&) = delete;
  AlignedBuffer& operator=(const AlignedBuffer&) = delete;
  AlignedBuffer(AlignedBuffer&&) = delete;
  AlignedBuffer& operator=(AlignedBuffer&&) = delete;
  T* data;
};

// weight [O, C/groups, kH, kW] (any strides) -> [groups, blocks, kH * kW * C/groups, block], zero padded.
template <class T>
void pack_weight(const Tensor& weight, const ConvGeometry& g, int64_t block, T* packed) {
  const T* w = static_cast<const T*>(weight.const_data_ptr());
  const bool linear = weight.dim() == 2;
  const int64_t stride_o = weight.stride(0), stride_c = weight.stride(1);
  const int64_t stride_h = linear ? 0 : weight.stride(2), stride_w = linear ? 0 : weight.stride(3);
  const int64_t outputs = g.group_out(), channels = g.group_in(), blocks = (outputs + block - 1) / block;
  const int64_t features = g.features();
  // One task: some channels of one block, all taps; a source row [kH, kW] is short and stays in cache.
  constexpr int64_t kChannels = 16;
  const int64_t slices = (channels + kChannels - 1) / kChannels;
  parallel_ranges(g.groups * blocks * slices, 4, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t slice = task % slices, b = task / slices % blocks, group = task / slices / blocks;
      const int64_t first = group * outputs + b * block, valid = std::min(block, outputs - b * block);
      T* out = packed + (group * blocks + b) * features * block;
      for (int64_t c = slice * kChannels; c < std::min(channels, (slice + 1) * kChannels); ++c) {
        for (int64_t tap = 0; tap < g.taps(); ++tap) {
          const T* from =
              w + first * stride_o + c * stride_c + tap / g.kernel_w * stride_h + tap % g.kernel_w * stride_w;
          T* row = out + (tap * channels + c) * block;
          for (int64_t o = 0; o < valid; ++o) row[o] = from[o * stride_o];
          for (int64_t o = valid; o < block; ++o) row[o] = 0;
        }
      }
    }
  });
}

// Output pixels per tile: few enough that patch and accumulators stay well inside an L2 cache and that every thread
// gets several tiles, many enough that a sweep's weights, once in L1, are used often.
int64_t tile_rows(const ConvGeometry& g, int64_t row_bytes, int64_t tasks_per_tile) {
  constexpr int64_t kScratchBytes = int64_t{384} * 1024, kLeast = 4, kMost = 64;
  const int64_t rows = std::clamp(kScratchBytes / row_bytes, kLeast, kMost);
  const int64_t wanted_tiles = (int64_t{4} * torch::stable::get_num_threads() + tasks_per_tile - 1) / tasks_per_tile;
  const int64_t fair = (g.pixels_out() + wanted_tiles - 1) / std::max<int64_t>(1, wanted_tiles);
  return std::clamp(std::min(rows, fair), int64_t{1}, kMost);
}

// planes: [plane_count, pixels_in, C]; args carries the neuron and the outputs at channel 0.
template <class T>
void run(const ProductPlan& plan, const uint8_t* planes, int64_t plane_count, EventTileArgs<T> args) {
  const ConvGeometry& g = plan.geometry;
  if (g.pixels_out() == 0) return;
  const Kernels& k = kernels();
  args.geometry = &g;
  args.words_in = words_for(g.in_channels);
  const int64_t pixels = g.pixels_in();
  const AlignedBuffer<uint64_t> masks(plane_count * pixels * args.words_in * 8);
  parallel_ranges(plane_count * pixels, std::max<int64_t>(1, 16384 / g.in_channels),
                  [&](int64_t begin, int64_t end) { k.transpose_bits(planes, g.in_channels, begin, end, masks.data); });
  args.masks = masks.data;

  const int64_t outputs = g.group_out(), features = g.features();
  args.block = block_size<T>(outputs);
  const int64_t blocks = (outputs + args.block - 1) / args.block;
  const AlignedBuffer<T> packed(g.groups * blocks * features * args.block);
  pack_weight(plan.weight, g, args.block, packed.data);

  const int64_t rows = tile_rows(g, event_scratch_bytes<T>(1, features, args.block), g.groups * blocks);
  const int64_t tiles = (g.pixels_out() + rows - 1) / rows;
  // Tiles innermost: neighbouring tasks share a block of weights.
  parallel_tasks(g.groups * blocks * tiles, [&](const auto& next) {
    const AlignedBuffer<uint8_t> scratch(event_scratch_bytes<T>(rows, features, args.block));
    for (int64_t task = next(); task >= 0; task = next()) {
      const int64_t tile = task % tiles, b = task / tiles % blocks, group = task / tiles / blocks;
      const int64_t channel = group * outputs + b * args.block;
      EventTileArgs<T> part = args;
      part.weight = packed.data + (group * blocks + b) * features * args.block;
      part.valid = std::min(args.block, outputs - b * args.block);
      part.group = group;
      part.row_begin = tile * rows;
      part.row_end = std::min(g.pixels_out(), part.row_begin + rows);
      part.row_stride = g.out_channels;
      if (part.bias) part.bias += channel;
      if (part.initial) part.initial += channel;
      if (part.bits) part.bits += channel;
      if (part.sum) part.sum += channel;
      if (part.potential) part.potential += channel;
      part.scratch = scratch.data;
      k.typed<T>().event_tile(part);
    }
  });
}

template <class T>
T* output(const Tensor& tensor) {
  return tensor.numel() ? static_cast<T*>(tensor.mutable_data_ptr()) : nullptr;
}

}  // namespace

void run_spiking_product(const char* op, const ProductPlan& plan, int64_t time_steps, double threshold, double leak) {
  dispatch_floating(op, plan.weight.scalar_type(), [&](auto type) {
    using T = decltype(type);
    EventTileArgs<T> args = {};
    args.steps = time_steps;
    args.bias = data_or_null<T>(plan.bias);
    args.initial = data_or_null<T>(plan.initial);
    args.bits = output<uint8_t>(plan.out_bits);
    args.bits_stride = plan.geometry.pixels_out() * plan.geometry.out_channels;
    args.sum = output<T>(plan.out_sum);
    args.potential = output<T>(plan.out_potential);
    args.neuron = {static_cast<T>(threshold), static_cast<T>(leak)};
    run<T>(plan, static_cast<const uint8_t*>(plan.bits.const_data_ptr()), plan.bits.size(0), args);
  });
}

void run_count_product(const char* op, const ProductPlan& plan) {
  const int64_t planes = plan.bits.size(0), inputs = plan.geometry.pixels_in() * plan.geometry.in_channels;
  if (plan.out_sum.numel() == 0) return;
  int64_t digits = 3;  // binary digits of the largest possible count, 8 * planes
  while (planes >> (digits - 3)) ++digits;
  const int64_t byte_planes = planes_for(digits);
  const AlignedBuffer<uint8_t> counts(byte_planes * inputs);
  const uint8_t* bits = static_cast<const uint8_t*>(plan.bits.const_data_ptr());
  parallel_ranges(inputs, 16384, [&](int64_t begin, int64_t end) {
    kernels().count_bytes(bits, planes, inputs, begin, end, counts.data, byte_planes);
  });
  dispatch_floating(op, plan.weight.scalar_type(), [&](auto type) {
    using T = decltype(type);
    EventTileArgs<T> args = {};
    args.steps = digits;
    args.bias = data_or_null<T>(plan.bias);
    args.sum = output<T>(plan.out_sum);
    run<T>(plan, counts.data, byte_planes, args);
  });
}

}  // namespace tandem
