// An event-driven product by the kernels in use, all three stages of it, without torch and without threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "core/bit_planes.h"
#include "cpu/aligned_buffer.h"
#include "cpu/isa.h"
#include "ops/product/block_size.h"
#include "ops/product/cpu_event_kernels.h"

namespace tandem {

// Where a product finds the rows of weights to add.
enum class Sums { kVisits, kWindows, kTables };

// E: packed weights; T: neurons.
template <class E, class T>
class EventProduct {
  static constexpr int64_t kRows = 7;  // output pixels of a tile
  const ConvGeometry g_;
  const uint8_t* const bits_;
  const int64_t steps_, planes_, tiles_;
  std::vector<uint32_t> begin_;  // of each chunk
  VisitArgs visit_args_ = {};
  AlignedBuffer<uint8_t> visits_;

 public:
  std::vector<uint32_t> units;  // of each pixel: where they start in the lists
  std::vector<uint8_t> widened;

  const int64_t block = block_size<E>(g_.group_out()), blocks = (g_.group_out() + block - 1) / block;

 private:
  // Where the chunks of weights begin, and where the last one ends.
  static std::vector<uint32_t> beginnings(const ConvGeometry& g, int64_t taps_per_chunk, int64_t unit_channels,
                                          int64_t units_per_chunk) {
    std::vector<uint32_t> begin;
    if (taps_per_chunk > 1) {
      for (int64_t tap = 0; tap < g.taps(); tap += taps_per_chunk) begin.push_back(tap * g.group_in());
    } else {
      const int64_t per_group = (g.group_in() + unit_channels - 1) / unit_channels;
      for (int64_t unit = 0; unit < g.taps() * per_group; unit += units_per_chunk) {
        begin.push_back(unit / per_group * g.group_in() + unit % per_group * unit_channels);
      }
    }
    begin.push_back(g.features());
    return begin;
  }

  static int64_t bytes_of_tile(const std::vector<uint32_t>& begin) {
    int64_t bytes = 0;
    for (size_t c = 0; c + 1 < begin.size(); ++c) bytes += visits_bytes(kRows, begin[c + 1] - begin[c]);
    return (bytes + 7) / 8 * 8;
  }

 public:
  // bits: [planes, pixels_in, in_channels], must outlive the product. unit_channels: of a chunk of one tap, of which
  // units_per_chunk come together; several taps take whole groups.
  EventProduct(const ConvGeometry& g, const uint8_t* bits, int64_t steps, int64_t taps_per_chunk, int64_t unit_channels,
               int64_t units_per_chunk)
      : g_(g),
        bits_(bits),
        steps_(steps),
        planes_(planes_for(steps)),
        tiles_((g.pixels_out() + kRows - 1) / kRows),
        begin_(beginnings(g, taps_per_chunk, unit_channels, units_per_chunk)),
        visits_("event tile", planes_ * g.groups * tiles_ * bytes_of_tile(begin_)),
        widened(static_cast<size_t>(planes_ * g.groups * tiles_)) {
    const bool joins = taps_per_chunk > 1;
    const int64_t per_group = (g.group_in() + unit_channels - 1) / unit_channels, per_pixel = g.groups * per_group;
    const int64_t pixels = planes_ * g.pixels_in(), plane_bytes = g.pixels_in() * g.in_channels;
    std::vector<uint8_t> lists(static_cast<size_t>(pixels * pixel_bytes(per_pixel, unit_channels)));
    units.resize(static_cast<size_t>(pixels * per_pixel));
    UnitArgs unit_args = {};
    unit_args.bits = bits;
    unit_args.bits_stride = plane_bytes;
    unit_args.pixels_in = g.pixels_in();
    unit_args.groups = g.groups;
    unit_args.group_channels = g.group_in();
    unit_args.unit_channels = unit_channels;
    unit_args.per_group = per_group;
    unit_args.steps = steps;
    unit_args.lists = lists.data();
    unit_args.units = units.data();
    if (!joins) {
      const int64_t some = std::min<int64_t>(5, pixels);
      kernels<EventKernels>().build_units(unit_args, 0, some);
      kernels<EventKernels>().build_units(unit_args, some, pixels);
    }

    std::memset(visits_.data, 0, visits_.bytes);  // not all is written
    std::vector<uint8_t> scratch(kVisitScratch);
    visit_args_.geometry = &g_;
    visit_args_.taps_per_chunk = taps_per_chunk;
    visit_args_.units_per_chunk = units_per_chunk;
    visit_args_.lists = lists.data();
    visit_args_.units = units.data();
    visit_args_.units_per_group = per_group;
    visit_args_.unit_channels = unit_channels;
    visit_args_.bits = bits;
    visit_args_.bits_stride = plane_bytes;
    visit_args_.bits_end = bits + planes_ * plane_bytes;
    visit_args_.scratch = scratch.data();
    visit_args_.chunks = static_cast<int64_t>(begin_.size()) - 1;
    visit_args_.steps = steps;
    visit_args_.tile_rows = kRows;
    visit_args_.tiles = tiles_;
    visit_args_.narrow_sums = std::is_same_v<E, int8_t>;
    visit_args_.visits_per_tile = bytes_of_tile(begin_);
    visit_args_.visits = visits_.data;
    visit_args_.widened = widened.data();
    for (int64_t task = 0; task < tasks(); ++task) {
      kernels<EventKernels>().build_visits(visit_args_, task / tiles_ / g.groups, task / tiles_ % g.groups,
                                           task % tiles_);
    }
  }

