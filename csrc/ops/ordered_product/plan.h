// What ordered_product checks and allocates, whatever the device.
#pragma once

#include <optional>

#include "ops/product/plan.h"

namespace tandem {

struct OrderedPlan {
  ConvGeometry geometry;
  Tensor input;  // float32 [N, C, H, W] or [N, *, F], features last
  Tensor weight;
  std::optional<Tensor> packed;  // as given, unchecked
  Tensor out;                    // float32 [N, O, Ho, Wo] or [N, *, O], features last
};

OrderedPlan plan_ordered_product(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& packed,
                                 const Sizes& stride, const Sizes& padding, const Sizes& dilation, int64_t groups);

}  // namespace tandem
