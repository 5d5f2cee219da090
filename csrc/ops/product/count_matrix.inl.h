// Products of spike counts with weights on matrix tiles (AMX): 16 pixels of 64 bytes times 64 bytes of 16 outputs in
// one instruction. Two tiles of pixels and two of outputs share their operands. Floats become integers of 24 bits,
// three digits of 8: their sums are exact, and so do not depend on an order.
//
// Weights and inputs are rearranged once for all tasks (fill_matrix_panel, fill_matrix_rows).
#pragma once

#include <cmath>

#include "ops/product/count_tile.inl.h"

namespace tandem::TANDEM_ISA {

#if defined(__AVX512VBMI2__) && defined(__linux__)

#define TANDEM_TILES __attribute__((target("amx-tile,amx-int8")))

template <class E>
void fill_matrix_panel(const MatrixPanelArgs<E>& a) {
  const int64_t digit_bytes = a.sizes.digit_bytes(a.block), tap_bytes = a.sizes.group_counts * a.block;
  unrolled<static_cast<int>(kDigitsOf8<E>)>([&](auto digit) TANDEM_INLINE {
    uint8_t* const to = a.panel + digit * digit_bytes;
    for (int64_t tap = 0; tap < a.taps; ++tap) {
      fill_panel<digit>(a.weight + tap * a.channels * a.block, a.channels, a.block, to + tap * tap_bytes);
    }
    std::memset(to + a.taps * tap_bytes, 0, static_cast<size_t>(digit_bytes - a.taps * tap_bytes));
  });
}

// The largest integer of three signed digits, and the least exponent of a channel's unit.
constexpr int64_t kMostBlock = 64;  // outputs of a block of floats
constexpr float kLargest24 = 127 * 65536 + 127 * 256 + 127;
constexpr int kLeastExponent = -100;

// The power of two that 24-bit integers stand for whose largest is at most `largest`.
TANDEM_HOST float unit_of(float largest) {
  int exponent = 0;
  if (largest > 0) std::frexp(largest, &exponent);
  exponent = exponent < kLeastExponent ? kLeastExponent : exponent;
  const float unit = std::ldexp(1.0F, exponent - 23);
  return largest > unit * kLargest24 ? 2 * unit : unit;
}

template <>
void fill_matrix_panel<float>(const MatrixPanelArgs<float>& a) {
  const int64_t digit_bytes = a.sizes.digit_bytes(a.block), tap_bytes = a.sizes.group_counts * a.block;
  auto* const units = reinterpret_cast<float*>(a.panel + 3 * digit_bytes);
  alignas(64) float factors[kMostBlock] = {};
  for (int64_t c = 0; c < a.block; c += 16) {
    __m512 largest = _mm512_setzero_ps();
    for (int64_t i = 0; i < a.taps * a.channels; ++i) {
      largest = _mm512_max_ps(largest, _mm512_abs_ps(_mm512_loadu_ps(a.weight + i * a.block + c)));
    }
    alignas(64) float found[16];
    _mm512_store_ps(found, largest);
    for (int64_t lane = 0; lane < 16; ++lane) {
      units[c + lane] = unit_of(found[lane]);
      factors[c + lane] = 1 / units[c + lane];
    }
  }
  // The digits of 16 integers, as bytes.
  const auto digits_of = [&](const float* from, int64_t c, __m128i(&digit)[3]) TANDEM_INLINE {
    const __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(from), _mm512_load_ps(factors + c)));
    const __m512i above = _mm512_srai_epi32(_mm512_add_epi32(q, _mm512_set1_epi32(128)), 8);
    digit[0] = _mm512_cvtepi32_epi8(q);
    digit[1] = _mm512_cvtepi32_epi8(above);
    digit[2] = _mm512_cvtepi32_epi8(_mm512_srai_epi32(_mm512_add_epi32(above, _mm512_set1_epi32(128)), 8));
  };
  for (int64_t tap = 0; tap < a.taps; ++tap) {
    for (int64_t first = 0; first < a.channels; first += 4) {
      const float* const rows = a.weight + (tap * a.channels + first) * a.block;
      uint8_t* const to = a.panel + tap * tap_bytes + first * a.block;
      for (int64_t c = 0; c < a.block; c += 32) {
        __m256i bytes[3][4] = {};
        for (int64_t i = 0; i < 4 && first + i < a.channels; ++i) {
          __m128i low[3], high[3] = {};
          digits_of(rows + i * a.block + c, c, low);
          if (a.block - c >= 32) digits_of(rows + i * a.block + c + 16, c + 16, high);
          for (int k = 0; k < 3; ++k) bytes[k][i] = _mm256_set_m128i(high[k], low[k]);
        }
        for (int k = 0; k < 3; ++k) store_quads(bytes[k], a.block - c, to + k * digit_bytes + 4 * c);
      }
    }
  }
  for (int k = 0; k < 3; ++k) {
    std::memset(a.panel + k * digit_bytes + a.taps * tap_bytes, 0,
                static_cast<size_t>(digit_bytes - a.taps * tap_bytes));
  }
}

