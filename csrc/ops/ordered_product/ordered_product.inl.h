// Real input times integer weights, in one order of additions for every instruction set: lanes are output channels,
// each of which adds one product after the other.
#pragma once

#include "cpu/simd.inl.h"
#include "ops/ordered_product/cpu_kernels.h"
#include "ops/product/event_rows.inl.h"
#include "ops/product/views.inl.h"

namespace tandem::TANDEM_ISA {

// Weights that are made floats together, for all pixels of a tile; and pixels that use them together.
constexpr int64_t kOrderedWeights = 4096;
constexpr int kOrderedPixels = 4;
// Inputs of a pixel that meet these weights, at most: of the narrowest block, 16 channels.
constexpr int64_t kOrderedInputs = kOrderedWeights / 16;

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

// sum += input * weights for kPixels pixels and kVectors vectors of outputs. pixels: where the inputs of each begin;
// places: of its n inputs from there on.
template <int kVectors, int kPixels>
TANDEM_HOST void add_inputs(const float* const* pixels, const int64_t* places, int64_t n, const float* rows,
                            int64_t block, float* sum) {
  constexpr int64_t lanes = kLanes<float>;
  Vec<float> total[kPixels][kVectors];
  unrolled<kPixels>([&](int p) TANDEM_INLINE {
    unrolled<kVectors>([&](int v) TANDEM_INLINE { total[p][v] = load(sum + p * block + v * lanes, lanes); });
  });
  for (int64_t i = 0; i < n; ++i, rows += block) {
    Vec<float> weights[kVectors];
    unrolled<kVectors>([&](int v) TANDEM_INLINE { weights[v] = load(rows + v * lanes, lanes); });
    unrolled<kPixels>([&](int p) TANDEM_INLINE {
      const Vec<float> value = broadcast(pixels[p][places[i]]);
      unrolled<kVectors>([&](int v) TANDEM_INLINE { total[p][v] += value * weights[v]; });
    });
  }
  unrolled<kPixels>([&](int p) TANDEM_INLINE {
    unrolled<kVectors>([&](int v) TANDEM_INLINE { store(sum + p * block + v * lanes, total[p][v], lanes); });
  });
}

template <int kPixels>
TANDEM_HOST void add_block(const float* const* pixels, const int64_t* places, int64_t n, const float* rows,
                           int64_t block, float* sum) {
  constexpr int kMost = kVectorBytes == 64 ? 4 : 2;  // as many sums as there are registers for
  constexpr int64_t lanes = kLanes<float>;
  int64_t c = 0;
  for (; c + kMost * lanes <= block; c += kMost * lanes) {
    add_inputs<kMost, kPixels>(pixels, places, n, rows + c, block, sum + c);
  }
  for (; c + 2 * lanes <= block; c += 2 * lanes) {
    add_inputs<2, kPixels>(pixels, places, n, rows + c, block, sum + c);
  }
  for (; c < block; c += lanes) add_inputs<1, kPixels>(pixels, places, n, rows + c, block, sum + c);
}

// Copies n floats. Mostly they are few: memcpy, or a loop that the compiler makes vectors of, would take longer.
TANDEM_HOST void copy_inputs(const float* from, int64_t n, float* to) {
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) std::memcpy(to + i, from + i, 4 * sizeof(float));
  if (n & 2) {
    std::memcpy(to + i, from + i, 2 * sizeof(float));
    i += 2;
  }
  if (n & 1) to[i] = from[i];
}

