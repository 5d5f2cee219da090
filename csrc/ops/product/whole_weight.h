// Float weights of a CUDA device as whole numbers, whose sums are exact in any order and on any engine: 32 bits, times
// a unit that all weights of an output channel share. Torch-free, host and device.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "core/host_device.h"
#include "core/narrow_float.h"

namespace tandem {

// The magnitude of a weight as an integer that grows with it: infinities above everything finite, NaN above infinities.
TANDEM_HOST_DEVICE uint32_t magnitude_of(float weight) {
  uint32_t word;
  memcpy(&word, &weight, sizeof(word));
  return word & 0x7fffffffu;
}

// The unit of a channel, for the largest of its weights' magnitudes: a power of two of which that weight has at least
// 2^30, and less than 2^31; at least 2^-126, the smallest with a reciprocal. NaN where that is infinite or a NaN.
TANDEM_HOST_DEVICE float weight_unit(uint32_t largest) {
  if (largest >= 0x7f800000u) return std::numeric_limits<float>::quiet_NaN();
  const uint32_t exponent = largest >> 23;
  return float_of_word((exponent > 31 ? exponent - 30 : 1) << 23);
}

// 1 / unit, exactly; 0 for NaN.
TANDEM_HOST_DEVICE float units_of_one(float unit) {
  uint32_t word;
  memcpy(&word, &unit, sizeof(word));
  return word >= 0x7f800000u ? 0.0f : float_of_word((254u << 23) - word);
}

// A weight in units, rounded to nearest, ties to even. per_one: units_of_one. Where that is 0, the unit is NaN, and so
// are all sums of the channel, whatever stands for its weights.
TANDEM_HOST_DEVICE int32_t whole_weight(float weight, float per_one) {
  return per_one > 0 ? static_cast<int32_t>(rintf(weight * per_one)) : 0;
}

// A weight as an element of packed weights. per_one: of a float weight, as above.
template <class W>
TANDEM_HOST_DEVICE auto as_packed(W weight, float per_one) {
  if constexpr (std::is_integral_v<W> || std::is_same_v<W, double>) {
    return weight;
  } else {
    return whole_weight(weight, per_one);
  }
}

// What a sum of packed weights stands for. Sums of 32 bits have no unit, nor have sums of float64.
TANDEM_HOST_DEVICE float in_units(int32_t sum, float /*unit*/) { return static_cast<float>(sum); }
TANDEM_HOST_DEVICE float in_units(long long sum, float unit) { return static_cast<float>(sum) * unit; }
TANDEM_HOST_DEVICE double in_units(double sum, float /*unit*/) { return sum; }

}  // namespace tandem
