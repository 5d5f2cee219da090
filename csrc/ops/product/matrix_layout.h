// Weights as matrix tiles (AMX) take them. Torch-free.
#pragma once

#include <cstdint>
#include <type_traits>

#include "core/conv_geometry.h"

namespace tandem {

// Of matrix tiles: output pixels and bytes of a pair of tiles.
constexpr int64_t kMatrixRows = 32;
constexpr int64_t kMatrixBytes = 64;

// 8-bit digits of packed weights. Floats have 24 bits, in units of a channel's own: a power of two by which its largest
// weight just fits.
template <class E>
constexpr int64_t kDigitsOf8 = std::is_same_v<E, float> ? 3 : static_cast<int64_t>(sizeof(E));

// The weights of a group and block as matrix tiles take them: for each of their digits [depth / 4, block, 4], with the
// taps' channels one after the other, as they stand in `counts`, and zeros behind them; then, of floats, the units
// [block].
struct MatrixSizes {
  int64_t group_counts;  // bytes of a tap: the channels of a group, with zeros up to a multiple of 4
  int64_t depth;         // bytes of all taps, with zeros up to a multiple of kMatrixBytes

  explicit MatrixSizes(const ConvGeometry& g)
      : group_counts((g.group_in() + 3) / 4 * 4),
        depth((g.taps() * group_counts + kMatrixBytes - 1) / kMatrixBytes * kMatrixBytes) {}
  // Rows of a tile stand in lines of memory that do not evict each other from the cache.
  int64_t row_bytes() const { return depth + kMatrixBytes; }
  int64_t digit_bytes(int64_t block) const { return depth * block; }
  template <class E>
  int64_t panel_bytes(int64_t block) const {
    const int64_t units = std::is_same_v<E, float> ? block * static_cast<int64_t>(sizeof(float)) : 0;
    return kDigitsOf8<E> * digit_bytes(block) + units;
  }
};

// Whether products of this geometry are worth matrix tiles: few channels leave most of their bytes empty.
inline bool fills_matrices(const ConvGeometry& g) { return g.group_in() >= 8; }

}  // namespace tandem
