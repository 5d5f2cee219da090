// The launcher of ordered_product's kernel. Torch-free.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/conv_geometry.h"

namespace tandem {

// E: packed weights, int8_t or int16_t.
template <class E>
struct CudaOrderedArgs {
  ConvGeometry geometry;
  const float* input;  // [pixels_in, in_channels]
  const E* weight;     // [groups, blocks, features, block]
  int64_t block, blocks;
  float* out;  // [pixels_out, out_channels]
};

template <class E>
cudaError_t launch_ordered_product(const CudaOrderedArgs<E>& args, cudaStream_t stream);

}  // namespace tandem
