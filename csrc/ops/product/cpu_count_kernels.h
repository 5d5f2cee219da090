// The CPU kernels of products of spike counts: plain pointers and sizes. Torch-free.
#pragma once

#include <cstdint>

#include "core/conv_geometry.h"
#include "cpu/kernel_table.h"
#include "neuron/joined.h"
#include "ops/product/panel_layout.h"
#include "ops/product/tile_sizes.h"
#include "ops/radix_spikes/cpu_kernels.h"

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

// Of the dense engine of counts: bytes of a row whose weights stay in the L1 cache.
constexpr int64_t kCacheDepth = 256;
// The same of matrix tiles, for all digits of the weights together, and their outputs that share the inputs of output
// pixels.
constexpr int64_t kMatrixDepth = 640, kMatrixOutputs = 64;

// The weights of a group and block of output channels, rearranged.
template <class E>
struct PanelArgs {
  const E* weight;  // [taps, channels, block], with twice as many channels, or outputs, where they are paired
  int64_t taps, channels, block;
  PanelHolds holds;
  PanelSizes sizes;
  uint8_t* panel;
};

// What of its inputs a row has. Signed values have two inputs each, of which at most one is not zero in most trains.
enum class RowOf {
  kInputs,
  kDifferences,  // of inputs 2i and 2i + 1, plus `offset`, so that they are not negative
  kFirst,        // inputs 2i
  kSecond,       // inputs 2i + 1
};

// The inputs of some output pixels, side by side as the panel has the weights.
struct RowsArgs {
  const ConvGeometry* geometry;
  const uint8_t* counts;  // [pixels_in, in_channels]
  PanelSizes sizes;
  int64_t group, row_begin, row_end;  // output pixels
  uint8_t* rows;                      // [row_end - row_begin, row_bytes()]
  RowOf row_of;
  uint8_t offset;  // 0 but for differences
};

// Rows of an image, of which each row of the kernel reads some: for each of them and each output column a line, the
// inputs of one row of the kernel. So an input is copied for each column of the kernel alone, and neighbouring output
// pixels, also of neighbouring rows, lie at one distance from each other. Rows that a row of the kernel reads for
// neighbouring output rows, `stride_h` apart in the image, are neighbours here.
struct LineLayout {
  static constexpr int64_t kMost = 8;  // rows of a kernel, and their stride

  int64_t stride;        // bytes from line to line
  int64_t image_rows;    // of an image, from the first that the first output row reads
  int64_t places;        // of rows
  int64_t first[kMost];  // the place of row 0, 1, .. stride_h - 1
  int64_t count[kMost];  // places of this and each stride_h-th row

  LineLayout() = default;
  // For so many output rows.
  LineLayout(const ConvGeometry& g, const PanelSizes& sizes, int64_t rows)
      : stride(line_stride(g.kernel_w * sizes.group_counts)), image_rows(0), places(0), first{}, count{} {
    for (int64_t phase = 0; phase < g.stride_h; ++phase) {
      int64_t most = -1;
      for (int64_t kh = 0; kh < g.kernel_h; ++kh) {
        const int64_t y = kh * g.dilation_h;
        if (y % g.stride_h == phase) most = y / g.stride_h;
      }
      first[phase] = places;
      count[phase] = most < 0 ? 0 : rows + most;
      places += count[phase];
      const int64_t behind = (count[phase] - 1) * g.stride_h + phase + 1;
      image_rows = image_rows < behind ? behind : image_rows;
    }
  }
  // Even numbers of lines of the cache would evict each other.
  static int64_t line_stride(int64_t bytes) { return bytes / kMatrixBytes % 2 ? bytes : bytes + kMatrixBytes; }
  // The place of a row, or -1 where nothing reads it.
  int64_t place_of(const ConvGeometry& g, int64_t row) const {
    const int64_t phase = row % g.stride_h, i = row / g.stride_h;
    return i < count[phase] ? first[phase] + i : -1;
  }
  int64_t image_bytes(const ConvGeometry& g) const { return places * g.out_width * stride; }
};

