// Output pixels in tiles, and blocks of output channels, shared out among threads: what products of events and of words
// have in common.
#pragma once

#include <algorithm>

#include "cpu/aligned_buffer.h"
#include "cpu/parallel.h"
#include "ops/product/cpu_event_kernels.h"
#include "ops/product/packed_layout.h"
#include "ops/product/plan.h"

namespace tandem {

// Output pixels per tile: few enough that the accumulators stay well inside an L2 cache and that every thread gets
// several tiles, many enough that a chunk of weights, once in L1, is used often.
inline int64_t tile_rows(const ConvGeometry& g, int64_t row_bytes, int64_t tasks_per_tile) {
  constexpr int64_t kScratchBytes = int64_t{384} * 1024, kLeast = 4, kMost = kTileRows;
  const int64_t rows = std::clamp(kScratchBytes / row_bytes, kLeast, kMost);
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t wanted_tiles = (4 * threads + tasks_per_tile - 1) / tasks_per_tile;
  const int64_t fair = (g.pixels_out() + wanted_tiles - 1) / std::max<int64_t>(1, wanted_tiles);
  const int64_t most = std::clamp(std::min(rows, fair), int64_t{1}, kMost);
  // As even as may be, and as many for every thread, unless there are fewer than threads.
  const int64_t least = std::max<int64_t>(1, (g.pixels_out() + most - 1) / most);
  const int64_t tiles = least < threads ? least : (least + threads - 1) / threads * threads;
  return std::max<int64_t>(1, (g.pixels_out() + tiles - 1) / tiles);
}

// The neurons of a whole product at channel 0, without scale and bias.
template <class T>
EventSink<T> spiking_sink(const ProductPlan& plan) {
  EventSink<T> sink = {};
  sink.initial = given_state<T>(plan.initial);
  sink.bits = output<uint8_t>(plan.out_bits);
  sink.bits_stride = plan.geometry.pixels_out() * plan.geometry.out_channels;
  sink.sum = output<T>(plan.out_sum);
  sink.state = wanted_state<T>(plan.out_state);
  sink.joined = joined_of<T>(plan);
  sink.neuron = plan.neuron;
  return sink;
}

// Every tile of `rows` output pixels with every `block` of output channels. args: what all tiles have in common, with
// outputs, scale and bias at channel 0; packed: the weights of all blocks.
template <class E, class T>
void run_tiles(const char* op, const ConvGeometry& g, const PackedLayout& layout, const E* packed, int64_t block,
               int64_t rows, const EventTileArgs<E, T>& args) {
  const int64_t tiles = (g.pixels_out() + rows - 1) / rows;
  const int64_t blocks = (g.group_out() + block - 1) / block, in_row = layout.block / block;
  const EventKernels& k = kernels<EventKernels>();
  // Tiles innermost: neighbouring tasks share a block of weights.
  parallel_tasks(g.groups * blocks, tiles, [&](const auto& next) {
    const AlignedBuffer<uint8_t> scratch(op, event_scratch_bytes<E, T>(rows, block, states_of(args.sink.neuron)));
    const AlignedBuffer<uint8_t> table(op, args.source.words ? kTableBytes : args.source.spikes ? window_bytes(g) : 0);
    for (int64_t task = next(); task >= 0; task = next()) {
      const int64_t b = task / tiles % blocks, group = task / tiles / blocks;
      const int64_t channel = group * g.group_out() + b * block;
      EventTileArgs<E, T> tile = args;
      tile.geometry = &g;
      tile.source.tiles = tiles;
      tile.source.tile = task % tiles;
      tile.sink = args.sink.at_channel(channel);
      tile.row_stride = g.out_channels;
      tile.block = block;
      tile.weight_stride = layout.block;
      tile.weight = packed + (group * layout.blocks + b / in_row) * layout.block_elements() + b % in_row * block;
      tile.valid = std::min(block, g.group_out() - b * block);
      tile.group = group;
      tile.row_begin = tile.source.tile * rows;
      tile.row_end = std::min(g.pixels_out(), tile.row_begin + rows);
      tile.scratch = scratch.data;
      tile.table = table.data;
      k.event_tile(tile);
    }
  });
}

}  // namespace tandem
