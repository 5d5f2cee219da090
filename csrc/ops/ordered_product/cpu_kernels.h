// The CPU kernel of products of real input with integer weights: plain pointers and sizes. Torch-free.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/conv_geometry.h"
#include "cpu/kernel_table.h"

namespace tandem {

// The geometry of the same product of images with their zeros around them, so that every window lies inside.
inline ConvGeometry with_zeros(ConvGeometry g) {
  g.height += 2 * g.padding_h;
  g.width += 2 * g.padding_w;
  g.padding_h = g.padding_w = 0;
  return g;
}

// The rows begin..end-1 of all these images [rows, width + 2 * padding_w, in_channels], from images of geometry g.
inline void add_zeros(const ConvGeometry& g, const float* images, int64_t begin, int64_t end, float* to) {
  const ConvGeometry wider = with_zeros(g);
  const int64_t size = g.width * g.in_channels, padded = wider.width * g.in_channels;
  const int64_t before = g.padding_w * g.in_channels;
  std::fill(to + begin * padded, to + end * padded, 0.0F);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = row / wider.height, h = row % wider.height - g.padding_h;
    if (h >= 0 && h < g.height) std::copy_n(images + (n * g.height + h) * size, size, to + row * padded + before);
  }
}

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
