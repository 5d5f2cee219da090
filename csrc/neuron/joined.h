// What another branch of a sum brings to the neurons beside the product. Torch-free, host and device.
#pragma once

#include <cstdint>

#include "core/bit_planes.h"
#include "core/host_device.h"

namespace tandem {

// Currents of every step, or spikes, each of which brings its channel's amplitude.
template <class T>
struct Joined {
  const T* current;     // [time_steps, neurons] or null
  const uint8_t* bits;  // [planes, neurons] or null
  int64_t stride;       // elements between steps, or bytes between planes
  const T* amplitude;   // of spikes [O]; null: 1

  TANDEM_HOST_DEVICE explicit operator bool() const { return current != nullptr || bits != nullptr; }
  // The neurons from the given one on, from a plane on.
  TANDEM_HOST_DEVICE Joined at(int64_t plane, int64_t neuron) const {
    Joined moved = *this;
    if (current) moved.current += plane * kStepsPerPlane * stride + neuron;
    if (bits) moved.bits += plane * stride + neuron;
    return moved;
  }
};

}  // namespace tandem
