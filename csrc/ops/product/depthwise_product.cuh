// Spiking and count products of groups with one input channel, on the device: plain pointers and a stream. Torch-free.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "ops/product/spiking_product.cuh"

namespace tandem {

// One input channel a group, and pixels and channels that 32 bits number.
bool fits_depthwise(const ConvGeometry& geometry);

// product.weight: not packed, [O, 1, kH, kW] with these strides; block and blocks are not read. W: as given; T:
// neurons. Sums equal the gather engine's.
template <class W, class T>
struct CudaDepthwiseArgs {
  CudaProductArgs<W, T> product;
  int64_t stride_o, stride_h, stride_w;
};
template <class W, class T>
cudaError_t launch_depthwise_product(const CudaDepthwiseArgs<W, T>& args, cudaStream_t stream);

}  // namespace tandem