  // Tiles of all planes and groups, each with visits of so many chunks.
  int64_t tasks() const { return planes_ * g_.groups * tiles_; }
  int64_t chunks() const { return visit_args_.chunks; }
  const uint8_t* visits_of(int64_t task) const { return visits_.data + task * visit_args_.visits_per_tile; }

  // args: scale, bias, what joins, outputs and states at channel 0. weight: [groups, blocks, features, block]. The
  // tables are of integers alone.
  void run(const EventTileArgs<E, T>& args, const E* weight, Sums sums) const {
    const bool tables = sums == Sums::kTables;
    const AlignedBuffer<uint8_t> scratch("event tile",
                                         event_scratch_bytes<E, T>(kRows, block, states_of(args.sink.neuron)));
    std::memset(scratch.data, 0xA5, scratch.bytes);
    const AlignedBuffer<uint8_t> table("event tile", std::max(kTableBytes, window_bytes(g_)));
    std::vector<uint64_t> words;
    if constexpr (std::is_integral_v<E>) {
      const int64_t size = g_.pixels_in() * kStepsPerPlane, group_words = group_words_for(g_.group_in());
      if (tables) words.resize(static_cast<size_t>(planes_ * g_.groups * group_words * size));
      for (int64_t p = 0; tables && p < planes_; ++p) {
        kernels<EventKernels>().build_words(bits_ + p * g_.pixels_in() * g_.in_channels, g_.pixels_in(), g_.groups,
                                            g_.group_in(), words.data() + p * g_.groups * group_words * size, size);
      }
    }
    for (int64_t task = 0; task < g_.groups * blocks * tiles_; ++task) {
      const int64_t b = task / tiles_ % blocks, group = task / tiles_ / blocks;
      const int64_t channel = group * g_.group_out() + b * block;
      EventTileArgs<E, T> tile = args;
      tile.geometry = &g_;
      if (tables) tile.source.words = words.data();
      tile.source.group_words = group_words_for(g_.group_in());
      if (sums == Sums::kWindows) tile.source.spikes = bits_;
      tile.source.spikes_stride = g_.pixels_in() * g_.in_channels;
      if (sums == Sums::kVisits) tile.source.visits = visits_.data;
      tile.source.visits_per_tile = visit_args_.visits_per_tile;
      tile.source.widened = widened.data();
      tile.source.chunks = visit_args_.chunks;
      tile.source.chunk_begin = begin_.data();
      tile.source.tiles = tiles_;
      tile.source.tile = task % tiles_;
      tile.steps = steps_;
      tile.weight = weight + (group * blocks + b) * g_.features() * block;
      tile.block = tile.weight_stride = block;
      tile.valid = std::min(block, g_.group_out() - b * block);
      tile.group = group;
      tile.row_begin = tile.source.tile * kRows;
      tile.row_end = std::min(g_.pixels_out(), tile.row_begin + kRows);
      tile.row_stride = g_.out_channels;
      tile.sink.bits_stride = g_.pixels_out() * g_.out_channels;
      tile.sink = tile.sink.at_channel(channel);
      tile.scratch = scratch.data;
      tile.table = table.data;
      kernels<EventKernels>().event_tile(tile);
    }
  }
};

}  // namespace tandem
