// The CPU kernels' interface: plain pointers and sizes, one table per instruction set. Torch-free.
//
// Each loop is written once, in *.inl.h, and compiled by scalar.cpp, avx2.cpp, neon.cpp and others into a namespace of
// its own, so that no code of a wider instruction set can leak into a narrower one through the linker.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "core/conv_geometry.h"
#include "neuron/joined.h"
#include "neuron/models.h"
#include "neuron/state.h"
#include "ops/product/block_size.h"
#include "ops/tandem_count/norm_gate.h"

namespace tandem {

// Neurons that integrate_and_fire handles at once, at most.
constexpr int64_t kNeuronBlock = 128;

// The neuron loop; channels lie last, so that neuron i belongs to channel i % channels.
template <class T>
struct IntegrateAndFireArgs {
  const T* current;        // [neurons], series [time_steps, neurons]
  int64_t current_stride;  // elements between time steps of a series
  // [channels + kNeuronBlock], those of `channels` again and again; or null
  const T* scale;          // of the current
  const T* bias;           // per time step
  State<const T> initial;  // before the first step [kStates, neurons], or null: the model's start
  uint8_t* bits;           // [planes, neurons]
  int64_t bits_stride;     // bytes between planes
  T* sum;                  // [neurons] or null
  bool add_sum;            // sum holds that of earlier time steps
  State<T> state;          // after the last step [kStates, neurons], or null
  int64_t channels;
  int64_t time_steps;
  CurrentMode mode;
  Neuron neuron;
};

// Channels in a unit; list entries are bytes.
constexpr int64_t kUnitRows = 128;
// Units in a chunk of weights, at most, and its rows: as many as a byte can tell apart, and as many 8-bit weights as
// can be summed in 16 bits, whatever they are.
constexpr int64_t kChunkUnits = 2;
constexpr int64_t kChunkRows = kChunkUnits * kUnitRows;
// Bytes past its end that writing a list may touch: what different threads write lies as far apart.
constexpr int64_t kListSlack = 64;
// The largest unit of n channels: 8 lengths and 8 lists.
constexpr int64_t unit_bytes(int64_t n) { return 8 + 8 * n; }
// Room for the units of a pixel.
constexpr int64_t pixel_bytes(int64_t units, int64_t unit_channels) {
  return units * unit_bytes(unit_channels) + kListSlack;
}
// Output pixels in a tile, at most.
constexpr int64_t kTileRows = 128;

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

// Stage 3: one tile of output pixels with one block of output channels. E: packed weights; T: neurons.
template <class E, class T>
struct EventTileArgs {
  const ConvGeometry* geometry;
  // One of three says which rows of weights to add. Dense integers: [planes, groups, group_words, pixels_in, 8], the
  // spikes of kWordChannels channels at each step, or null.
  const uint64_t* words;
  int64_t group_words;
  // Lists that are made for each window, of at most 65,536 features: [planes, pixels_in, in_channels], or null.
  const uint8_t* spikes;
  int64_t spikes_stride;  // bytes between planes
  // Otherwise visits.
  const uint8_t* visits;  // as in VisitArgs
  int64_t visits_per_tile;
  const uint8_t* widened;
  int64_t chunks, tiles, tile;
  const uint32_t* chunk_begin;  // [chunks + 1]: where each begins, in rows of the weights
  int64_t steps;                // time steps, or binary digits of a count: the planes' valid bits
  const E* weight;              // [features, weight_stride] of this group, at the block, any alignment
  int64_t weight_stride;        // output channels in a row of weight, a block_size()
  int64_t block;                // output channels of this tile: of events, all in a row
  int64_t valid;                // of them real, the rest padding
  int64_t group;
  int64_t row_begin, row_end;  // output pixels of the tile
  // All below point at the block's first channel; their rows are row_stride elements apart.
  int64_t row_stride;
  const T* scale;          // [block] or null: of the weights
  const T* bias;           // [block] or null
  State<const T> initial;  // or null: the model's start
  // One of three says what becomes of the sums: currents of each step, currents_stride apart, or null.
  T* currents;
  int64_t currents_stride;
  uint8_t* bits;  // the neuron loop, planes bits_stride apart; or null: a count product of integers
  int64_t bits_stride;
  T* sum;          // sum of currents or the count product; or null
  bool add_sum;    // sum holds that of earlier planes
  State<T> state;  // or null
  Joined<T> joined;
  Neuron neuron;
  void* scratch;  // event_scratch_bytes(), 64-byte aligned
  void* table;    // of dense integers kTableBytes, of windows window_bytes(), 64-byte aligned
};

// The lists of a window: entries from one step's to the next, and bytes of all.
inline int64_t window_stride(const ConvGeometry& g) { return g.features() + kListSlack; }
inline int64_t window_bytes(const ConvGeometry& g) {
  return kStepsPerPlane * window_stride(g) * static_cast<int64_t>(sizeof(uint16_t));
}

// Of a product of counts with floating-point weights (count_lists.inl.h): rows of weights in a chunk, and entries of a
// list that come together.
constexpr int64_t kListChunk = 128;
constexpr int64_t kListQuad = 4;

// The counts that are not zero, of one tile: for each chunk and output pixel the number of its quads, and their entries
// one after the other: the place of each in its chunk, and the count.
struct CountLists {
  uint16_t* quads;  // [chunks, rows]
  uint8_t* places;
  uint8_t* counts;
};
// Room for them, if no count is zero.
class CountListSizes {
  int64_t quads_, entries_;  // bytes

