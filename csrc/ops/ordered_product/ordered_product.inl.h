// Real input times integer weights, in one order of additions for every instruction set: lanes are output channels,
// each of which adds one product after the other.
#pragma once

#include "cpu/kernels.h"
#include "cpu/simd.inl.h"
#include "ops/product/event_tile.inl.h"

namespace tandem::TANDEM_ISA {

// Weights that are made floats together, for all pixels of a tile; and pixels that use them together.
constexpr int64_t kOrderedWeights = 4096;
constexpr int kOrderedPixels = 4;

// Input pixel of a tap, with its channels `step` apart. Where a tap sees nothing, a zero: adding it changes no sum.
struct TapInput {
  const float* value;
  int64_t step;
};

template <class E>
TANDEM_HOST Vec<float> as_floats(const E* from) {
  // GCC would convert a quarter of a vector at a time.
#if defined(__AVX512BW__)
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  if constexpr (sizeof(E) == 1) return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
  if constexpr (sizeof(E) == 2) return __builtin_convertvector(widened(from), Vec<float>);
#elif defined(TANDEM_NEON)
  using Integers = Vec<int32_t>;
  Integers integers;
  if constexpr (sizeof(E) == 1) {
    int32_t four;
    std::memcpy(&four, from, sizeof(four));
    const int16x8_t pairs = vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four)));
    integers = reinterpret_cast<Integers>(vmovl_s16(vget_low_s16(pairs)));
  } else {
    integers = widened(from);
  }
  return __builtin_convertvector(integers, Vec<float>);
#else
  typedef E Weights __attribute__((vector_size(kLanes<float> * sizeof(E))));
  Weights weights;
  std::memcpy(&weights, from, sizeof(weights));
  return __builtin_convertvector(weights, Vec<float>);
#endif
}

// sum += input * weights for kPixels pixels and kVectors vectors of outputs, over some taps.
template <int kVectors, int kPixels>
TANDEM_HOST void add_taps(const TapInput (*input)[kOrderedPixels], int64_t taps, const float* rows, int64_t channels,
                          int64_t block, float* sum) {
  constexpr int64_t lanes = kLanes<float>;
  Vec<float> total[kPixels][kVectors];
  unrolled<kPixels>([&](int p) TANDEM_INLINE {
    unrolled<kVectors>([&](int v) TANDEM_INLINE { total[p][v] = load(sum + p * block + v * lanes, lanes); });
  });
  for (int64_t tap = 0; tap < taps; ++tap) {
    for (int64_t c = 0; c < channels; ++c, rows += block) {
      Vec<float> weights[kVectors];
      unrolled<kVectors>([&](int v) TANDEM_INLINE { weights[v] = load(rows + v * lanes, lanes); });
      unrolled<kPixels>([&](int p) TANDEM_INLINE {
        const Vec<float> value = broadcast(input[tap][p].value[c * input[tap][p].step]);
        unrolled<kVectors>([&](int v) TANDEM_INLINE { total[p][v] += value * weights[v]; });
      });
    }
  }
  unrolled<kPixels>([&](int p) TANDEM_INLINE {
    unrolled<kVectors>([&](int v) TANDEM_INLINE { store(sum + p * block + v * lanes, total[p][v], lanes); });
  });
}

template <int kPixels>
TANDEM_HOST void add_block(const TapInput (*input)[kOrderedPixels], int64_t taps, const float* rows, int64_t channels,
                           int64_t block, float* sum) {
  constexpr int kMost = 4;
  constexpr int64_t lanes = kLanes<float>;
  int64_t c = 0;
  for (; c + kMost * lanes <= block; c += kMost * lanes) {
    add_taps<kMost, kPixels>(input, taps, rows + c, channels, block, sum + c);
  }
  for (; c + 2 * lanes <= block; c += 2 * lanes) {
    add_taps<2, kPixels>(input, taps, rows + c, channels, block, sum + c);
  }
  for (; c < block; c += lanes) add_taps<1, kPixels>(input, taps, rows + c, channels, block, sum + c);
}

template <class E>
void ordered_tile(const OrderedTileArgs<E>& a) {
  const ConvGeometry& g = *a.geometry;
  const int64_t rows = a.row_end - a.row_begin, channels = g.group_in(), block = a.block;
  constexpr int64_t kTaps = 16;  // of which the inputs are looked up together
  constexpr int64_t lanes = kLanes<float>;
  static const float zero = 0;
  alignas(64) float weights[kOrderedWeights];
  float* const sums = a.scratch;
  std::memset(sums, 0, static_cast<size_t>(rows * block) * sizeof(float));
  Views views;
  views.look(g, a.row_begin, rows);
  const int64_t reach_h = (g.kernel_h - 1) * g.dilation_h, reach_w = (g.kernel_w - 1) * g.dilation_w;
  // Several taps of all channels, or a tap of some.
  const int64_t fitting = kOrderedWeights / block, fitting_taps = fitting / channels;
  const int64_t most_channels = channels < fitting ? channels : fitting;
  const int64_t most_taps = fitting_taps < 1 ? 1 : fitting_taps < kTaps ? fitting_taps : kTaps;
  for (int64_t first = 0; first < g.taps(); first += most_taps) {
    const int64_t taps_left = g.taps() - first, taps = taps_left < most_taps ? taps_left : most_taps;
    int64_t offset[kTaps];  // of a tap's pixel from that of the first tap of all
    for (int64_t tap = 0; tap < taps; ++tap) {
      offset[tap] = (first + tap) / g.kernel_w * g.dilation_h * g.width + (first + tap) % g.kernel_w * g.dilation_w;
    }
    for (int64_t c = 0; c < channels; c += most_channels) {
      const int64_t left = channels - c, some = left < most_channels ? left : most_channels;
      const E* const from = a.weight + (first * channels + c) * block;
      for (int64_t i = 0; i < taps * some * block; i += lanes) store(weights + i, as_floats(from + i), lanes);
      const float* const channel = a.input + a.group * channels + c;
      for (int64_t row = 0; row < rows; row += kOrderedPixels) {
        TapInput input[kTaps][kOrderedPixels];
        const int64_t pixels_left = rows - row, pixels = pixels_left < kOrderedPixels ? pixels_left : kOrderedPixels;
        for (int64_t p = 0; p < pixels; ++p) {
          const int64_t top = views.top[row + p], side = views.side[row + p];
          const int64_t origin = views.image[row + p] + top * g.width + side;  // a pixel, but for the borders
          const bool inside = top >= 0 && top + reach_h < g.height && side >= 0 && side + reach_w < g.width;
          for (int64_t tap = 0; tap < taps; ++tap) {
            const bool sees = inside || views.seen(g, row + p, first + tap) >= 0;
            input[tap][p] = sees ? TapInput{channel + (origin + offset[tap]) * g.in_channels, 1} : TapInput{&zero, 0};
          }
        }
        float* const sum = sums + row * block;
        if (pixels == kOrderedPixels) {
          add_block<kOrderedPixels>(input, taps, weights, some, block, sum);
        } else {
          for (int64_t p = 0; p < pixels; ++p) {
            for (int64_t tap = 0; tap < taps; ++tap) input[tap][0] = input[tap][p];
            add_block<1>(input, taps, weights, some, block, sum + p * block);
          }
        }
      }
    }
  }
  for (int64_t row = 0; row < rows; ++row) {
    std::memcpy(a.out + (a.row_begin + row) * g.out_channels, sums + row * block,
                static_cast<size_t>(a.valid) * sizeof(float));
  }
}

}  // namespace tandem::TANDEM_ISA
