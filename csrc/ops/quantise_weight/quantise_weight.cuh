// quantise_weight on the device: plain pointers and a stream. Torch-free.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace tandem {

// Q: int8_t or int16_t.
template <class Q>
struct QuantiseArgs {
  const float* weight;  // [channels, size]
  Q* integers;          // [channels, size]
  float* scale;         // [channels]
  int64_t channels, size;
  float largest;
};

// One launch on the current device; returns what cudaGetLastError says of it. A channel with a weight that is not
// finite gets zeros and the scale NaN.
template <class Q>
cudaError_t launch_quantise_weight(const QuantiseArgs<Q>& args, cudaStream_t stream);

}  // namespace tandem
