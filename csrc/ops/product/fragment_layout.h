// The order of whole weights for tensor cores, as the integer engine reads them. Torch-free, host and device.
//
// A row is one digit of an output channel, 8 bits: an 8-bit weight is its only digit; 16 bits are two and 32 bits four,
// the highest with a sign, the rest from 0 to 255. A block has 64 rows, the digits of 64, 32 or 16 channels. Its inputs
// come in chunks of 32 channels, tap after tap, filled up with zeros; a step is 4 chunks. In memory:
//
//   [groups, blocks, steps, 4 slices, 4 tiles of rows, 32 lanes, 16 bytes], then zeros
//
// The 16 bytes of a lane are its registers of an A fragment of mma.m16n8k32 (PTX ISA, "Matrix Fragments for
// mma.m16n8k32"): register r holds row lane / 4 + 8 * (r % 2) of the tile, and bytes k = 4 * (lane % 4) + 16 * (r / 2)
// on. What the depth k of a fragment stands for is free as long as both matrices agree: lane q of four has chunk q of
// the step to itself, of which slice s takes the channels 8s to 8s + 7, four in each half of the depth. So a lane reads
// 16 adjacent bytes of activations for two slices. Row g of a tile is channel 2 * (g % 8) + g / 8 of its 16: two
// channels of a thread are adjacent. The tiles of higher digits come before the tiles of lower ones.
#pragma once

#include <cstdint>

#include "core/conv_geometry.h"

namespace tandem {

constexpr int kChunk = 32;        // input channels of a pixel that a lane reads in a step
constexpr int kQuads = 4;         // chunks of a step, one for each lane of four
constexpr int kSlices = 4;        // of a step: one instruction deep
constexpr int kRowTiles = 4;      // of a block, of 16 rows each
constexpr int kTileOutputs = 16;  // output channels of a tile
constexpr int kSliceWords = kRowTiles * 32, kStepWords = kSlices * kSliceWords;  // of 16 bytes
constexpr int kStagedSteps = 3;  // that are on their way to shared memory, also beyond the last one

// Digits of packed weights.
template <class E>
constexpr int kDigitsOf = static_cast<int>(sizeof(E));

struct FragmentLayout {
  int64_t groups, blocks, steps;
  int64_t chunks;  // of a tap
  int64_t pitch;   // bytes of a group's channels of a pixel, filled up

  constexpr int64_t words() const { return groups * blocks * steps * kStepWords; }
  // What taps outside of the image see, and what is staged beyond the last step.
  constexpr int64_t zeros() const {
    constexpr int64_t staged = int64_t{kStagedSteps} * kStepWords * 16;
    return pitch > staged ? pitch : staged;
  }
  constexpr int64_t bytes() const { return words() * 16 + zeros(); }
};

constexpr FragmentLayout fragment_layout(const ConvGeometry& g, int digits) {
  const int64_t channels = int64_t{kRowTiles} * kTileOutputs / digits;  // of a block
  const int64_t chunks = (g.group_in() + kChunk - 1) / kChunk;
  return {g.groups, (g.group_out() + channels - 1) / channels, (g.taps() * chunks + kQuads - 1) / kQuads, chunks,
          chunks * kChunk};
}

// Whether tensor cores are expected to be faster than the gather engine, of a layer with so many channels a group:
// predicted from bytes and operations, never measured. docs/cuda.md has the model. By the layer alone, so that a
// sample's result does not depend on its batch mates. Weights of such layers are packed for them.
constexpr bool is_wide(const ConvGeometry& g) { return g.group_in() >= 16 && g.group_out() >= 16; }

}  // namespace tandem
