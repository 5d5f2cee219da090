// Max pooling of spikes by count on the device: plain pointers and a stream. Torch-free.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/conv_geometry.h"

namespace tandem {

// Planes whose neurons' counts are held in memory at a time.
constexpr int64_t kPoolPlanes = 16;

struct CudaMaxPoolArgs {
  ConvGeometry geometry;  // of a depthwise convolution
  const uint8_t* bits;    // [planes, pixels_in, channels]
  const int32_t* count;   // [pixels_in, channels], of earlier time steps, or null
  uint8_t* out;           // [planes, pixels_out, channels]
  int32_t* out_count;     // [pixels_in, channels], after the last time step, or null
  int32_t* scratch;       // pool_counts() times [pixels_in, channels]
  int64_t planes;
  bool radix;  // whether bytes are the values of radix spikes, of one plane
};

// Counts of every neuron that scratch memory holds: one before each plane and one behind, unless all are zero.
constexpr int64_t pool_counts(int64_t planes, bool count, bool out_count) {
  if (planes == 1 && !count && !out_count) return 0;
  return (planes < kPoolPlanes ? planes : kPoolPlanes) + 1;
}

// Launches on the current device and returns what cudaGetLastError says of the launches.
cudaError_t launch_max_pool_spikes(const CudaMaxPoolArgs& args, cudaStream_t stream);

}  // namespace tandem
