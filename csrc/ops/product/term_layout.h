// The order of floating-point weights for tensor cores, as the tensor-core engine reads them. Torch-free, host and
// device.
//
// A weight is the sum of bf16 terms, each the nearest to what the ones before it leave, in this order: a product with
// fewer terms reads the first ones.
//
// A block has 16 output channels where a group has no more, and 32 otherwise: one or two tiles of 16. A step is 16
// input channels of a tap, filled up with zeros, tap after tap. In memory:
//
//   [groups, blocks, steps, stored terms, tiles, 32 lanes, 16 bytes]
//
// The 16 bytes of a lane are its registers of the B fragments of mma.m16n8k16 (PTX ISA, "Matrix Fragments for
// mma.m16n8k16 with floating point type") for the tile's channels 0 to 7 and 8 to 15: of channel lane / 4, and of the
// inputs 4 * (lane % 4) on, four.
#pragma once

#include <cstdint>

#include "core/conv_geometry.h"
#include "core/narrow_float.h"

namespace tandem {

constexpr int kTermInputs = 16, kTermTile = 16;  // input channels of a step, output channels of a tile
constexpr int kTermWords = 32;                   // of 16 bytes, of a term of a tile in a step

// Terms that are stored of a weight, which hold all of it: 8 bits of its significand each.
template <class W>
constexpr int kStoredTerms = 3;
template <>
constexpr int kStoredTerms<Float16> = 2;
template <>
constexpr int kStoredTerms<BFloat16> = 1;

struct TermLayout {
  int64_t groups, blocks, steps;
  int stored, tiles;

  constexpr int step_words() const { return stored * tiles * kTermWords; }
  constexpr int64_t words() const { return groups * blocks * steps * step_words(); }
  constexpr int64_t bytes() const { return words() * 16; }
};

constexpr TermLayout term_layout(const ConvGeometry& g, int stored) {
  const int tiles = g.group_out() <= kTermTile ? 1 : 2;
  const int64_t channels = int64_t{kTermTile} * tiles;  // of a block
  return {g.groups, (g.group_out() + channels - 1) / channels,
          g.taps() * ((g.group_in() + kTermInputs - 1) / kTermInputs), stored, tiles};
}

}  // namespace tandem
