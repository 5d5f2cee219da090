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
// channels one after the other, as they stand in `counts`, and zeros behind them; of floats, the units [block]. In its
// last line, whatever its size, is what it holds (PanelHolds).
struct PanelSizes {
  int64_t group_counts;  // bytes of a tap: the channels of a group, with zeros up to a multiple of 4
  int64_t used;          // bytes of all taps
  int64_t depth;         // the same, with zeros up to a multiple of kMatrixBytes

  PanelSizes() = default;
  explicit PanelSizes(const ConvGeometry& g, bool paired_inputs = false)
      : group_counts((g.group_in() / (paired_inputs ? 2 : 1) + 3) / 4 * 4),
        used(g.taps() * group_counts),
        depth((used + kMatrixBytes - 1) / kMatrixBytes * kMatrixBytes) {}
  // Rows stand in lines of memory that do not evict each other from the cache.
  int64_t row_bytes() const { return depth + kMatrixBytes; }
  int64_t part_bytes() const { return depth * kPartOutputs; }
  int64_t digit_bytes(int64_t block) const { return depth * block; }
  template <class E>
  int64_t panel_bytes(int64_t block) const {
    const int64_t units = std::is_same_v<E, float> ? block * static_cast<int64_t>(sizeof(float)) : 0;
    return kDigitsOf8<E> * digit_bytes(block) + units + kLineBytes;
  }
};

// What a panel holds. Signed values have two neurons, for v and -v. Where the weights of all inputs, or outputs, 2i + 1
// are those of inputs, or outputs, 2i with the other sign, panels of integers have the latter alone, in a part of their
// room: inputs in all panels, outputs block by block. 0 stands for false.
struct PanelHolds {
  uint8_t weights;  // and not what was in memory
  uint8_t paired_inputs, paired_outputs;
};

// Whether weights of this geometry are packed as panels, too: few channels leave most of their bytes empty.
inline bool fills_panels(const ConvGeometry& g) { return g.group_in() >= 8; }

}  // namespace tandem
