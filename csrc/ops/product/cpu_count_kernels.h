// The CPU kernels of products of spike counts: plain pointers and sizes. Torch-free.
#pragma once

#include <cstdint>

#include "core/conv_geometry.h"
#include "cpu/kernel_table.h"
#include "ops/product/matrix_layout.h"
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
  const float* scale;          // [block] or null
  const float* bias;           // [block] or null
  float* sum;
  void* scratch;  // count_scratch_bytes(), 64-byte aligned
};

template <class E>
struct MatrixPanelArgs {
  const E* weight;  // [taps, channels, block]
  int64_t taps, channels, block;
  MatrixSizes sizes;
  uint8_t* panel;
};

// The inputs of some output pixels, side by side as the panel has the weights.
struct MatrixRowsArgs {
  const ConvGeometry* geometry;
  const uint8_t* counts;  // [pixels_in, groups, group_counts]
  MatrixSizes sizes;
  int64_t group, row_begin, row_end;  // output pixels
  uint8_t* rows;                      // [row_end - row_begin, row_bytes()]
};

template <class E>
struct MatrixTileArgs {
  CountTileArgs<E> tile;  // without counts and weight; up to any number of output pixels
  MatrixSizes sizes;
  const uint8_t* rows;  // [row_end - row_begin, row_bytes()], up to a multiple of 16 in which anything may stand
  const uint8_t* panel;
};

// Sums of a pair of tiles for each digit of the weights.
template <class E>
constexpr int64_t matrix_scratch_bytes() {
  return kDigitsOf8<E> * kMatrixRows * kMatrixRows * static_cast<int64_t>(sizeof(int32_t));
}

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
template <class E>
using FillMatrixPanel = void(const MatrixPanelArgs<E>&);
using FillMatrixRows = void(const MatrixRowsArgs&);
template <class E>
using MatrixTile = void(const MatrixTileArgs<E>&);

struct CountKernels {
  // The lists of a tile of counts, and a tile of a product with them.
  void (*list_tile)(const CountListArgs&);
  KernelOf<SweepCounts<float>, SweepCounts<double>> sweep_counts;
  bool multiplies_bytes;  // whether there is count_tile
  KernelOf<CountTile<int8_t>, CountTile<int16_t>> count_tile;
  // The same on matrix tiles, where has_matrix_tiles(), and what it takes as weights and as inputs.
  KernelOf<FillMatrixPanel<int8_t>, FillMatrixPanel<int16_t>, FillMatrixPanel<float>> fill_matrix_panel;
  FillMatrixRows* fill_matrix_rows;
  KernelOf<MatrixTile<int8_t>, MatrixTile<int16_t>, MatrixTile<float>> matrix_tile;
};

TANDEM_KERNELS(CountKernels)

}  // namespace tandem
