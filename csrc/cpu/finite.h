// Whether weights can be used: numbers that are finite, told by their bits, and 16-bit integers that two 8-bit digits
// hold. In loops that compilers make vectors of.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace tandem {

// The largest 16-bit weight: 256 * 127 + 127, of digits from -128 to 127.
constexpr int32_t kLargest16 = 32639;

// All ones where x is an infinity or NaN, or a 16-bit weight that is too large; else zero.
template <class T>
auto odd_bits(T x) {
  if constexpr (std::is_same_v<T, float>) {
    constexpr uint32_t kExponent = 0x7f800000;
    uint32_t word;
    std::memcpy(&word, &x, sizeof(word));
    return (word & kExponent) == kExponent ? ~uint32_t{0} : uint32_t{0};
  } else if constexpr (std::is_same_v<T, double>) {
    constexpr uint64_t kExponent = 0x7ff0000000000000;
    uint64_t word;
    std::memcpy(&word, &x, sizeof(word));
    return (word & kExponent) == kExponent ? ~uint64_t{0} : uint64_t{0};
  } else if constexpr (std::is_same_v<T, int16_t>) {
    const auto risen = static_cast<uint16_t>(x + kLargest16);  // from -kLargest16 up: at most twice as much
    return static_cast<uint16_t>(risen > 2 * kLargest16 ? 0xFFFF : 0);
  } else {
    static_assert(std::is_same_v<T, int8_t>);
    return uint8_t{0};
  }
}

template <class T>
bool all_finite(const T* from, int64_t n, int64_t stride = 1) {
  decltype(odd_bits(T{})) odd = 0;
  if (stride == 1) {
    for (int64_t i = 0; i < n; ++i) odd |= odd_bits(from[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) odd |= odd_bits(from[i * stride]);
  }
  return odd == 0;
}

}  // namespace tandem
