// Weights as instructions take them that multiply bytes. Torch-free.
#pragma once

#include <cstdint>
#include <type_traits>

#include "core/conv_geometry.h"

namespace tandem {

// Of matrix tiles: output pixels and bytes of a pair of tiles.
constexpr int64_t kMatrixRows = 32;
constexpr int64_t kMatrixBytes = 64;

// Outputs that stand side by side in a panel, four bytes of each: a line of the cache.
constexpr int64_t kPartOutputs = 16;
constexpr int64_t kQuadBytes = 4 * kPartOutputs;
constexpr int64_t kLineBytes = 64;

// 8-bit digits of packed weights. Floats have 24 bits, in units of a channel's own: a power of two by which its largest
// weight just fits.
template <class E>
constexpr int64_t kDigitsOf8 = std::is_same_v<E, float> ? 3 : static_cast<int64_t>(sizeof(E));

// The panel of a group and block of weights: for each of their digits [block / 16, depth / 4, 16, 4], with the taps'
// channels one after the other, as they stand in `counts`, and zeros behind them; then, of floats, the units [block].
//
// Neurons for v and -v share a sum: where the weights of all outputs 2i + 1 of a block are those of the outputs 2i with
// the other sign, a panel of integers has the outputs 2i alone, [block / 32, ...]. A byte behind the room for the
// digits tells how many outputs share a sum, 1 or 2.
struct PanelSizes {
  int64_t group_counts;  // bytes of a tap: the channels of a group, with zeros up to a multiple of 4
  int64_t used;          // bytes of all taps
  int64_t depth;         // the same, with zeros up to a multiple of kMatrixBytes

  PanelSizes() = default;
  explicit PanelSizes(const ConvGeometry& g)
      : group_counts((g.group_in() + 3) / 4 * 4),
        used(g.taps() * group_counts),
        depth((used + kMatrixBytes - 1) / kMatrixBytes * kMatrixBytes) {}
  // Rows stand in lines of memory that do not evict each other from the cache.
  int64_t row_bytes() const { return depth + kMatrixBytes; }
  int64_t part_bytes() const { return depth * kPartOutputs; }
  int64_t digit_bytes(int64_t block) const { return depth * block; }
  template <class E>
  int64_t panel_bytes(int64_t block) const {
    const int64_t units = block * static_cast<int64_t>(sizeof(float));
    return kDigitsOf8<E> * digit_bytes(block) + (std::is_same_v<E, float> ? units : kLineBytes);
  }
};

// Where a panel of integers tells how many outputs share a sum.
template <class E>
int64_t place_of_sharing(const PanelSizes& sizes, int64_t block) {
  return kDigitsOf8<E> * sizes.digit_bytes(block);
}

// Whether weights of this geometry are packed as panels, too: few channels leave most of their bytes empty.
inline bool fills_panels(const ConvGeometry& g) { return g.group_in() >= 8; }

}  // namespace tandem
