// The CPU kernels of the tandem gradient: plain pointers and sizes. Torch-free.
#pragma once

#include <cstdint>

#include "cpu/kernel_table.h"
#include "ops/tandem_count/norm_gate.h"

namespace tandem {

// The gradient of neurons behind batch norm; activations are rows [rows, channels].
template <class T>
struct NormGradientArgs {
  const T* grad;     // of the spike counts
  const T* product;  // what batch norm normalised
  const T *mean, *gain, *gamma, *beta;
  T* sums;  // [chunks, 2, channels]: of the gradient behind the gate, and of it times the normalised value
  const T *mean_grad, *mean_along;  // both over all rows
  T* out;
  int64_t rows, channels;
  T threshold, upper;
};

template <class T>
using TandemCountBackward = void(const T* grad, const T* pre_activation, int64_t begin, int64_t end, T threshold,
                                 T upper, T* out);
template <class T>
using NormSums = void(const NormGradientArgs<T>&, int64_t chunk);
template <class T>
using NormGradient = void(const NormGradientArgs<T>&, int64_t begin, int64_t end);

struct TandemCountKernels {
  // grad / threshold where 0 < pre_activation <= upper, else 0, for the elements begin..end-1; out may be grad.
  KernelOf<TandemCountBackward<float>, TandemCountBackward<double>> tandem_count_backward;
  // The sums of one chunk of kNormRows rows.
  KernelOf<NormSums<float>, NormSums<double>> norm_sums;
  // The gradient of the rows begin..end-1.
  KernelOf<NormGradient<float>, NormGradient<double>> norm_gradient;
};

TANDEM_KERNELS(TandemCountKernels)

}  // namespace tandem
