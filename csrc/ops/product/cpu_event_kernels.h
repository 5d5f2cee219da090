// The CPU kernels of event-driven products and of tables of sums: plain pointers and sizes. Torch-free.
//
// The words of all products, with CUTLASS's or oneDNN's where they have one:
// - row: the weights from one input to the output channels of a block (a row of GEMM's B);
// - block: the output channels of a row, whose sums fill 1, 2 or 4 vectors (CUTLASS: tile N; oneDNN: inner block);
// - chunk: the rows that are swept together, at most 256 (CUTLASS: tile K; oneDNN: K block);
// - tile: some output pixels with one block, what a task computes (CUTLASS: threadblock tile);
// - pass: the samples, planes and output rows whose lists fit the scratch memory (oneDNN: scratchpad);
// - plane: the bytes of 8 time steps, a bit each; of a count, its digits from 2^(8p) on;
// - unit: the spikes of up to 128 channels of an input pixel, as a list for each step;
// - visit: one output pixel at one step, with the list of the rows of a chunk to add;
// - slot: the accumulator of one output pixel at one step;
// - window: the inputs that an output pixel sees (oneDNN: a column of im2col);
// - word: the spikes of 64 channels of an input pixel at one step;
// - digit: a binary one of a count, or 8 bits of a whole weight;
// - fragment: what a lane holds of an operand of a tensor core's instruction.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "core/bit_planes.h"
#include "core/conv_geometry.h"
#include "cpu/kernel_table.h"
#include "neuron/joined.h"
#include "neuron/models.h"
#include "neuron/state.h"
#include "ops/product/block_size.h"
#include "ops/product/tile_sizes.h"

