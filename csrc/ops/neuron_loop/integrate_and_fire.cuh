// The neuron loop on the device: plain pointers and a stream. Torch-free.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "neuron/models.h"
#include "neuron/state.h"

namespace tandem {

template <class T>
struct CudaIntegrateAndFireArgs {
  const T* current;        // [N * spatial, C], series [T, N * spatial, C]
  const T* scale;          // [C] of the current, or null
  const T* bias;           // [C] per time step, or null
  State<const T> initial;  // [kStates, N * spatial, C] or null: the model's start
  uint8_t* bits;           // [P, N * spatial, C]
  T* sum;                  // [N * spatial, C] or null
  State<T> state;          // [kStates, N * spatial, C] or null
  int64_t neurons;         // N * spatial * C
  int64_t channels;        // C
  int64_t time_steps;      // T
  CurrentMode mode;
  Neuron neuron;
};

// Launches on the current device; returns what cudaGetLastError says of the launch.
cudaError_t launch_integrate_and_fire(const CudaIntegrateAndFireArgs<float>& args, cudaStream_t stream);
cudaError_t launch_integrate_and_fire(const CudaIntegrateAndFireArgs<double>& args, cudaStream_t stream);

}  // namespace tandem
