// Where the windows of a tile's output pixels lie in the image.
#pragma once

#include "core/conv_geometry.h"
#include "cpu/simd.inl.h"

namespace tandem::TANDEM_ISA {

// Where output pixels look: the input pixel that a tap sees, or -1 outside the image.
template <int64_t kRows>
struct Views {
  int64_t image[kRows], top[kRows], side[kRows];

  TANDEM_HOST void look(const ConvGeometry& g, int64_t row_begin, int64_t rows) {
    // A division takes as long as ten additions or more.
    int64_t n = row_begin / (g.out_height * g.out_width), h = row_begin / g.out_width % g.out_height;
    int64_t w = row_begin % g.out_width;
    for (int64_t i = 0; i < rows; ++i) {
      image[i] = n * g.height * g.width;
      top[i] = h * g.stride_h - g.padding_h;
      side[i] = w * g.stride_w - g.padding_w;
      if (++w < g.out_width) continue;
      w = 0;
      if (++h < g.out_height) continue;
      h = 0;
      ++n;
    }
  }
  TANDEM_HOST int64_t seen(const ConvGeometry& g, int64_t i, int64_t tap) const {
    const int64_t h = top[i] + tap / g.kernel_w * g.dilation_h, w = side[i] + tap % g.kernel_w * g.dilation_w;
    return h < 0 || h >= g.height || w < 0 || w >= g.width ? -1 : image[i] + h * g.width + w;
  }
};

}  // namespace tandem::TANDEM_ISA
