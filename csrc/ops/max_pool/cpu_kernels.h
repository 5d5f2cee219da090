// The CPU kernel of max pooling: plain pointers and sizes. Torch-free.
#pragma once

#include <cstdint>

#include "core/conv_geometry.h"
#include "cpu/kernel_table.h"

namespace tandem {

// Max pooling: channels handled at once, at most; time steps over which counts are bytes before these are made anew;
// and neighbouring windows taken through a plane together, at most.
constexpr int64_t kPoolLanes = 64;
constexpr int64_t kPoolSteps = 120;
constexpr int64_t kPoolPixels = 16;

struct MaxPoolArgs {
  const ConvGeometry* geometry;  // of a depthwise convolution
  const uint8_t* bits;           // [planes, pixels_in, channels]
  int64_t planes;
  bool radix;            // whether bytes are the values of radix spikes, of one plane
  const int32_t* count;  // [pixels_in, channels], of earlier time steps, or null
  uint8_t* out;          // [planes, pixels_out, channels]
};
// Neurons of a window in the image, at most.
constexpr int64_t pool_taps(const ConvGeometry& g) {
  return (g.kernel_h < g.height ? g.kernel_h : g.height) * (g.kernel_w < g.width ? g.kernel_w : g.width);
}
// Windows taken together: as many as leave their counts in a cache.
constexpr int64_t pool_pixels(const ConvGeometry& g) {
  const int64_t fitting = 64 / pool_taps(g);
  return fitting < 1 ? 1 : fitting < kPoolPixels ? fitting : kPoolPixels;
}
// For each of a window's neurons and channels a byte and a number of 32 bits.
constexpr int64_t pool_scratch_bytes(int64_t taps) { return taps * kPoolLanes * 5; }

struct MaxPoolKernels {
  // Output pixels begin..end-1; scratch: pool_pixels() times pool_scratch_bytes(), from an address that 64 divides.
  void (*max_pool)(const MaxPoolArgs&, int64_t begin, int64_t end, uint8_t* scratch);
};

TANDEM_KERNELS(MaxPoolKernels)

}  // namespace tandem
