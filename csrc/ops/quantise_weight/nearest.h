// The nearest integer to a weight: the only definition, on the host and on the device. All operations are IEEE's, so
// that every machine rounds alike. Torch-free.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/host_device.h"

namespace tandem {

// |weight| / scale is at most about `largest`, and that far below 2^22.
template <class Q>
TANDEM_HOST_DEVICE Q nearest_integer(float weight, float scale, float largest) {
  // Added and taken away, this leaves the nearest whole number, the even one of two; std::nearbyint is a call without
  // SSE 4.1.
  constexpr float kRounds = 12582912;  // 1.5 * 2^23
  const float whole = (weight / scale + kRounds) - kRounds;
  return static_cast<Q>(static_cast<int32_t>(std::clamp(whole, -largest, largest)));
}

}  // namespace tandem
