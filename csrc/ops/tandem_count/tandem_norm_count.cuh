// The gradient of neurons behind batch norm on the device: plain pointers and a stream. Torch-free.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace tandem {

// T: float or double. Activations are rows [rows, channels].
template <class T>
struct CudaNormGradientArgs {
  const T* grad;     // of the spike counts
  const T* product;  // what batch norm normalised
  const T *mean, *var, *gamma, *beta;
  const T* unit;  // or null
  T *grad_product, *grad_gamma, *grad_beta;
  T* sums;  // scratch: [ceil(rows / kNormRows), 2, channels]
  int64_t rows, channels;
  T eps, threshold, upper;
};

// Three launches on the current device; returns what cudaGetLastError says of them.
template <class T>
cudaError_t launch_tandem_norm_count_backward(const CudaNormGradientArgs<T>& args, cudaStream_t stream);

}  // namespace tandem
