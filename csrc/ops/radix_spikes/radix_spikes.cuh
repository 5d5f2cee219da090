// Radix spikes on the device: plain pointers and a stream. Torch-free.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace tandem {

template <class T>
struct CudaRadixSpikesArgs {
  const T* current;  // [N * spatial, C], summed over all time steps
  const T* scale;    // [C] of the current, or null
  const T* bias;     // [C], or null
  uint8_t* bits;     // [N * spatial, C]
  T* state;          // the potential that no spike stands for, [N * spatial, C], or null
  int64_t neurons;   // N * C * spatial
  int64_t channels;  // C
  int time_steps;    // 1 to 8
  T threshold;       // of the last time step; that of each step before is twice as large
  T start;           // what the potential starts from
};

// Launches on the current device; returns what cudaGetLastError says of the launch.
template <class T>
cudaError_t launch_radix_spikes(const CudaRadixSpikesArgs<T>& args, cudaStream_t stream);

}  // namespace tandem
