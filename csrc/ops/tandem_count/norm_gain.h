// What batch norm multiplies a channel by, on the host and on the device. Torch-free.
#pragma once

#include <cmath>

#include "core/host_device.h"

namespace tandem {

// Of what is normalised, which stands for `unit` times itself, or for itself: unit / sqrt(unit^2 * var + eps).
template <class T>
TANDEM_HOST_DEVICE T norm_gain(T var, const T* unit, T eps) {
  return unit == nullptr ? T(1) / std::sqrt(var + eps) : *unit / std::sqrt(var * *unit * *unit + eps);
}

}  // namespace tandem
