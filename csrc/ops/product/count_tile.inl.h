// Products of spike counts with integer weights on instructions that multiply four bytes each and add them to 32 bits:
// the dense engine of counts, for a neuron that waits needs one product whatever the number of time steps. 16-bit
// weights are two digits of 8 bits, with a sum each.
//
// The weights of up to kPanelFeatures features are rearranged, four to a lane, once for all output pixels of a tile.
#pragma once

#include "cpu/simd.inl.h"
#include "ops/product/cpu_count_kernels.h"
#include "ops/product/views.inl.h"

namespace tandem::TANDEM_ISA {

#if defined(__AVX512VNNI__)

constexpr int64_t kOutputs = 16;  // lanes of 32 bits

// The next 32 weights of a row, or all that `left` says there are, as bytes.
template <int kDigit>
TANDEM_HOST __m256i digits(const int8_t* weights, int64_t) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights));
}
// A digit of 16-bit weights, which are 256 * digit 1 + digit 0.
template <int kDigit>
TANDEM_HOST __m256i digits(const int16_t* weights, int64_t left) {
  __m512i v = _mm512_maskz_loadu_epi16(left < 32 ? 0xFFFF : ~__mmask32{0}, weights);
  if constexpr (kDigit == 1) v = _mm512_srai_epi16(_mm512_add_epi16(v, _mm512_set1_epi16(128)), 8);
  return _mm512_cvtepi16_epi8(v);
}

// 32 bytes of each of four rows, or the first 16 where no more are `left`, side by side.
TANDEM_HOST void store_quads(const __m256i (&row)[4], int64_t left, uint8_t* panel) {
  // Two rows are zipped to words, in order, and two of these to quads.
  const auto zipped = [&](__m256i even, __m256i odd) TANDEM_INLINE {
    return _mm512_or_si512(_mm512_cvtepu8_epi16(even), _mm512_slli_epi16(_mm512_cvtepu8_epi16(odd), 8));
  };
  const __m512i low = zipped(row[0], row[1]), high = zipped(row[2], row[3]);
  const auto quads = [&](__m256i first, __m256i last) TANDEM_INLINE {
    return _mm512_or_si512(_mm512_cvtepu16_epi32(first), _mm512_slli_epi32(_mm512_cvtepu16_epi32(last), 16));
  };
  _mm512_storeu_si512(panel, quads(_mm512_castsi512_si256(low), _mm512_castsi512_si256(high)));
  if (left < 32) return;
  _mm512_storeu_si512(panel + 64, quads(_mm512_extracti64x4_epi64(low, 1), _mm512_extracti64x4_epi64(high, 1)));
}

// [n, block] weights, or digits of them -> [(n + 3) / 4, block, 4] of 8 bits. Rows past the n-th are zero.
template <int kDigit, class E>
TANDEM_HOST void fill_panel(const E* rows, int64_t n, int64_t block, uint8_t* panel) {
  for (int64_t first = 0; first < n; first += 4, panel += 4 * block) {
    for (int64_t c = 0; c < block; c += 32) {
      const auto row = [&](int64_t i) TANDEM_INLINE {
        const E* const from = rows + (first + i) * block + c;
        return first + i < n ? digits<kDigit>(from, block - c) : _mm256_setzero_si256();
      };
      store_quads({row(0), row(1), row(2), row(3)}, block - c, panel + 4 * c);
    }
  }
}

// sum[pixel, kVectors * 16] += counts * panel for kPixels pixels and `quads` quads of features.
template <int kVectors, int kPixels>
TANDEM_HOST void multiply(const uint8_t* const* counts, const uint8_t* panel, int64_t quads, int64_t block,
                          int32_t* sum) {
  __m512i total[kPixels][kVectors];
  unrolled<kPixels>([&](int p) TANDEM_INLINE {
    unrolled<kVectors>([&](int v) TANDEM_INLINE { total[p][v] = _mm512_load_si512(sum + p * block + v * kOutputs); });
  });
  for (int64_t q = 0; q < quads; ++q, panel += 4 * block) {
    __m512i weights[kVectors];
    unrolled<kVectors>([&](int v) TANDEM_INLINE { weights[v] = _mm512_load_si512(panel + int64_t{64} * v); });
    unrolled<kPixels>([&](int p) TANDEM_INLINE {
      int32_t four;
      std::memcpy(&four, counts[p] + 4 * q, sizeof(four));
      const __m512i input = _mm512_set1_epi32(four);
      unrolled<kVectors>([&](int v) TANDEM_INLINE {
        // GCC would copy every sum to another register and back.
        asm("vpdpbusd %2, %1, %0" : "+v"(total[p][v]) : "v"(input), "v"(weights[v]));
      });
    });
  }
  unrolled<kPixels>([&](int p) TANDEM_INLINE {
    unrolled<kVectors>([&](int v) TANDEM_INLINE { _mm512_store_si512(sum + p * block + v * kOutputs, total[p][v]); });
  });
}

