// The CPU kernel of products of real input with integer weights: plain pointers and sizes. Torch-free.
#pragma once

#include <cstdint>

#include "core/conv_geometry.h"
#include "cpu/kernel_table.h"

namespace tandem {

// A product of real input with integer weights: one tile of output pixels with one block of output channels.
template <class E>
struct OrderedTileArgs {
  const ConvGeometry* geometry;  // without padding
  const float* input;            // [pixels_in, in_channels]
  const E* weight;               // [features, block] of this group and block of output channels
  int64_t block, valid, group;   // as in CountTileArgs
  int64_t row_begin, row_end;    // output pixels, at most kTileRows
  float* out;                    // at the block's first channel [row_end - row_begin, out_channels]
  float* scratch;                // [rows, block], 64-byte aligned; where only some outputs of the block exist
};

template <class E>
using OrderedTile = void(const OrderedTileArgs<E>&);

struct OrderedProductKernels {
  KernelOf<OrderedTile<int8_t>, OrderedTile<int16_t>> ordered_tile;
};

TANDEM_KERNELS(OrderedProductKernels)

}  // namespace tandem
