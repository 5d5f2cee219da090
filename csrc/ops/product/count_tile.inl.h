// Products of spike counts with integer weights on instructions that multiply four bytes each and add them to 32 bits:
// the dense engine of counts, for a neuron that waits needs one product whatever the number of time steps. 16-bit
// weights are two digits of 8 bits, with a sum each.
//
// The weights of up to kPanelFeatures features are rearranged, four to a lane, once for all output pixels of a tile.
#pragma once

#include "cpu/kernels.h"
#include "cpu/simd.inl.h"
#include "ops/product/event_tile.inl.h"

namespace tandem::TANDEM_ISA {

#if defined(__AVX512VNNI__)

constexpr int64_t kOutputs = 16;  // lanes of 32 bits

// Words of two vectors in turn: those of the first halves, and of the second.
struct Interleaved {
  alignas(64) uint16_t order[2][32];

  constexpr Interleaved() : order() {
    for (int i = 0; i < 32; ++i) {
      order[0][i] = static_cast<uint16_t>(i / 2 + i % 2 * 32);
      order[1][i] = static_cast<uint16_t>(16 + i / 2 + i % 2 * 32);
    }
  }
};
constexpr Interleaved kInterleaved;

// The bytes of four rows of `block` weights, side by side; rows past the n-th are zero.
TANDEM_HOST void fill_quad(const int16_t* rows, int64_t n, int64_t block, uint8_t* panel) {
  constexpr int kLowOr = 0xEA;  // (a & b) | c
  const __m512i first = _mm512_load_si512(kInterleaved.order[0]);
  const __m512i second = _mm512_load_si512(kInterleaved.order[1]);
  const __m512i low_byte = _mm512_set1_epi16(255);
  for (int64_t c = 0; c < block; c += 32) {
    const auto row = [&](int64_t i) TANDEM_INLINE {
      return i < n ? _mm512_loadu_si512(rows + i * block + c) : _mm512_setzero_si512();
    };
    const auto paired = [&](__m512i low, __m512i high) TANDEM_INLINE {
      return _mm512_ternarylogic_epi32(low, low_byte, _mm512_slli_epi16(high, 8), kLowOr);
    };
    const __m512i low = paired(row(0), row(1)), high = paired(row(2), row(3));
    _mm512_store_si512(panel + 4 * c, _mm512_permutex2var_epi16(low, first, high));
    _mm512_store_si512(panel + 4 * c + 64, _mm512_permutex2var_epi16(low, second, high));
  }
}

// The same of a digit of 16-bit weights, which are 256 * digit 1 + digit 0.
template <int kDigit>
TANDEM_HOST void fill_quad(const int32_t* rows, int64_t n, int64_t block, uint8_t* panel) {
  const __m512i low_byte = _mm512_set1_epi32(255);
  for (int64_t c = 0; c < block; c += kOutputs) {
    const auto digit = [&](int64_t i) TANDEM_INLINE {
      __m512i v = i < n ? _mm512_loadu_si512(rows + i * block + c) : _mm512_setzero_si512();
      if constexpr (kDigit == 1) v = _mm512_srai_epi32(_mm512_add_epi32(v, _mm512_set1_epi32(128)), 8);
      return _mm512_and_si512(v, low_byte);
    };
    const __m512i low = _mm512_or_si512(digit(0), _mm512_slli_epi32(digit(1), 8));
    const __m512i high = _mm512_or_si512(digit(2), _mm512_slli_epi32(digit(3), 8));
    _mm512_store_si512(panel + 4 * c, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
  }
}

// [n, block] weights, or digits of them -> [(n + 3) / 4, block, 4] of 8 bits.
template <int kDigit, class E>
TANDEM_HOST void fill_panel(const E* rows, int64_t n, int64_t block, uint8_t* panel) {
  for (int64_t first = 0; first < n; first += 4, panel += 4 * block) {
    if constexpr (sizeof(E) == 2) {
      fill_quad(rows + first * block, n - first, block, panel);
    } else {
      fill_quad<kDigit>(rows + first * block, n - first, block, panel);
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

template <class E>
void count_tile(const CountTileArgs<E>& a) {
  constexpr int64_t kDigits = sizeof(E) / 2;
  const ConvGeometry& g = *a.geometry;
  const int64_t rows = a.row_end - a.row_begin, channels = g.group_in(), block = a.block;
  int32_t* const sum = static_cast<int32_t*>(a.scratch);  // [kDigits, rows, block]
  auto* const panel = reinterpret_cast<uint8_t*>(sum + kDigits * rows * block);
  uint8_t* const nothing = panel + kPanelFeatures * block;
  std::memset(sum, 0, static_cast<size_t>(kDigits * rows * block) * sizeof(int32_t));
  std::memset(nothing, 0, kPanelFeatures);
  Views views;
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
  using Exact = Simd<float>::Int32;
  using Wide = LanesOf<float, double>::type;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t c = 0; c < a.valid; c += kLanes<float>) {
      const int64_t left = a.valid - c;
      const Exact* const exact = reinterpret_cast<const Exact*>(sum + row * block + c);
      Vec<float> total = __builtin_convertvector(*exact, Vec<float>);
      if constexpr (kDigits == 2) {
        const Exact high = *reinterpret_cast<const Exact*>(sum + (rows + row) * block + c);
        const Wide both = 256 * __builtin_convertvector(high, Wide) + __builtin_convertvector(*exact, Wide);
        total = __builtin_convertvector(both, Vec<float>);
      }
      total *= load(a.scale + c, left);
      if (a.bias) total += load(a.bias + c, left);
      store(a.sum + (a.row_begin + row) * a.row_stride + c, total, left);
    }
  }
}
template <class E>
constexpr auto kCountTile = count_tile<E>;

#else

template <class E>
constexpr void (*kCountTile)(const CountTileArgs<E>&) = nullptr;

#endif

}  // namespace tandem::TANDEM_ISA