// What the tile registers hold: 16 rows of 64 bytes each.
struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

TANDEM_TILES inline void use_tiles() {
  const TileShapes shapes;
  _tile_loadconfig(&shapes);
}
TANDEM_TILES inline void release_tiles() { _tile_release(); }

// sum[32 pixels, 32 outputs] = counts * panel. kRows, kColumns: tiles of pixels and of outputs, 1 or 2.
template <int kRows, int kColumns>
TANDEM_TILES inline void multiply_tiles(const uint8_t* counts, int64_t row_bytes, const uint8_t* panel, int64_t block,
                                        int64_t depth, int32_t* sum) {
  const int64_t panel_row = 4 * block;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t at = 0; at < depth; at += kMatrixBytes, panel += kMatrixBytes / 4 * panel_row) {
    _tile_loadd(4, counts + at, row_bytes);
    _tile_loadd(6, panel, panel_row);
    _tile_dpbusd(0, 4, 6);
    if constexpr (kColumns == 2) {
      _tile_loadd(7, panel + 64, panel_row);
      _tile_dpbusd(1, 4, 7);
    }
    if constexpr (kRows == 2) {
      _tile_loadd(5, counts + 16 * row_bytes + at, row_bytes);
      _tile_dpbusd(2, 5, 6);
      if constexpr (kColumns == 2) _tile_dpbusd(3, 5, 7);
    }
  }
  constexpr int64_t kSumRow = kMatrixRows * static_cast<int64_t>(sizeof(int32_t));
  _tile_stored(0, sum, kSumRow);
  if constexpr (kColumns == 2) _tile_stored(1, sum + 16, kSumRow);
  if constexpr (kRows == 2) _tile_stored(2, sum + 16 * kMatrixRows, kSumRow);
  if constexpr (kRows == 2 && kColumns == 2) _tile_stored(3, sum + 16 * kMatrixRows + 16, kSumRow);
}

TANDEM_HOST void copy_bytes(uint8_t* to, const uint8_t* from, int64_t n) {
  for (; n >= 64; n -= 64, to += 64, from += 64) _mm512_storeu_si512(to, _mm512_loadu_si512(from));
  const __mmask64 rest = (__mmask64{1} << n) - 1;
  _mm512_mask_storeu_epi8(to, rest, _mm512_maskz_loadu_epi8(rest, from));
}
TANDEM_HOST void clear_bytes(uint8_t* to, int64_t n) {
  for (; n >= 64; n -= 64, to += 64) _mm512_storeu_si512(to, _mm512_setzero_si512());
  _mm512_mask_storeu_epi8(to, (__mmask64{1} << n) - 1, _mm512_setzero_si512());
}