// Of all pixels, of a part of the block's outputs.
template <int kVectors>
TANDEM_HOST void multiply_all(const uint8_t* const* counts, int64_t rows, const uint8_t* panel, int64_t quads,
                              int64_t block, int32_t* sum) {
  int64_t row = 0;
  for (; row + 6 <= rows; row += 6) multiply<kVectors, 6>(counts + row, panel, quads, block, sum + row * block);
  for (; row + 3 <= rows; row += 3) multiply<kVectors, 3>(counts + row, panel, quads, block, sum + row * block);
  for (; row < rows; ++row) multiply<kVectors, 1>(counts + row, panel, quads, block, sum + row * block);
}

// Of all outputs of the block.
template <class E>
TANDEM_HOST void multiply_block(const uint8_t* const* counts, int64_t rows, const uint8_t* panel, int64_t quads,
                                int64_t block, int32_t* sum) {
  constexpr int64_t kPart = 4 * kOutputs;
  if (block < 2 * kOutputs) {
    multiply_all<1>(counts, rows, panel, quads, block, sum);
  } else if (block < kPart) {
    multiply_all<2>(counts, rows, panel, quads, block, sum);
  } else {
    for (int64_t at = 0; at < block; at += kPart) {
      multiply_all<4>(counts, rows, panel + 4 * at, quads, block, sum + at);
    }
  }
}

// Writes scale * sum + bias of some output pixels for `outputs` channels from `channel` of the block on. sum: [rows,
// row_stride] of each digit, digit_stride apart; unit: of floats.
template <class E>
TANDEM_HOST void write_sums(const CountTileArgs<E>& a, int64_t row_begin, int64_t rows, int64_t outputs,
                            const int32_t* sum, int64_t row_stride, int64_t digit_stride, int64_t channel,
                            const float* unit) {
  using Exact = Simd<float>::Int32;
  using Wide = LanesOf<float, double>::type;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t c = 0; c < outputs; c += kLanes<float>) {
      const int64_t left = outputs - c, at = channel + c;
      const auto digit = [&](int64_t i) TANDEM_INLINE {
        return *reinterpret_cast<const Exact*>(sum + i * digit_stride + row * row_stride + c);
      };
      Vec<float> total;
      if constexpr (kDigitsOf8<E> == 1) {
        total = __builtin_convertvector(digit(0), Vec<float>);
      } else {
        Wide all = 256 * __builtin_convertvector(digit(1), Wide) + __builtin_convertvector(digit(0), Wide);
        if constexpr (kDigitsOf8<E> == 3) all += 65536 * __builtin_convertvector(digit(2), Wide);
        total = __builtin_convertvector(all, Vec<float>);
      }
      if constexpr (std::is_same_v<E, float>) total *= load(unit + at, left);
      if (a.scale) total *= load(a.scale + at, left);
      if (a.bias) total += load(a.bias + at, left);
      store(a.sum + (row_begin + row) * a.row_stride + at, total, left);
    }
  }
}

template <class E>
void count_tile(const CountTileArgs<E>& a) {
  constexpr int64_t kDigits = sizeof(E);
  const ConvGeometry& g = *a.geometry;
  const int64_t rows = a.row_end - a.row_begin, channels = g.group_in(), block = a.block;
  int32_t* const sum = static_cast<int32_t*>(a.scratch);  // [kDigits, rows, block]
  auto* const panel = reinterpret_cast<uint8_t*>(sum + kDigits * rows * block);
  uint8_t* const nothing = panel + kPanelFeatures * block;
  std::memset(sum, 0, static_cast<size_t>(kDigits * rows * block) * sizeof(int32_t));
  std::memset(nothing, 0, kPanelFeatures);
  Views<kCountRows> views;
  views.look(g, a.row_begin, rows);
  for (int64_t tap = 0; tap < g.taps(); ++tap) {
    int64_t seen[kCountRows];
    for (int64_t row = 0; row < rows; ++row) seen[row] = views.seen(g, row, tap);
    for (int64_t c = 0; c < channels; c += kPanelFeatures) {
      const int64_t n = channels - c < kPanelFeatures ? channels - c : kPanelFeatures, quads = (n + 3) / 4;
      const uint8_t* counts[kCountRows];
      for (int64_t row = 0; row < rows; ++row) {
        counts[row] = seen[row] < 0 ? nothing : a.counts + (seen[row] * g.groups + a.group) * a.group_counts + c;
      }
      unrolled<kDigits>([&](auto digit) TANDEM_INLINE {
        fill_panel<digit>(a.weight + (tap * channels + c) * block, n, block, panel);
        multiply_block<E>(counts, rows, panel, quads, block, sum + digit * rows * block);
      });
    }
  }
  write_sums<E>(a, a.row_begin, rows, a.valid, sum, block, rows * block, 0, nullptr);
}
constexpr bool kMultipliesBytes = true;
template <class E>
constexpr auto kCountTile = count_tile<E>;

#else

constexpr bool kMultipliesBytes = false;
template <class E>
constexpr void (*kCountTile)(const CountTileArgs<E>&) = nullptr;

#endif

}  // namespace tandem::TANDEM_ISA
