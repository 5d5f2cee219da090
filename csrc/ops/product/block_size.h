// Rows of packed weights. Torch-free.
#pragma once

#include <cstdint>
#include <type_traits>

namespace tandem {

// What packed weights of type E are summed in: integers in twice as many bits, numbers as they are.
template <class E>
using SumOf =
    std::conditional_t<std::is_same_v<E, int8_t>, int16_t, std::conditional_t<std::is_same_v<E, int16_t>, int32_t, E>>;

// Output channels in a row of packed weights: their sums take 64, 128 or 256 bytes, whichever fits `channels` best.
template <class E>
constexpr int64_t block_size(int64_t channels) {
  constexpr int64_t unit = 64 / static_cast<int64_t>(sizeof(SumOf<E>));
  return channels <= unit ? unit : channels <= 2 * unit ? 2 * unit : 4 * unit;
}

}  // namespace tandem
