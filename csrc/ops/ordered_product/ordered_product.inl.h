// Real input times integer weights, in one order of additions for every instruction set: lanes are output channels,
// each of which adds one product after the other.
#pragma once

#include "cpu/kernels.h"
#include "cpu/simd.inl.h"
#include "ops/product/event_tile.inl.h"

namespace tandem::TANDEM_ISA {

// sum += input * weights for kPixels pixels and kVectors vectors of outputs, over n channels of a tap.
template <class E, int kVectors, int kPixels>
TANDEM_HOST void add_products(const float* const* input, const E* rows, int64_t n, int64_t block, float* const* sum) {
  using Narrow = std::conditional_t<sizeof(E) == 2, Simd<float>::Int16, Simd<float>::Int32>;
  constexpr int64_t lanes = kLanes<float>;
  Vec<float> total[kPixels][kVectors];
  unrolled<kPixels>([&](int p) TANDEM_INLINE {
    unrolled<kVectors>([&](int v) TANDEM_INLINE { total[p][v] = load(sum[p] + v * lanes, lanes); });
  });
  for (int64_t c = 0; c < n; ++c, rows += block) {
    Vec<float> weights[kVectors];
    unrolled<kVectors>([&](int v) TANDEM_INLINE {
      Narrow narrow;
      std::memcpy(&narrow, rows + v * lanes, sizeof(narrow));
      weights[v] = __builtin_convertvector(narrow, Vec<float>);
    });
    unrolled<kPixels>([&](int p) TANDEM_INLINE {
      const Vec<float> value = broadcast(input[p][c]);
      unrolled<kVectors>([&](int v) TANDEM_INLINE { total[p][v] += value * weights[v]; });
    });
  }
  unrolled<kPixels>([&](int p) TANDEM_INLINE {
    unrolled<kVectors>([&](int v) TANDEM_INLINE { store(sum[p] + v * lanes, total[p][v], lanes); });
  });
}

template <class E, int kVectors>
TANDEM_HOST void add_pixels(const float* const* input, int64_t pixels, const E* rows, int64_t n, int64_t block,
                            float* const* sum) {
  int64_t p = 0;
  for (; p + 4 <= pixels; p += 4) add_products<E, kVectors, 4>(input + p, rows, n, block, sum + p);
  for (; p < pixels; ++p) add_products<E, kVectors, 1>(input + p, rows, n, block, sum + p);
}

template <class E>
void ordered_tile(const OrderedTileArgs<E>& a) {
  const ConvGeometry& g = *a.geometry;
  const int64_t rows = a.row_end - a.row_begin, channels = g.group_in(), block = a.block;
  constexpr int kMost = 4;
  constexpr int64_t lanes = kLanes<float>;
  float* const sums = a.scratch;
  std::memset(sums, 0, static_cast<size_t>(rows * block) * sizeof(float));
  Views views;
  views.look(g, a.row_begin, rows);
  for (int64_t tap = 0; tap < g.taps(); ++tap) {
    // Pixels that see nothing here would add zeros.
    const float* input[kTileRows];
    float* sum[kTileRows];
    int64_t pixels = 0;
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t seen = views.seen(g, row, tap);
      if (seen < 0) continue;
      input[pixels] = a.input + seen * g.in_channels + a.group * channels;
      sum[pixels++] = sums + row * block;
    }
    const E* const from = a.weight + tap * channels * block;
    int64_t c = 0;
    for (; c + kMost * lanes <= block; c += kMost * lanes) {
      add_pixels<E, kMost>(input, pixels, from + c, channels, block, sum);
      for (int64_t p = 0; p < pixels; ++p) sum[p] += kMost * lanes;
    }
    for (; c < block; c += lanes) {
      add_pixels<E, 1>(input, pixels, from + c, channels, block, sum);
      for (int64_t p = 0; p < pixels; ++p) sum[p] += lanes;
    }
  }
  for (int64_t row = 0; row < rows; ++row) {
    std::memcpy(a.out + (a.row_begin + row) * g.out_channels, sums + row * block,
                static_cast<size_t>(a.valid) * sizeof(float));
  }
}

}  // namespace tandem::TANDEM_ISA
