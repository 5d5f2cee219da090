// Weights to integers, in loops that compilers make vectors of.
#pragma once

#include <algorithm>
#include <cstring>
#include <limits>

#include "core/host_device.h"
#include "ops/quantise_weight/cpu_kernels.h"
#include "ops/quantise_weight/nearest.h"

namespace tandem::TANDEM_ISA {

// The largest magnitude; an infinity or a NaN where there is one. Without their signs, the bits of floats are ordered
// as the floats are, and those of infinities and NaNs come last.
TANDEM_HOST float largest_magnitude(const float* from, int64_t n) {
  int32_t most = 0;
  for (int64_t i = 0; i < n; ++i) {
    int32_t bits;
    std::memcpy(&bits, from + i, sizeof(bits));
    most = std::max(most, bits & 0x7fffffff);
  }
  float magnitude;
  std::memcpy(&magnitude, &most, sizeof(magnitude));
  return magnitude;
}

template <class Q>
float quantise_channel(const float* from, int64_t n, float largest, Q* to) {
  const float most = largest_magnitude(from, n), scale = most / largest;
  if (!(most <= std::numeric_limits<float>::max())) return std::numeric_limits<float>::quiet_NaN();
  if (scale == 0) {  // zeros, or so small that no scale is
    std::fill_n(to, n, Q{0});
    return 1;
  }
  for (int64_t i = 0; i < n; ++i) to[i] = nearest_integer<Q>(from[i], scale, largest);
  return scale;
}

}  // namespace tandem::TANDEM_ISA
