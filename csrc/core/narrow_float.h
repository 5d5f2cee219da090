// float16 and bfloat16 as they lie in memory, and their values in float32, which holds all of them. Torch-free, host
// and device.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/host_device.h"

namespace tandem {

TANDEM_HOST_DEVICE float float_of_word(uint32_t word) {
  float value;
  memcpy(&value, &word, sizeof(value));
  return value;
}

// IEEE 754's binary16: a sign, 5 bits of exponent, 10 of significand.
struct Float16 {
  uint16_t word;

  // Implicit, for it is exact, as int8_t's conversion to int16_t is.
  TANDEM_HOST_DEVICE operator float() const {
    const uint32_t sign = static_cast<uint32_t>(word & 0x8000) << 16, rest = word & 0x7fff;
    if (rest < 0x400) {  // subnormal: a multiple of 2^-24
      const float magnitude = static_cast<float>(rest) * 0x1p-24f;
      return sign != 0 ? -magnitude : magnitude;
    }
    // An infinity or a NaN has all bits of the exponent set; other exponents are 127 - 15 more in float32.
    const uint32_t bits = rest >= 0x7c00 ? rest << 13 | 0x7f800000 : (rest << 13) + (112u << 23);
    return float_of_word(sign | bits);
  }
};

// The upper half of a float32.
struct BFloat16 {
  uint16_t word;

  // Implicit, for it is exact, as int8_t's conversion to int16_t is.
  TANDEM_HOST_DEVICE operator float() const { return float_of_word(static_cast<uint32_t>(word) << 16); }
};

}  // namespace tandem
