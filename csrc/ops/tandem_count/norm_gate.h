// The gate of the tandem gradient behind batch norm: its only definition, for scalars and for SIMD vectors, on the host
// and on the device. Whether a gate is open may depend on every rounding.
#pragma once

#include "core/host_device.h"

namespace tandem {

// gain: see norm_gain.h
template <class V>
TANDEM_HOST_DEVICE V normalised(V x, V mean, V gain) {
  return (x - mean) * gain;
}

// grad / threshold where 0 < v <= upper for the pre-activation v = gamma * normal + beta, else 0.
template <class V>
TANDEM_HOST_DEVICE V gated_gradient(V grad, V normal, V gamma, V beta, V threshold, V upper) {
  const V v = gamma * normal + beta;
  return ((v > V{}) & (v <= upper)) ? grad / threshold : V{};
}

// Rows of activations whose sums are added up before they meet others': the order of additions, which no number of
// threads changes.
constexpr int kNormRows = 256;

}  // namespace tandem
