// The CPU kernels of products of spike counts: plain pointers and sizes. Torch-free.
#pragma once

#include <cstdint>

#include "core/conv_geometry.h"
#include "cpu/kernel_table.h"
#include "ops/product/tile_sizes.h"

namespace tandem {

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

// Sums of each digit of the weights, rearranged weights, and a pixel of zeros.
template <class E>
constexpr int64_t count_scratch_bytes(int64_t rows, int64_t block) {
  const auto digits = static_cast<int64_t>(sizeof(E));
  return digits * rows * block * static_cast<int64_t>(sizeof(int32_t)) + kPanelFeatures * (block + 1);
}

template <class T>
using SweepCounts = void(const CountSweepArgs<T>&);
template <class E>
using CountTile = void(const CountTileArgs<E>&);

struct CountKernels {
  // The lists of a tile of counts, and a tile of a product with them.
  void (*list_tile)(const CountListArgs&);
  KernelOf<SweepCounts<float>, SweepCounts<double>> sweep_counts;
  bool multiplies_bytes;  // whether there is count_tile
  KernelOf<CountTile<int8_t>, CountTile<int16_t>> count_tile;
};

TANDEM_KERNELS(CountKernels)

}  // namespace tandem
