// Bit planes: spikes of 8 time steps in a byte. Torch-free, host and device.
#pragma once

#include <cstdint>

namespace tandem {

constexpr int64_t kStepsPerPlane = 8;

constexpr int64_t planes_for(int64_t time_steps) { return (time_steps + kStepsPerPlane - 1) / kStepsPerPlane; }

// Time steps that plane p holds.
constexpr int64_t steps_in_plane(int64_t plane, int64_t time_steps) {
  const int64_t left = time_steps - plane * kStepsPerPlane;
  return left < kStepsPerPlane ? left : kStepsPerPlane;
}

// The bits of the last plane that stand for no time step.
constexpr uint8_t bits_past(int64_t time_steps) {
  const int64_t used = time_steps % kStepsPerPlane;
  return static_cast<uint8_t>(used == 0 ? 0 : 0xff << used);
}

}  // namespace tandem