namespace tandem {

// Channels in a unit; list entries are bytes.
constexpr int64_t kUnitRows = 128;
// Units in a chunk of weights, at most, and its rows: as many as a byte can tell apart, and as many 8-bit weights as
// can be summed in 16 bits, whatever they are.
constexpr int64_t kChunkUnits = 2;
constexpr int64_t kChunkRows = kChunkUnits * kUnitRows;
// The largest unit of n channels: 8 lengths and 8 lists.
constexpr int64_t unit_bytes(int64_t n) { return 8 + 8 * n; }
// Room for the units of a pixel.
constexpr int64_t pixel_bytes(int64_t units, int64_t unit_channels) {
  return units * unit_bytes(unit_channels) + kListSlack;
}
// Stage 1 of an event-driven product: see event_tile.inl.h.
struct UnitArgs {
  const uint8_t* bits;  // [planes, pixels_in, groups, group_channels]
  int64_t bits_stride;  // bytes between planes
  int64_t pixels_in, groups, group_channels;
  int64_t unit_channels;  // channels in a unit, at most kUnitRows
  int64_t per_group;      // units of a pixel and group: ceil(group_channels / unit_channels)
  int64_t steps;          // valid bits of all planes
  uint8_t* lists;         // pixel_bytes() for each pixel
  uint32_t* units;        // [planes, pixels_in, groups, per_group]: where each unit starts in lists
};

// The visits of one chunk and tile, as the sweep reads them, one byte after the other:
//   ChunkVisits
//   VisitGroup [groups]            ascending in length
//   uint16_t [slots]               of the visits, group by group: row * steps + step
//   uint8_t [visits, list_room()]  for each group its lists, and kGroupSlack bytes
// The next chunk's follow from a multiple of 8 bytes on.
struct ChunkVisits {
  uint32_t bytes;  // to the next chunk's
  uint32_t groups;
  uint32_t visits;
  uint32_t events;  // entries of all lists
  uint32_t slots;   // at least `visits`; the rest means nothing
  uint32_t unused;
};
// Visits whose lists are equally long.
struct VisitGroup {
  uint16_t length;  // at least 1
  uint16_t visits;
};
// 16-bit sums, in a slot: this visit could overflow the slot's, which has to be emptied first.
constexpr uint16_t kWiden = 0x8000;
// Behind the lists of a group: they are written 16 bytes at a time, and read 8 at a time and 16 ahead.
constexpr int64_t kGroupSlack = 16;

// A list of n entries: it is read 8 at a time.
constexpr int64_t list_room(int64_t n) { return (n + 7) / 8 * 8; }

// Room for the visits of one chunk of `chunk_rows` rows of weights and a tile of `rows` output pixels.
constexpr int64_t visits_bytes(int64_t rows, int64_t chunk_rows) {
  const int64_t slots = 8 * rows, groups = chunk_rows < slots ? chunk_rows : slots;
  const auto header = static_cast<int64_t>(sizeof(ChunkVisits) + sizeof(uint64_t));
  return header + groups * (static_cast<int64_t>(sizeof(VisitGroup)) + kGroupSlack) +
         slots * (2 + list_room(chunk_rows)) + 2 * kGroupSlack;
}

// Stage 2.
struct VisitArgs {
  const ConvGeometry* geometry;
  // 1: a chunk consists of units_per_chunk of the units, which follow each other tap by tap.
  // More: layers too narrow for that have chunks of the bytes of several taps.
  int64_t taps_per_chunk;
  int64_t units_per_chunk;
  int64_t chunks;
  const uint8_t* lists;
  const uint32_t* units;  // [planes, pixels_in, groups, units_per_group]
  int64_t units_per_group, unit_channels;
  const uint8_t* bits;      // [planes, pixels_in, groups, group_channels]
  int64_t bits_stride;      // bytes between planes
  const uint8_t* bits_end;  // of the last plane
  uint8_t* scratch;         // kVisitScratch
  int64_t steps;            // valid bits of all planes
  int64_t tile_rows, tiles;
  bool narrow_sums;  // 16-bit sums: mark slots with kWiden and fill `widened`
  uint8_t* visits;   // [planes, groups, tiles, visits_per_tile] bytes
  int64_t visits_per_tile;
  uint8_t* widened;  // [planes, groups, tiles]: whether any visit widens
};
// Units of a tile's chunk, where they are made for the chunk.
constexpr int64_t kVisitScratch = kTileRows * kChunkUnits * unit_bytes(kUnitRows) + kListSlack;

// Channels whose spikes of a step are a word, and bits of a word that look up a sum together: of as many as fill 64
// bytes of output channels, the tables for all bits take 25 KiB, which leaves half of an L1 cache to the sums.
constexpr int64_t kWordChannels = 64;
constexpr int64_t kTableBits = 5;
constexpr int64_t kTables = kWordChannels / kTableBits + 1;

// Stage 3: one tile of output pixels with one block of output channels.

// Which rows of weights are added. Exactly one of `visits`, `spikes` and `words` is set.
struct EventSource {
  // Visits, as in VisitArgs.
  const uint8_t* visits;
  int64_t visits_per_tile;
  const uint8_t* widened;
  int64_t chunks, tiles, tile;
  const uint32_t* chunk_begin;  // [chunks + 1]: where each begins, in rows of the weights
  // Lists that are made for each window, of at most 65,536 features: [planes, pixels_in, in_channels].
  const uint8_t* spikes;
  int64_t spikes_stride;  // bytes between planes
  // Tables of integers: [planes, groups, group_words, pixels_in, 8], the spikes of kWordChannels channels at each step.
  const uint64_t* words;
  int64_t group_words;
};

// What becomes of the sums: currents of each step, where `currents` is set; else the neuron loop, where `bits` is; else
// a count product of integers. Pointers are at the first channel of a block, their rows row_stride elements apart.
template <class T>
struct EventSink {
  const T* scale;          // [block] or null: of the weights
  const T* bias;           // [block] or null
  State<const T> initial;  // or null: the model's start
  T* currents;
  int64_t currents_stride;  // between steps
  uint8_t* bits;
  int64_t bits_stride;  // between planes
  T* sum;               // sum of currents or the count product; or null
  bool add_sum;         // sum holds the sum of earlier planes
  State<T> state;       // or null
  Joined<T> joined;
  Neuron neuron;

