#include "ops/product/cpu_count.h"

#include <algorithm>

#include "cpu/aligned_buffer.h"
#include "cpu/parallel.h"
#include "ops/product/cpu_count_kernels.h"
#include "ops/product/cpu_pack_weight.h"
#include "ops/product/cpu_tiles.h"

namespace tandem {

namespace {

// Lists of one pass take about this many bytes at most if no input is zero, unless those of one pixel need more; only
// what is written is backed by memory.
constexpr int64_t kPassBytes = int64_t{64} << 20;

// Output pixels that the sums of a tile leave room for in the L1 cache, beside a chunk of weights.
constexpr int64_t kSumBytes = 16384;

}  // namespace

template <class T>
void add_count_product(const char* op, const ConvGeometry& geometry, Samples samples, const T* packed,
                       const uint8_t* counts, int64_t planes, const T* scale, const T* bias, bool add, T* out) {
  ConvGeometry g = geometry;
  g.batch = samples.count();
  if (g.batch * g.out_height * g.out_width == 0) return;
  const PackedLayout layout = packed_layout<T>(g);
  const int64_t row_bytes = layout.block * static_cast<int64_t>(sizeof(T));
  const int64_t listable = std::max<int64_t>(1, kPassBytes / (2 * g.features()));
  const int64_t rows = std::min({tile_rows(g, row_bytes, g.groups * layout.blocks), kSumBytes / row_bytes, listable});
  const int64_t tiles = (g.pixels_out() + rows - 1) / rows;
  const CountListSizes sizes(g.features(), rows);
  const int64_t most = std::clamp<int64_t>(kPassBytes / (g.groups * sizes.bytes()), 1, tiles);  // tiles of a pass
  const AlignedBuffer<uint8_t> lists(op, most * g.groups * sizes.bytes());
  const CountKernels& k = kernels<CountKernels>();
  const int64_t plane_bytes = geometry.pixels_in() * g.in_channels, bytes = g.pixels_in() * g.in_channels;
  out += samples.first * g.out_height * g.out_width * g.out_channels;
  T factor = 1;
  for (int64_t plane = 0; plane < planes; ++plane, factor *= 256) {
    const uint8_t* const from = counts + plane * plane_bytes + samples.first * g.height * g.width * g.in_channels;
    for (int64_t first = 0; first < tiles; first += most) {
      const int64_t some = std::min(most, tiles - first);
      const auto begin_of = [&](int64_t tile) { return (first + tile) * rows; };
      const auto end_of = [&](int64_t tile) { return std::min(g.pixels_out(), (first + tile + 1) * rows); };
      parallel_tasks(g.groups, some, [&](const auto& next) {
        for (int64_t task = next(); task >= 0; task = next()) {
          const CountLists place = sizes.lists(lists.data + task * sizes.bytes());
          k.list_tile({&g, from, from + bytes, task / some, begin_of(task % some), end_of(task % some), place});
        }
      });
      // Tiles innermost: neighbouring tasks share a block of weights.
      parallel_tasks(g.groups * layout.blocks, some, [&](const auto& next) {
        const AlignedBuffer<T> scratch(op, rows * layout.block);
        for (int64_t task = next(); task >= 0; task = next()) {
          const int64_t b = task / some % layout.blocks, group = task / some / layout.blocks;
          const int64_t channel = group * g.group_out() + b * layout.block;
          const bool last = plane + 1 == planes;
          CountSweepArgs<T> args = {};
          args.lists = sizes.lists(lists.data + (group * some + task % some) * sizes.bytes());
          args.features = g.features();
          args.weight = packed + (group * layout.blocks + b) * layout.block_elements();
          args.block = layout.block;
          args.valid = std::min(layout.block, g.group_out() - b * layout.block);
          args.row_begin = begin_of(task % some);
          args.row_end = end_of(task % some);
          args.row_stride = g.out_channels;
          args.factor = factor;
          args.add = add || plane > 0;
          args.scale = last && scale ? scale + channel : nullptr;
          args.bias = last && bias ? bias + channel : nullptr;
          args.sum = out + channel;
          args.scratch = scratch.data;
          k.sweep_counts(args);
        }
      });
    }
  }
}

template void add_count_product<float>(const char*, const ConvGeometry&, Samples, const float*, const uint8_t*, int64_t,
                                       const float*, const float*, bool, float*);
template void add_count_product<double>(const char*, const ConvGeometry&, Samples, const double*, const uint8_t*,
                                        int64_t, const double*, const double*, bool, double*);

void run_count_lists(const char* op, const ProductPlan& plan, Samples samples, const BinaryCounts& counts) {
  dispatch_floating(op, plan.type, [&](auto type) {
    using T = decltype(type);
    with_packed<T>(op, plan, [&](const T* packed) {
      add_count_product<T>(op, plan.geometry, samples, packed, counts.bytes, counts.planes, data_or_null<T>(plan.scale),
                           data_or_null<T>(plan.bias), false, output<T>(plan.out_sum));
    });
  });
}

}  // namespace tandem