inline void fill_matrix_rows(const MatrixRowsArgs& a) {
  const ConvGeometry& g = *a.geometry;
  const int64_t tap_bytes = a.sizes.group_counts, pixel_bytes = g.groups * tap_bytes;
  const int64_t past = a.sizes.depth - g.taps() * tap_bytes;
  const bool side_by_side = g.groups == 1 && g.dilation_w == 1;
  int64_t w = a.row_begin % g.out_width, h = a.row_begin / g.out_width % g.out_height;
  int64_t n = a.row_begin / (g.out_width * g.out_height);
  for (int64_t row = a.row_begin; row < a.row_end; ++row) {
    uint8_t* to = a.rows + (row - a.row_begin) * a.sizes.row_bytes();
    const int64_t top = h * g.stride_h - g.padding_h, left = w * g.stride_w - g.padding_w;
    const bool inside = left >= 0 && left + (g.kernel_w - 1) * g.dilation_w < g.width;
    for (int64_t kh = 0; kh < g.kernel_h; ++kh) {
      const int64_t y = top + kh * g.dilation_h;
      const uint8_t* const line = a.counts + ((n * g.height + y) * g.width + left) * pixel_bytes + a.group * tap_bytes;
      if (y < 0 || y >= g.height) {
        clear_bytes(to, g.kernel_w * tap_bytes);
        to += g.kernel_w * tap_bytes;
      } else if (inside && side_by_side) {
        copy_bytes(to, line, g.kernel_w * tap_bytes);
        to += g.kernel_w * tap_bytes;
      } else {
        for (int64_t kw = 0; kw < g.kernel_w; ++kw, to += tap_bytes) {
          const int64_t x = left + kw * g.dilation_w;
          if (x < 0 || x >= g.width) {
            clear_bytes(to, tap_bytes);
          } else {
            copy_bytes(to, line + kw * g.dilation_w * pixel_bytes, tap_bytes);
          }
        }
      }
    }
    clear_bytes(to, past);
    if (++w < g.out_width) continue;
    w = 0;
    if (++h < g.out_height) continue;
    h = 0;
    ++n;
  }
}

template <class E>
void matrix_tile(const MatrixTileArgs<E>& m) {
  constexpr int64_t kDigits = kDigitsOf8<E>;
  constexpr int64_t kSums = kMatrixRows * kMatrixRows;
  const CountTileArgs<E>& a = m.tile;
  const int64_t digit_bytes = m.sizes.digit_bytes(a.block);
  const auto* const units = reinterpret_cast<const float*>(m.panel + kDigits * digit_bytes);
  auto* const sum = static_cast<int32_t*>(a.scratch);  // [kDigits, 32, 32]
  use_tiles();
  for (int64_t first = a.row_begin; first < a.row_end; first += kMatrixRows) {
    const int64_t rows = a.row_end - first < kMatrixRows ? a.row_end - first : kMatrixRows;
    const uint8_t* const inputs = m.rows + (first - a.row_begin) * m.sizes.row_bytes();
    for (int64_t c = 0; c < a.valid; c += kMatrixRows) {
      const bool wide = a.valid - c > 16, tall = rows > 16;
      for (int64_t digit = 0; digit < kDigits; ++digit) {
        const auto multiply = wide   ? tall ? multiply_tiles<2, 2> : multiply_tiles<1, 2>
                              : tall ? multiply_tiles<2, 1>
                                     : multiply_tiles<1, 1>;
        multiply(inputs, m.sizes.row_bytes(), m.panel + digit * digit_bytes + 4 * c, a.block, m.sizes.depth,
                 sum + digit * kSums);
      }
      const int64_t outputs = a.valid - c < kMatrixRows ? a.valid - c : kMatrixRows;
      write_sums<E>(a, first, rows, outputs, sum, kMatrixRows, kSums, c, units);
    }
  }
  release_tiles();
}

constexpr FillMatrixRows* kFillMatrixRows = fill_matrix_rows;
template <class E>
constexpr auto kFillMatrixPanel = fill_matrix_panel<E>;
template <class E>
constexpr auto kMatrixTile = matrix_tile<E>;

#else

constexpr FillMatrixRows* kFillMatrixRows = nullptr;
template <class E>
constexpr void (*kFillMatrixPanel)(const MatrixPanelArgs<E>&) = nullptr;
template <class E>
constexpr void (*kMatrixTile)(const MatrixTileArgs<E>&) = nullptr;

#endif

}  // namespace tandem::TANDEM_ISA
