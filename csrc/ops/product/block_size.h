// Rows of packed weights. Torch-free.
#pragma once

#include <cstdint>

namespace tandem {

// Output channels in a row of packed weights: rows of 64, 128 or 256 bytes, whichever fits `channels` best.
template <class E>
constexpr int64_t block_size(int64_t channels) {
  constexpr int64_t unit = 64 / static_cast<int64_t>(sizeof(E));
  return channels <= unit ? unit : channels <= 2 * unit ? 2 * unit : 4 * unit;
}

}  // namespace tandem