 public:
  CountListSizes(int64_t features, int64_t rows) {
    const int64_t chunks = (features + kListChunk - 1) / kListChunk;
    quads_ = (chunks * rows * static_cast<int64_t>(sizeof(uint16_t)) + 63) / 64 * 64;
    entries_ = (rows * (features + chunks * (kListQuad - 1)) + 2 * kListSlack) / 64 * 64;
  }
  int64_t bytes() const { return quads_ + 2 * entries_; }
  CountLists lists(uint8_t* at) const { return {reinterpret_cast<uint16_t*>(at), at + quads_, at + quads_ + entries_}; }
};

struct CountListArgs {
  const ConvGeometry* geometry;
  const uint8_t* counts;      // [pixels_in, in_channels]
  const uint8_t* counts_end;  // of all
  int64_t group;
  int64_t row_begin, row_end;  // output pixels, at most kTileRows
  CountLists lists;
};

// One tile with one block of output channels.
template <class T>
struct CountSweepArgs {
  CountLists lists;
  int64_t features;
  const T* weight;             // [features, block] of this group and block of output channels
  int64_t block, valid;        // output channels, and how many of them are real
  int64_t row_begin, row_end;  // as in CountListArgs
  int64_t row_stride;          // of sum, in elements
  T factor;                    // of all counts: what a byte's one stands for
  bool add;                    // to what `sum` holds
  const T* scale;              // [block] or null: of the weights
  const T* bias;               // [block] or null
  T* sum;                      // at the block's first channel
  void* scratch;               // [rows, block], 64-byte aligned
};

// Of the dense engine of counts: output pixels of a tile, at most; and features whose weights are rearranged at a time.
constexpr int64_t kCountRows = 512;
constexpr int64_t kPanelFeatures = 256;

// A product of spike counts with integer weights on instructions that multiply bytes: one tile of output pixels with
// one block of output channels. E: packed weights.
template <class E>
struct CountTileArgs {
  const ConvGeometry* geometry;
  const uint8_t* counts;  // [pixels_in, groups, group_counts]; zero past the channels of a group
  int64_t group_counts;   // a multiple of 4
  const E* weight;        // [features, block] of this group and block of output channels
  int64_t block, valid;   // output channels, and how many of them are real
  int64_t group;
  int64_t row_begin, row_end;  // output pixels, at most kCountRows
  int64_t row_stride;          // of sum, in elements
  const float* scale;          // [block]
  const float* bias;           // [block] or null
  float* sum;
  void* scratch;  // count_scratch_bytes(), 64-byte aligned
};

// A product of real input with integer weights: one tile of output pixels with one block of output channels.
template <class E>
struct OrderedTileArgs {
  const ConvGeometry* geometry;
  const float* input;           // [pixels_in, in_channels]
  const E* weight;              // [features, block] of this group and block of output channels
  int64_t block, valid, group;  // as in CountTileArgs
  int64_t row_begin, row_end;   // output pixels, at most kTileRows
  float* out;                   // at the block's first channel [row_end - row_begin, out_channels]
  float* scratch;               // [rows, block], 64-byte aligned
};

// Output pixels that the depthwise kernel handles at once.
constexpr int64_t kDepthwisePixels = 4;

// Where a tap of an output pixel finds the first channel's bits and the first channel's weight.
struct DepthwiseTap {
  int64_t input, weight;
};

// A product of one input channel a group, with the neuron loop or with the spike counts.
template <class T>
struct DepthwiseArgs {
  const ConvGeometry* geometry;
  const uint8_t* bits;  // [planes, pixels_in, in_channels]
  int64_t planes;
  const T* weight;         // [taps, weight_stride]
  int64_t weight_stride;   // out_channels, but at least a vector of any instruction set
  const T* scale;          // [out_channels] of the weights, or null
  const T* bias;           // [out_channels] or null
  State<const T> initial;  // [kStates, pixels_out, out_channels] or null: the model's start
  uint8_t* out_bits;       // neuron loop: [planes, pixels_out, out_channels]; null for a count product
  T* sum;                  // sum of currents or the count product [pixels_out, out_channels]; or null
  State<T> state;          // [kStates, pixels_out, out_channels] or null
  Joined<T> joined;
  int64_t time_steps;
  Neuron neuron;
  DepthwiseTap* scratch;  // [kDepthwisePixels, taps]
};

// The gradient of neurons behind batch norm; activations are rows [rows, channels].
template <class T>
struct NormGradientArgs {
  const T* grad;     // of the spike counts
  const T* product;  // what batch norm normalised
  const T *mean, *gain, *gamma, *beta;
  T* sums;  // [chunks, 2, channels]: of the gradient behind the gate, and of it times the normalised value
  const T *mean_grad, *mean_along;  // both over all rows
  T* out;
  int64_t rows, channels;
  T threshold, upper;
};

// Max pooling: channels handled at once, at most; time steps over which counts are bytes before these are made anew;
// and neighbouring windows taken through a plane together, at most.
constexpr int64_t kPoolLanes = 64;
constexpr int64_t kPoolSteps = 120;
constexpr int64_t kPoolPixels = 16;

struct MaxPoolArgs {
  const ConvGeometry* geometry;  // of a depthwise convolution
  const uint8_t* bits;           // [planes, pixels_in, channels]
  int64_t planes;
  const int32_t* count;  // [pixels_in, channels], of earlier time steps, or null
  uint8_t* out;          // [planes, pixels_out, channels]
};
// Neurons of a window in the image, at most.
constexpr int64_t pool_taps(const ConvGeometry& g) {
  return (g.kernel_h < g.height ? g.kernel_h : g.height) * (g.kernel_w < g.width ? g.kernel_w : g.width);
}
// Windows taken together: as many as leave their counts in a cache.
constexpr int64_t pool_pixels(const ConvGeometry& g) {
  const int64_t fitting = 64 / pool_taps(g);
  return fitting < 1 ? 1 : fitting < kPoolPixels ? fitting : kPoolPixels;
}
// For each of a window's neurons and channels a byte and a number of 32 bits.
constexpr int64_t pool_scratch_bytes(int64_t taps) { return taps * kPoolLanes * 5; }

// A dense train's elements, T or bool's byte, to bit planes and back; neurons begin..end-1 of each time step.
template <class D>
struct DenseKernels {
  // [time_steps, neurons] -> [planes, neurons]; false where an element is neither 0 nor 1. unpack: planes are `stride`
  // bytes apart.
  bool (*pack)(const D* dense, int64_t time_steps, int64_t neurons, int64_t begin, int64_t end, uint8_t* bits);
  void (*unpack)(const uint8_t* bits, int64_t stride, int64_t time_steps, int64_t neurons, int64_t begin, int64_t end,
                 D* dense);
};

template <class T>
struct TypedKernels {
  // The neuron loop of the neurons begin..end-1.
  void (*integrate_and_fire)(const IntegrateAndFireArgs<T>&, int64_t begin, int64_t end);
  // [n] spike counts of the neurons begin..end-1; planes are `stride` bytes apart.
  void (*spike_count)(const uint8_t* bits, int64_t planes, int64_t stride, int64_t begin, int64_t end, T* count);
  // Whole numbers from 0 to 255 to bytes, elements begin..end-1; false where one is none. Adds their binary ones.
  bool (*whole_bytes)(const T* values, int64_t begin, int64_t end, uint8_t* bytes, int64_t* ones);
  // grad / threshold where 0 < pre_activation <= upper, else 0, for the elements begin..end-1; out may be grad.
  void (*tandem_count_backward)(const T* grad, const T* pre_activation, int64_t begin, int64_t end, T threshold,
                                T upper, T* out);
  // A tile of a product with counts.
  void (*sweep_counts)(const CountSweepArgs<T>&);
  // Output pixels begin..end-1 of a depthwise product.
  void (*depthwise)(const DepthwiseArgs<T>&, int64_t begin, int64_t end);
  // The sums of one chunk of kNormRows rows; the gradient of the rows begin..end-1.
  void (*norm_sums)(const NormGradientArgs<T>&, int64_t chunk);
  void (*norm_gradient)(const NormGradientArgs<T>&, int64_t begin, int64_t end);
};

template <class E, class T>
using EventTile = void (*)(const EventTileArgs<E, T>&);

template <class E>
using CountTile = void (*)(const CountTileArgs<E>&);

struct Kernels {
  const char* isa;
  TypedKernels<float> f32;
  TypedKernels<double> f64;
  DenseKernels<float> dense_f32;
  DenseKernels<double> dense_f64;
  DenseKernels<uint8_t> dense_u8;
  EventTile<float, float> event_f32;
  EventTile<double, double> event_f64;
  EventTile<int8_t, float> event_i8;
  EventTile<int16_t, float> event_i16;
  CountTile<int8_t> count_i8;  // both null where nothing multiplies bytes
  CountTile<int16_t> count_i16;
  void (*ordered_i8)(const OrderedTileArgs<int8_t>&);
  void (*ordered_i16)(const OrderedTileArgs<int16_t>&);
  // Spikes of all neurons and steps in the bytes begin..end-1 of bit planes.
  int64_t (*count_spikes)(const uint8_t* bits, int64_t begin, int64_t end);
  // Units of the pixels begin..end-1, counted through all planes.
  void (*build_units)(const UnitArgs&, int64_t begin, int64_t end);
  void (*build_visits)(const VisitArgs&, int64_t plane, int64_t group, int64_t tile);
  // The lists of a tile of counts.
  void (*list_tile)(const CountListArgs&);
  // The words of `pixels` pixels: bits [pixels, groups, channels] -> [groups, words, pixels, 8], words `stride` apart.
  void (*build_words)(const uint8_t* bits, int64_t pixels, int64_t groups, int64_t channels, uint64_t* words,
                      int64_t stride);
  // Spike counts as unsigned integers, their bytes in planes of `stride`: the binary digits of a count take the place
  // of time steps in a count product.
  void (*count_bytes)(const uint8_t* bits, int64_t planes, int64_t stride, int64_t begin, int64_t end, uint8_t* bytes,
                      int64_t byte_planes);
  // Spikes of the neurons begin..end-1 added to `initial`, or to zero where that is null; planes are `stride` bytes
  // apart.
  void (*add_counts)(const uint8_t* bits, int64_t planes, int64_t stride, int64_t begin, int64_t end,
                     const int32_t* initial, int32_t* out);
  // Output pixels begin..end-1; scratch: pool_pixels() times pool_scratch_bytes(), from an address that 64 divides.
  void (*max_pool)(const MaxPoolArgs&, int64_t begin, int64_t end, uint8_t* scratch);

