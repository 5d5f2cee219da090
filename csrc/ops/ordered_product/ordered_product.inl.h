// Real input times integer weights, in one order of additions for every instruction set: lanes are output channels,
// each of which adds one product after the other.
#pragma once

#include "cpu/simd.inl.h"
#include "ops/ordered_product/cpu_kernels.h"
#include "ops/product/event_rows.inl.h"

namespace tandem::TANDEM_ISA {

// Weights that are made floats together, for all pixels of a tile.
constexpr int64_t kOrderedWeights = 4096;
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

// Adds n inputs of kPixels pixels times kVectors vectors of outputs to their sums, or begins sums. pixels: where the
// inputs of each begin; places: of its n inputs from there on.
template <int kVectors, int kPixels>
TANDEM_HOST void add_inputs(const float* const* pixels, const int64_t* places, int64_t n, const float* weights,
                            int64_t block, bool begins, float* sum, int64_t stride) {
  constexpr int64_t lanes = kLanes<float>;
  Vec<float> total[kPixels][kVectors] = {};
  if (!begins) {
    unrolled<kPixels>([&](int p) TANDEM_INLINE {
      unrolled<kVectors>([&](int v) TANDEM_INLINE { total[p][v] = load(sum + p * stride + v * lanes, lanes); });
    });
  }
  for (int64_t i = 0; i < n; ++i, weights += block) {
    Vec<float> row[kVectors];
    unrolled<kVectors>([&](int v) TANDEM_INLINE { row[v] = load(weights + v * lanes, lanes); });
    unrolled<kPixels>([&](int p) TANDEM_INLINE {
      const Vec<float> value = broadcast(pixels[p][places[i]]);
      unrolled<kVectors>([&](int v) TANDEM_INLINE { total[p][v] += value * row[v]; });
    });
  }
  unrolled<kPixels>([&](int p) TANDEM_INLINE {
    unrolled<kVectors>([&](int v) TANDEM_INLINE { store(sum + p * stride + v * lanes, total[p][v], lanes); });
  });
}

template <class E>
void ordered_tile(const OrderedTileArgs<E>& a) {
  const ConvGeometry& g = *a.geometry;
  const int64_t rows = a.row_end - a.row_begin, channels = g.group_in(), block = a.block;
  constexpr int kSums = kVectorBytes == 64 ? 16 : 8;  // vectors of them that there are registers for
  constexpr int64_t lanes = kLanes<float>;
  alignas(64) float weights[kOrderedWeights];
  const float* pixels[kTileRows];  // the first input of each window
  int64_t image = a.row_begin / (g.out_height * g.out_width), h = a.row_begin / g.out_width % g.out_height;
  for (int64_t row = 0, w = a.row_begin % g.out_width; row < rows; w = 0) {
    const int64_t line = (image * g.height + h * g.stride_h) * g.width;
    for (; row < rows && w < g.out_width; ++row, ++w) {
      pixels[row] = a.input + (line + w * g.stride_w) * g.in_channels + a.group * channels;
    }
    if (++h == g.out_height) h = 0, ++image;
  }
  // Where all outputs of a block exist, their place is theirs from the first product on.
  const bool in_place = a.valid == block;
  float* const sums = in_place ? a.out : a.scratch;
  const int64_t stride = in_place ? g.out_channels : block;
  // Several taps of all channels, or a tap of some.
  const int64_t fitting = kOrderedWeights / block, fitting_taps = fitting / channels;
  const int64_t most_channels = channels < fitting ? channels : fitting;
  const int64_t most_taps = fitting_taps < 1 ? 1 : fitting_taps;
  for (int64_t first = 0; first < g.taps(); first += most_taps) {
    const int64_t taps_left = g.taps() - first, taps = taps_left < most_taps ? taps_left : most_taps;
    for (int64_t c = 0; c < channels; c += most_channels) {
      const int64_t left = channels - c, some = left < most_channels ? left : most_channels, n = taps * some;
      const E* const from = a.weight + (first * channels + c) * block;
      for (int64_t i = 0; i < n * block; i += lanes) store(weights + i, as_floats(from + i), lanes);
      int64_t places[kOrderedInputs];
      for (int64_t i = 0; i < n;) {
        const int64_t tap = first + i / some;
        const int64_t pixel = tap / g.kernel_w * g.dilation_h * g.width + tap % g.kernel_w * g.dilation_w;
        for (int64_t k = 0; k < some; ++k) places[i++] = pixel * g.in_channels + c + k;
      }
      const bool begins = first == 0 && c == 0;
      // All rows meet some outputs before the next outputs.
      const auto add = [&](auto vectors, int64_t output) TANDEM_INLINE {
        constexpr int kVectors = vectors;
        constexpr int kPixels = kSums / kVectors < 8 ? kSums / kVectors : 8;
        const float* const part = weights + output;
        float* const to = sums + output;
        int64_t row = 0;
        for (; row + kPixels <= rows; row += kPixels) {
          add_inputs<kVectors, kPixels>(pixels + row, places, n, part, block, begins, to + row * stride, stride);
        }
        for (; row < rows; ++row) {
          add_inputs<kVectors, 1>(pixels + row, places, n, part, block, begins, to + row * stride, stride);
        }
      };
      constexpr int kMost = kSums / 4;
      int64_t output = 0;
      for (; output + kMost * lanes <= block; output += kMost * lanes) {
        add(std::integral_constant<int, kMost>{}, output);
      }
      for (; output + 2 * lanes <= block; output += 2 * lanes) add(std::integral_constant<int, 2>{}, output);
      for (; output < block; output += lanes) add(std::integral_constant<int, 1>{}, output);
    }
  }
  for (int64_t row = 0; row < rows && !in_place; ++row) {
    std::memcpy(a.out + row * g.out_channels, sums + row * block, static_cast<size_t>(a.valid) * sizeof(float));
  }
}

}  // namespace tandem::TANDEM_ISA