  // The sink of the planes and neurons from the given ones on.
  EventSink at(int64_t plane, int64_t neuron_index) const {
    EventSink moved = *this;
    if (currents) moved.currents += plane * kStepsPerPlane * currents_stride + neuron_index;
    if (bits) moved.bits += plane * bits_stride + neuron_index;
    if (sum) moved.sum += neuron_index;
    moved.initial = initial + neuron_index;
    moved.state = state + neuron_index;
    moved.joined = joined.at(plane, neuron_index);
    return moved;
  }
  // The sink of the channels from the given one on.
  EventSink at_channel(int64_t channel) const {
    EventSink moved = at(0, channel);
    if (scale) moved.scale += channel;
    if (bias) moved.bias += channel;
    if (joined.amplitude) moved.joined.amplitude += channel;
    return moved;
  }
};

// E: packed weights; T: neurons.
template <class E, class T>
struct EventTileArgs {
  const ConvGeometry* geometry;
  EventSource source;
  EventSink<T> sink;
  int64_t steps;          // time steps, or binary digits of a count: the planes' valid bits
  const E* weight;        // [features, weight_stride] of this group, at the block, any alignment
  int64_t weight_stride;  // output channels in a row of weight, a block_size()
  int64_t block;          // output channels of this tile: of events, all in a row
  int64_t valid;          // of them real, the rest padding
  int64_t group;
  int64_t row_begin, row_end;  // output pixels of the tile
  int64_t row_stride;
  void* scratch;  // event_scratch_bytes(), 64-byte aligned
  void* table;    // of tables kTableBytes, of windows window_bytes(), 64-byte aligned
};

// The lists of a window: entries from one step's to the next, and bytes of all.
inline int64_t window_stride(const ConvGeometry& g) { return g.features() + kListSlack; }
inline int64_t window_bytes(const ConvGeometry& g) {
  return kStepsPerPlane * window_stride(g) * static_cast<int64_t>(sizeof(uint16_t));
}

constexpr int64_t words_for(int64_t channels) { return (channels + 63) / 64; }

// Words of spikes in a group.
constexpr int64_t group_words_for(int64_t channels) { return (channels + kWordChannels - 1) / kWordChannels; }

// What a tile's sums of currents are carried in, from plane to plane: counts of integers need more than a float.
template <class E, class T>
using Carried = std::conditional_t<std::is_integral_v<E>, double, T>;

// Output channels of a tile with tables: fewer leave its sums room for more pixels, which share a table.
template <class E>
constexpr int64_t table_block(int64_t block) {
  constexpr int64_t kMost = 128 / static_cast<int64_t>(sizeof(SumOf<E>));
  return block < kMost ? block : kMost;
}

// Scratch memory of one event tile: the sums of 8 steps (16-bit sums also wide), carried states and sums.
template <class E, class T>
constexpr int64_t event_scratch_bytes(int64_t rows, int64_t block, int64_t states) {
  using A = SumOf<E>;
  const auto slot = static_cast<int64_t>(sizeof(A) == 2 ? sizeof(A) + sizeof(int32_t) : sizeof(A));
  return rows * block *
         (8 * slot + states * static_cast<int64_t>(sizeof(T)) + static_cast<int64_t>(sizeof(Carried<E, T>)));
}
// Of tables, for vectors of up to 64 bytes.
constexpr int64_t kTableBytes = kTables * 64 << kTableBits;

template <class E, class T>
using EventTile = void(const EventTileArgs<E, T>&);

struct EventKernels {
  // Units of the pixels begin..end-1, counted through all planes.
  void (*build_units)(const UnitArgs&, int64_t begin, int64_t end);
  void (*build_visits)(const VisitArgs&, int64_t plane, int64_t group, int64_t tile);
  // The words of `pixels` pixels: bits [pixels, groups, channels] -> [groups, words, pixels, 8], words `stride` apart.
  void (*build_words)(const uint8_t* bits, int64_t pixels, int64_t groups, int64_t channels, uint64_t* words,
                      int64_t stride);
  KernelOf<EventTile<float, float>, EventTile<double, double>, EventTile<int8_t, float>, EventTile<int16_t, float>>
      event_tile;
};

TANDEM_KERNELS(EventKernels)

}  // namespace tandem
