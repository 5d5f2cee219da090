// What max_pool_spikes checks and allocates, whatever the device.
#pragma once

#include <optional>

#include "core/conv_geometry.h"
#include "core/tensors.h"

namespace tandem {

struct MaxPoolArguments {
  const Tensor& bits;
  const std::optional<Tensor>& count;
  const Sizes &kernel_size, &stride, &padding, &dilation;
  bool ceil_mode;
  int64_t time_steps;
  bool want_count;
  bool radix;
};

struct MaxPoolPlan {
  ConvGeometry geometry;        // of a depthwise convolution
  Tensor bits;                  // [P, N, C, H, W], channels last
  std::optional<Tensor> count;  // int32 [N, C, H, W], channels last
  Tensor out;                   // [P, N, C, Ho, Wo], channels last
  Tensor out_count;             // like count; shape [0] where not wanted
};

MaxPoolPlan plan_max_pool_spikes(const MaxPoolArguments& arguments);

}  // namespace tandem
