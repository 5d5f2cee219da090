// Real input times integer weights, in one order of additions for every instruction set: lanes are output channels,
// each of which adds one product after the other.
#pragma once

#include "cpu/kernels.h"
#include "cpu/simd.inl.h"
#include "ops/product/event_tile.inl.h"

namespace tandem::TANDEM_ISA {

// Bytes of weights that serve all pixels of a tile before the next ones are read.
constexpr int64_t kOrderedBytes = 16384;

// Input pixel of a tap, with its channels `step` apart. Where a tap sees nothing, a zero: adding it changes no sum.
struct TapInput {
  const float* value;
  int64_t step;
};

// sum += input * weights for kPixels pixels and kVectors vectors of outputs, over some taps. input: [tap, kTileRows].
template <class E, int kVectors, int kPixels>
TANDEM_HOST void add_taps(const TapInput* input, int64_t taps, const E* rows, int64_t channels, int64_t block,
                          float* sum) {
  using Narrow = std::conditional_t<sizeof(E) == 2, Simd<float>::Int16, Simd<float>::Int32>;
  constexpr int64_t lanes = kLanes<float>;
  Vec<float> total[kPixels][kVectors];
  unrolled<kPixels>([&](int p) TANDEM_INLINE {
    unrolled<kVectors>([&](int v) TANDEM_INLINE { total[p][v] = load(sum + p * block + v * lanes, lanes); });
  });
  for (int64_t tap = 0; tap < taps; ++tap, input += kTileRows) {
    for (int64_t c = 0; c < channels; ++c, rows += block) {
      Vec<float> weights[kVectors];
      unrolled<kVectors>([&](int v) TANDEM_INLINE {
        Narrow narrow;
        std::memcpy(&narrow, rows + v * lanes, sizeof(narrow));
        weights[v] = __builtin_convertvector(narrow, Vec<float>);
      });
      unrolled<kPixels>([&](int p) TANDEM_INLINE {
        const Vec<float> value = broadcast(input[p].value[c * input[p].step]);
        unrolled<kVectors>([&](int v) TANDEM_INLINE { total[p][v] += value * weights[v]; });
      });
    }
  }
  unrolled<kPixels>([&](int p) TANDEM_INLINE {
    unrolled<kVectors>([&](int v) TANDEM_INLINE { store(sum + p * block + v * lanes, total[p][v], lanes); });
  });
}

template <class E, int kVectors>
TANDEM_HOST void add_pixels(const TapInput* input, int64_t taps, int64_t pixels, const E* rows, int64_t channels,
                            int64_t block, float* sum) {
  int64_t p = 0;
  for (; p + 4 <= pixels; p += 4) {
    add_taps<E, kVectors, 4>(input + p, taps, rows, channels, block, sum + p * block);
  }
  for (; p < pixels; ++p) add_taps<E, kVectors, 1>(input + p, taps, rows, channels, block, sum + p * block);
}

template <class E>
void ordered_tile(const OrderedTileArgs<E>& a) {
  const ConvGeometry& g = *a.geometry;
  const int64_t rows = a.row_end - a.row_begin, channels = g.group_in(), block = a.block;
  constexpr int kMost = 4;
  constexpr int64_t kTaps = 16;  // of which the inputs are looked up at once
  constexpr int64_t lanes = kLanes<float>;
  const int64_t fitting = kOrderedBytes / (channels * block * static_cast<int64_t>(sizeof(E)));
  const int64_t together = fitting < 1 ? 1 : fitting < kTaps ? fitting : kTaps;
  static const float zero = 0;
  TapInput input[kTaps * kTileRows];
  float* const sums = a.scratch;
  std::memset(sums, 0, static_cast<size_t>(rows * block) * sizeof(float));
  Views views;
  views.look(g, a.row_begin, rows);
  for (int64_t first = 0; first < g.taps(); first += together) {
    const int64_t left = g.taps() - first, taps = left < together ? left : together;
    for (int64_t tap = 0; tap < taps; ++tap) {
      for (int64_t row = 0; row < rows; ++row) {
        const int64_t seen = views.seen(g, row, first + tap);
        TapInput& here = input[tap * kTileRows + row];
        here = {&zero, 0};
        if (seen >= 0) here = {a.input + seen * g.in_channels + a.group * channels, 1};
      }
    }
    const E* const from = a.weight + first * channels * block;
    int64_t c = 0;
    for (; c + kMost * lanes <= block; c += kMost * lanes) {
      add_pixels<E, kMost>(input, taps, rows, from + c, channels, block, sums + c);
    }
    for (; c + 2 * lanes <= block; c += 2 * lanes) {
      add_pixels<E, 2>(input, taps, rows, from + c, channels, block, sums + c);
    }
    for (; c < block; c += lanes) add_pixels<E, 1>(input, taps, rows, from + c, channels, block, sums + c);
  }
  for (int64_t row = 0; row < rows; ++row) {
    std::memcpy(a.out + (a.row_begin + row) * g.out_channels, sums + row * block,
                static_cast<size_t>(a.valid) * sizeof(float));
  }
}

}  // namespace tandem::TANDEM_ISA