struct LinesArgs {
  const ConvGeometry* geometry;
  const uint8_t* counts;  // [pixels_in, in_channels]
  PanelSizes sizes;
  LineLayout layout;
  int64_t group, image, images, row;  // the first image and how many there are, the first output row of each
  uint8_t* lines;                     // [images, image_bytes()]
};

// Where the inputs of output pixels lie: in pieces. A piece's weights follow those of the piece before it in the panel.
struct InputPieces {
  int64_t count, bytes;  // of the pieces of a pixel, and of each, a multiple of kMatrixBytes
  int64_t at[LineLayout::kMost];
  int64_t stride;      // bytes from output pixel to output pixel
  int64_t band;        // output pixels that lie so: a multiple of 16, or all
  int64_t band_bytes;  // from the first of them to the first of the next band
};

// A product of spike counts with weights on instructions that multiply bytes: some output pixels with one block of
// output channels. E: packed weights.
template <class E>
struct CountTileArgs {
  int64_t largest;  // byte that there may be in a row
  PanelSizes sizes;
  const uint8_t* rows;    // [pixels + subtracted, row_bytes()]; of matrix tiles as `pieces` says, where pixels up to a
                          // multiple of 16 may hold anything
  InputPieces pieces;     // of matrix tiles
  const uint8_t* panel;   // the weights of this group and block of output channels
  int64_t block;          // sums of an output pixel
  bool paired_outputs;    // whether each sum has two outputs, the second with the other sign
  int64_t valid;          // outputs that are real
  int64_t pixels;         // output pixels
  int64_t subtracted;     // rows behind these whose sums are subtracted: none, one from all of them, or one from each
  int64_t row_stride;     // of sum, in elements
  const float* scale;     // [outputs] or null
  const float* bias;      // [outputs] or null
  float* sum;             // at the first output pixel and channel
  uint8_t* bits;          // in their place, or null: the spikes of radix neurons
  RadixFiring firing;     // of these neurons
  Joined<float> joined;   // what another branch adds, at the first output pixel and channel
  int64_t joined_stride;  // of its output pixels
  void* scratch;          // byte_scratch_bytes() or matrix_scratch_bytes(), 64-byte aligned
};

// Sums for each digit of the weights: of so many output pixels and the outputs that share their inputs.
template <class E>
constexpr int64_t matrix_scratch_bytes(int64_t pixels) {
  const int64_t rows = (pixels + kMatrixRows - 1) / kMatrixRows * kMatrixRows;
  return kDigitsOf8<E> * rows * kMatrixOutputs * static_cast<int64_t>(sizeof(int32_t));
}

// Sums for each digit of the weights.
template <class E>
constexpr int64_t byte_scratch_bytes(int64_t rows, int64_t block) {
  return kDigitsOf8<E> * rows * block * static_cast<int64_t>(sizeof(int32_t));
}

template <class T>
using SweepCounts = void(const CountSweepArgs<T>&);
template <class E>
using CountTile = void(const CountTileArgs<E>&);
template <class E>
using FillPanel = void(const PanelArgs<E>&);
using FillRows = void(const RowsArgs&);
using FillLines = void(const LinesArgs&);

struct CountKernels {
  // The lists of a tile of counts, and a tile of a product with them.
  void (*list_tile)(const CountListArgs&);
  KernelOf<SweepCounts<float>, SweepCounts<double>> sweep_counts;
  // Whether there is byte_tile, how its time for counts up to `largest` compares with lists of spikes (byte_crossover),
  // and what it takes as weights, which are floats on matrix tiles alone, and as inputs.
  bool multiplies_bytes;
  double (*byte_slope)(int64_t largest);
  KernelOf<FillPanel<int8_t>, FillPanel<int16_t>, FillPanel<float>> fill_panel;
  FillRows* fill_rows;
  FillLines* fill_lines;  // of matrix tiles
  KernelOf<CountTile<int8_t>, CountTile<int16_t>> byte_tile;
  KernelOf<CountTile<int8_t>, CountTile<int16_t>, CountTile<float>> matrix_tile;  // where has_matrix_tiles()
};

TANDEM_BYTE_KERNELS(CountKernels)

}  // namespace tandem
