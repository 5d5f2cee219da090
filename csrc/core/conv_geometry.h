// Sizes of a 2-D convolution; a linear layer is a 1 x 1 convolution over 1 x 1 pixels. Torch-free, host and device.
#pragma once

#include <cstdint>

namespace tandem {

struct ConvGeometry {
  int64_t batch, in_channels, height, width;             // input  [N, C, H, W]
  int64_t out_channels, out_height, out_width;           // output [N, O, Ho, Wo]
  int64_t kernel_h, kernel_w, stride_h, stride_w;        // weight [O, C/groups, kH, kW]
  int64_t padding_h, padding_w, dilation_h, dilation_w;  // zero padding on both sides
  int64_t groups;

  constexpr int64_t pixels_in() const { return batch * height * width; }
  constexpr int64_t pixels_out() const { return batch * out_height * out_width; }
  constexpr int64_t taps() const { return kernel_h * kernel_w; }
  constexpr int64_t group_in() const { return in_channels / groups; }
  constexpr int64_t group_out() const { return out_channels / groups; }
  constexpr int64_t features() const { return taps() * group_in(); }  // fan-in of a neuron
};

}  // namespace tandem
