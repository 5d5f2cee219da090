// Products of spike counts with weights on matrix tiles (AMX): 16 pixels of 64 bytes times 64 bytes of 16 outputs in
// one instruction. Two tiles of pixels and two of outputs share their operands. Floats become integers of 24 bits,
// three digits of 8: their sums are exact, and so do not depend on an order.
#pragma once

#include <cmath>

#include "ops/product/count_tile.inl.h"

namespace tandem::TANDEM_ISA {

#if defined(__AVX512VBMI2__) && defined(__linux__)

#define TANDEM_TILES __attribute__((target("amx-tile,amx-int8")))

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

inline void fill_float_panel(const PanelArgs<float>& a) {
  auto* const units = reinterpret_cast<float*>(a.panel + 3 * a.sizes.digit_bytes(a.block));
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
  fill_digits<3>(a, [&](int64_t row, int64_t output) TANDEM_INLINE {
    const __m512 weights = _mm512_loadu_ps(a.weight + row * a.block + output);
    return reinterpret_cast<Quads>(_mm512_cvtps_epi32(_mm512_mul_ps(weights, _mm512_load_ps(factors + output))));
  });
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
TANDEM_TILES inline void multiply_tiles(const uint8_t* counts, const PanelSizes& sizes, const uint8_t* panel,
                                        int32_t* sum) {
  const int64_t row_bytes = sizes.row_bytes(), part_bytes = sizes.part_bytes();
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t at = 0; at < sizes.depth; at += kMatrixBytes, panel += kMatrixBytes / 4 * kQuadBytes) {
    _tile_loadd(4, counts + at, row_bytes);
    _tile_loadd(6, panel, kQuadBytes);
    _tile_dpbusd(0, 4, 6);
    if constexpr (kColumns == 2) {
      _tile_loadd(7, panel + part_bytes, kQuadBytes);
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

template <class E>
void matrix_tile(const CountTileArgs<E>& a) {
  constexpr int64_t kDigits = kDigitsOf8<E>;
  constexpr int64_t kSums = kMatrixRows * kMatrixRows;
  const int64_t digit_bytes = a.sizes.digit_bytes(a.block);
  const auto* const units = reinterpret_cast<const float*>(a.panel + kDigits * digit_bytes);
  auto* const sum = static_cast<int32_t*>(a.scratch);  // [kDigits, 32, 32]
  use_tiles();
  for (int64_t first = 0; first < a.pixels; first += kMatrixRows) {
    const int64_t rows = a.pixels - first < kMatrixRows ? a.pixels - first : kMatrixRows;
    const uint8_t* const inputs = a.rows + first * a.sizes.row_bytes();
    const int64_t of_sum = a.paired_outputs ? 2 : 1, sums = (a.valid + of_sum - 1) / of_sum;
    for (int64_t c = 0; c < sums; c += kMatrixRows) {
      const bool wide = sums - c > 16, tall = rows > 16;
      for (int64_t digit = 0; digit < kDigits; ++digit) {
        const auto multiply = wide   ? tall ? multiply_tiles<2, 2> : multiply_tiles<1, 2>
                              : tall ? multiply_tiles<2, 1>
                                     : multiply_tiles<1, 1>;
        multiply(inputs, a.sizes, a.panel + digit * digit_bytes + c / kPartOutputs * a.sizes.part_bytes(),
                 sum + digit * kSums);
      }
      const int64_t channel = c * of_sum, left = a.valid - channel, most = kMatrixRows * of_sum;
      write_sums<E>(a, first, rows, left < most ? left : most, {sum, nullptr, kMatrixRows, kSums, 0}, channel, units);
    }
  }
  release_tiles();
}

constexpr auto kFillFloatPanel = fill_float_panel;
template <class E>
constexpr auto kMatrixTile = matrix_tile<E>;

#else

constexpr FillPanel<float>* kFillFloatPanel = nullptr;
template <class E>
constexpr CountTile<E>* kMatrixTile = nullptr;

#endif

}  // namespace tandem::TANDEM_ISA