template <class E>
void ordered_tile(const OrderedTileArgs<E>& a) {
  const ConvGeometry& g = *a.geometry;
  const int64_t rows = a.row_end - a.row_begin, channels = g.group_in(), block = a.block;
  constexpr int64_t kTaps = 16;  // of which the inputs are looked up together
  constexpr int64_t lanes = kLanes<float>;
  alignas(64) float weights[kOrderedWeights];
  alignas(64) float inputs[kOrderedPixels * kOrderedInputs];  // of pixels at the borders
  int64_t side_by_side[kOrderedInputs];
  for (int64_t i = 0; i < kOrderedInputs; ++i) side_by_side[i] = i;
  // Where all outputs are one block, their place is theirs from the first product on.
  const bool in_place = a.valid == block && g.out_channels == block;
  float* const sums = in_place ? a.out : a.scratch;
  std::memset(sums, 0, static_cast<size_t>(rows * block) * sizeof(float));
  Views<kTileRows> views;
  views.look(g, a.row_begin, rows);
  const int64_t reach_h = (g.kernel_h - 1) * g.dilation_h, reach_w = (g.kernel_w - 1) * g.dilation_w;
  // Several taps of all channels, or a tap of some.
  const int64_t fitting = kOrderedWeights / block, fitting_taps = fitting / channels;
  const int64_t most_channels = channels < fitting ? channels : fitting;
  const int64_t most_taps = fitting_taps < 1 ? 1 : fitting_taps < kTaps ? fitting_taps : kTaps;
  for (int64_t first = 0; first < g.taps(); first += most_taps) {
    const int64_t taps_left = g.taps() - first, taps = taps_left < most_taps ? taps_left : most_taps;
    // From the first tap of all: of a tap's pixel, and of its first input.
    int64_t tap_h[kTaps], tap_w[kTaps], offset[kTaps];
    for (int64_t tap = 0; tap < taps; ++tap) {
      tap_h[tap] = (first + tap) / g.kernel_w * g.dilation_h;
      tap_w[tap] = (first + tap) % g.kernel_w * g.dilation_w;
      offset[tap] = (tap_h[tap] * g.width + tap_w[tap]) * g.in_channels;
    }
    for (int64_t c = 0; c < channels; c += most_channels) {
      const int64_t left = channels - c, some = left < most_channels ? left : most_channels;
      const E* const from = a.weight + (first * channels + c) * block;
      for (int64_t i = 0; i < taps * some * block; i += lanes) store(weights + i, as_floats(from + i), lanes);
      const float* const channel = a.input + a.group * channels + c;
      int64_t in_image[kOrderedInputs];
      for (int64_t i = 0; i < taps * some; ++i) in_image[i] = offset[i / some] + i % some;
      for (int64_t row = 0; row < rows; row += kOrderedPixels) {
        const int64_t pixels_left = rows - row, pixels = pixels_left < kOrderedPixels ? pixels_left : kOrderedPixels;
        const float* begin[kOrderedPixels];
        bool all_inside = true;
        for (int64_t p = 0; p < pixels; ++p) {
          const int64_t top = views.top[row + p], side = views.side[row + p];
          // A pixel, but for the borders.
          begin[p] = channel + (views.image[row + p] + top * g.width + side) * g.in_channels;
          all_inside &= top >= 0 && top + reach_h < g.height && side >= 0 && side + reach_w < g.width;
        }
        const int64_t* const places = all_inside ? in_image : side_by_side;
        for (int64_t p = 0; p < pixels && !all_inside; ++p) {
          const int64_t top = views.top[row + p], side = views.side[row + p];
          float* const to = inputs + p * kOrderedInputs;
          // Where a tap sees nothing, zeros: adding them changes no sum.
          std::memset(to, 0, static_cast<size_t>(taps * some) * sizeof(float));
          for (int64_t tap = 0; tap < taps; ++tap) {
            const int64_t h = top + tap_h[tap], w = side + tap_w[tap];
            if (h < 0 || h >= g.height || w < 0 || w >= g.width) continue;
            copy_inputs(begin[p] + offset[tap], some, to + tap * some);
          }
          begin[p] = to;
        }
        float* const sum = sums + row * block;
        if (pixels == kOrderedPixels) {
          add_block<kOrderedPixels>(begin, places, taps * some, weights, block, sum);
        } else {
          for (int64_t p = 0; p < pixels; ++p) {
            add_block<1>(begin + p, places, taps * some, weights, block, sum + p * block);
          }
        }
      }
    }
  }
  for (int64_t row = 0; row < rows && !in_place; ++row) {
    std::memcpy(a.out + row * g.out_channels, sums + row * block, static_cast<size_t>(a.valid) * sizeof(float));
  }
}

}  // namespace tandem::TANDEM_ISA
