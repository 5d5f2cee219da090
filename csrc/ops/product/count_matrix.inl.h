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

// sum[pixels, outputs] += counts * panel for 32 pixels and 32 outputs, of the bytes from..to-1 of a pixel's inputs.
// begins: sum is 0, whatever it holds. rows: the inputs of every 16th pixel; panel: of byte `from`. kRows, kColumns:
// tiles of pixels and of outputs, 1 or 2.
template <int kRows, int kColumns>
TANDEM_TILES inline void multiply_tiles(const uint8_t* const (&rows)[2], const InputPieces& pieces, int64_t from,
                                        int64_t to, const uint8_t* panel, int64_t part_bytes, bool begins,
                                        int32_t* sum) {
  constexpr int64_t kSumRow = kMatrixOutputs * static_cast<int64_t>(sizeof(int32_t));
  int32_t* const lower = sum + 16 * kMatrixOutputs;
  if (begins) {
    _tile_zero(0);
    if constexpr (kColumns == 2) _tile_zero(1);
    if constexpr (kRows == 2) _tile_zero(2);
    if constexpr (kRows == 2 && kColumns == 2) _tile_zero(3);
  } else {
    _tile_loadd(0, sum, kSumRow);
    if constexpr (kColumns == 2) _tile_loadd(1, sum + 16, kSumRow);
    if constexpr (kRows == 2) _tile_loadd(2, lower, kSumRow);
    if constexpr (kRows == 2 && kColumns == 2) _tile_loadd(3, lower + 16, kSumRow);
  }
  for (int64_t piece = from / pieces.bytes, at = from % pieces.bytes; from < to; ++piece, at = 0) {
    const int64_t left = pieces.bytes - at, end = at + (left < to - from ? left : to - from);
    from += end - at;
    const uint8_t* const upper_row = rows[0] + pieces.at[piece];
    const uint8_t* const lower_row = rows[1] + pieces.at[piece];
    for (; at < end; at += kMatrixBytes, panel += kMatrixBytes / 4 * kQuadBytes) {
      _tile_loadd(4, upper_row + at, pieces.stride);
      _tile_loadd(6, panel, kQuadBytes);
      _tile_dpbusd(0, 4, 6);
      if constexpr (kColumns == 2) {
        _tile_loadd(7, panel + part_bytes, kQuadBytes);
        _tile_dpbusd(1, 4, 7);
      }
      if constexpr (kRows == 2) {
        _tile_loadd(5, lower_row + at, pieces.stride);
        _tile_dpbusd(2, 5, 6);
        if constexpr (kColumns == 2) _tile_dpbusd(3, 5, 7);
      }
    }
  }
  _tile_stored(0, sum, kSumRow);
  if constexpr (kColumns == 2) _tile_stored(1, sum + 16, kSumRow);
  if constexpr (kRows == 2) _tile_stored(2, lower, kSumRow);
  if constexpr (kRows == 2 && kColumns == 2) _tile_stored(3, lower + 16, kSumRow);
}

// Some bytes of the inputs are multiplied for all output pixels before those behind them are, so that their weights
// stay in the L1 cache.
template <class E>
void matrix_tile(const CountTileArgs<E>& a) {
  constexpr int64_t kDigits = kDigitsOf8<E>, kSums = kMatrixRows * kMatrixOutputs;
  // Equal shares of the depth, of kMatrixDepth bytes at most.
  const int64_t depth = a.sizes.depth / kMatrixBytes, most = kMatrixDepth / kMatrixBytes / kDigits;
  const int64_t shares = (depth + most - 1) / most, share = (depth + shares - 1) / shares * kMatrixBytes;
  const int64_t digit_bytes = a.sizes.digit_bytes(a.block), part_bytes = a.sizes.part_bytes();
  const auto* const units = reinterpret_cast<const float*>(a.panel + kDigits * digit_bytes);
  auto* const sums = static_cast<int32_t*>(a.scratch);  // [pixels / 32, kDigits, 32, 64]
  const int64_t of_sum = a.paired_outputs ? 2 : 1, outputs = (a.valid + of_sum - 1) / of_sum;
  const auto inputs_of = [&](int64_t pixel) {
    return a.rows + pixel / a.pieces.band * a.pieces.band_bytes + pixel % a.pieces.band * a.pieces.stride;
  };
  use_tiles();
  for (int64_t c = 0; c < outputs; c += kMatrixOutputs) {
    const int64_t some = outputs - c < kMatrixOutputs ? outputs - c : kMatrixOutputs;
    for (int64_t from = 0; from < a.sizes.depth; from += share) {
      const int64_t to = from + share < a.sizes.depth ? from + share : a.sizes.depth;
      for (int64_t first = 0; first < a.pixels; first += kMatrixRows) {
        const int64_t rows = a.pixels - first < kMatrixRows ? a.pixels - first : kMatrixRows;
        const bool tall = rows > 16;
        const uint8_t* const inputs[2] = {inputs_of(first), inputs_of(tall ? first + 16 : first)};
        int32_t* const sum = sums + first / kMatrixRows * kDigits * kSums;
        for (int64_t part = 0; part < some; part += 32) {
          const bool wide = some - part > 16;
          const auto multiply = wide   ? tall ? multiply_tiles<2, 2> : multiply_tiles<1, 2>
                                : tall ? multiply_tiles<2, 1>
                                       : multiply_tiles<1, 1>;
          for (int64_t digit = 0; digit < kDigits; ++digit) {
            const uint8_t* const panel =
                a.panel + digit * digit_bytes + (c + part) / kPartOutputs * part_bytes + from * kPartOutputs;
            multiply(inputs, a.pieces, from, to, panel, part_bytes, from == 0, sum + digit * kSums + part);
          }
        }
        if (to < a.sizes.depth) continue;
        const int64_t channel = c * of_sum, left = a.valid - channel, full = kMatrixOutputs * of_sum;
        const TileSums of_tile = {sum, nullptr, kMatrixOutputs, kSums, 0};
        write_sums<E>(a, first, rows, left < full ? left : full, of_tile, channel, units);
      }
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
