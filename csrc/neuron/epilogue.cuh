// The neuron loop on the device: the steps of one plane, for a thread's neuron, which stays in registers. Every kernel
// whose neurons fire ends in it.
#pragma once

#include "core/bit_planes.h"
#include "cuda/device.cuh"
#include "neuron/joined.h"
#include "neuron/models.h"
#include "neuron/state.h"

namespace tandem {

// Model: of Scalar<T>.
template <class T, class Model>
struct DeviceNeuron {
  T state[Model::kStates];
  T sum;  // of currents

  // The state before the first step: the one given, or where there is none the model's.
  __device__ __forceinline__ void start(const Model& model, const State<const T>& given, int64_t neuron) {
#pragma unroll
    for (int v = 0; v < Model::kStates; ++v) state[v] = given ? given(v, neuron) : model.start(v);
  }

  __device__ __forceinline__ void store(const State<T>& to, T* sums, int64_t neuron) const {
    if (sums) sums[neuron] = sum;
    if (!to) return;
#pragma unroll
    for (int v = 0; v < Model::kStates; ++v) to(v, neuron) = state[v];
  }
};

// x and what the other branch brings to a neuron of a channel at a step of a plane.
template <class T>
__device__ __forceinline__ T add_joined(const Joined<T>& joined, int64_t plane, int step, int64_t neuron,
                                        int64_t channel, T x) {
  if (joined.current) return x + joined.current[(plane * kStepsPerPlane + step) * joined.stride + neuron];
  if (!joined.bits || !(joined.bits[plane * joined.stride + neuron] >> step & 1)) return x;
  return x + (joined.amplitude ? joined.amplitude[channel] : T(1));
}

// The steps of one plane: returns their spikes. current(s): what step s brings, scale and bias included (current_of).
// kUnrolled: the most steps there are, where the currents of all of them are in registers; else 0.
template <int64_t kUnrolled, class T, class Model, class Current>
__device__ __forceinline__ uint8_t run_plane(const Model& model, int steps, const Current& current,
                                             DeviceNeuron<T, Model>& neuron) {
  unsigned word = 0;
  const auto step = [&](int s) {
    const T x = current(s);
    neuron.sum += x;
    word |= static_cast<unsigned>(model.step(neuron.state, x) >= model.threshold) << s;
  };
  if constexpr (kUnrolled > 0) {
#pragma unroll
    for (int s = 0; s < static_cast<int>(kUnrolled); ++s) {
      if (s >= steps) break;
      step(s);
    }
  } else {
    for (int s = 0; s < steps; ++s) step(s);
  }
  return static_cast<uint8_t>(word);
}

}  // namespace tandem
