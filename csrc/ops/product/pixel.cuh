// Where an output pixel looks.
#pragma once

#include <cstdint>

#include "core/conv_geometry.h"
#include "cuda/device.cuh"

namespace tandem {

struct Pixel {
  int64_t image;      // first input pixel of its sample
  int64_t top, side;  // input row and column of its first tap
};

__device__ __forceinline__ Pixel pixel_at(const ConvGeometry& g, int64_t at) {
  Pixel out;
  out.image = at / (g.out_height * g.out_width) * g.height * g.width;
  out.top = at / g.out_width % g.out_height * g.stride_h - g.padding_h;
  out.side = at % g.out_width * g.stride_w - g.padding_w;
  return out;
}

// The input pixel that a tap sees, or -1 outside the image.
__device__ __forceinline__ int64_t seen_by(const ConvGeometry& g, const Pixel& pixel, int64_t kh, int64_t kw) {
  const int64_t h = pixel.top + kh * g.dilation_h, w = pixel.side + kw * g.dilation_w;
  return h < 0 || h >= g.height || w < 0 || w >= g.width ? -1 : pixel.image + h * g.width + w;
}

}  // namespace tandem
