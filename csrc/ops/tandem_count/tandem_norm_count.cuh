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
  const T* unit;                    // or null
  T* sums;                          // scratch: [ceil(rows / kNormRows), 2, channels]
  T *out_gamma, *out_beta;          // sums over the rows
  const T *grad_gamma, *grad_beta;  // the same, of all processes
  const T* all_rows;                // the number of rows of all processes, or null
  T* grad_product;
  int64_t rows, channels;
  T eps, threshold, upper;
};

// Launches on the current device, two and one; each returns what cudaGetLastError says of them.
template <class T>
cudaError_t launch_norm_sums(const CudaNormGradientArgs<T>& args, cudaStream_t stream);
template <class T>
cudaError_t launch_norm_gradient(const CudaNormGradientArgs<T>& args, cudaStream_t stream);

}  // namespace tandem