  template <class T>
  const TypedKernels<T>& typed() const;
  template <class E>
  const auto& event_tile() const;
  template <class E>
  CountTile<E> count_tile() const {
    if constexpr (sizeof(E) == 1) {
      return count_i8;
    } else {
      return count_i16;
    }
  }
  template <class E>
  auto ordered_tile() const {
    if constexpr (sizeof(E) == 1) {
      return ordered_i8;
    } else {
      return ordered_i16;
    }
  }
  template <class D>
  const DenseKernels<D>& dense() const;
};

template <>
inline const TypedKernels<float>& Kernels::typed<float>() const {
  return f32;
}
template <>
inline const TypedKernels<double>& Kernels::typed<double>() const {
  return f64;
}

template <>
inline const auto& Kernels::event_tile<float>() const {
  return event_f32;
}
template <>
inline const auto& Kernels::event_tile<double>() const {
  return event_f64;
}
template <>
inline const auto& Kernels::event_tile<int8_t>() const {
  return event_i8;
}
template <>
inline const auto& Kernels::event_tile<int16_t>() const {
  return event_i16;
}

template <>
inline const DenseKernels<float>& Kernels::dense<float>() const {
  return dense_f32;
}
template <>
inline const DenseKernels<double>& Kernels::dense<double>() const {
  return dense_f64;
}
template <>
inline const DenseKernels<uint8_t>& Kernels::dense<uint8_t>() const {
  return dense_u8;
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
// Sums of each digit of the weights, rearranged weights, and a pixel of zeros.
template <class E>
constexpr int64_t count_scratch_bytes(int64_t rows, int64_t block) {
  const auto digits = static_cast<int64_t>(sizeof(E));
  return digits * rows * block * static_cast<int64_t>(sizeof(int32_t)) + kPanelFeatures * (block + 1);
}

namespace scalar {
extern const Kernels kernels;
}
namespace neon {  // of aarch64
extern const Kernels kernels;
}
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
namespace avx512vbmi2 {  // of Ice Lake, Zen 4 and later
extern const Kernels kernels;
}

}  // namespace tandem
