#include "ops/ordered_product/plan.h"

namespace tandem {

OrderedPlan plan_ordered_product(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& packed,
                                 const Sizes& stride, const Sizes& padding, const Sizes& dilation, int64_t groups) {
  const char* op = "ordered_product";
  TANDEM_CHECK(input.scalar_type() == ScalarType::Float, op, "input must be float32, got ",
               name_of(input.scalar_type()));
  TANDEM_CHECK(is_integer(weight.scalar_type()), op, "weight must be int8 or int16, got ",
               name_of(weight.scalar_type()));
  check_same_device(op, "weight", weight, input, "input");
  if (packed) check_same_device(op, "packed", *packed, input, "input");
  const bool linear = weight.dim() == 2;
  TANDEM_CHECK(linear ? input.dim() >= 2 : input.dim() == 4, op, "input must be [N, C, H, W], or [N, *, F] for a ",
               "weight [O, F], got ", shape(input));
  const ConvGeometry g = product_geometry(op, sizes_of(input), weight, stride, padding, dilation, groups);
  Sizes sizes = {g.batch, g.out_channels, g.out_height, g.out_width};
  if (linear) sizes = sizes_of(input), sizes.back() = g.out_channels;
  const int64_t dim = linear ? static_cast<int64_t>(sizes.size()) - 1 : 1;
  return {g, channels_last(op, input, dim), weight, packed,
          empty_channels_last(op, input, sizes, ScalarType::Float, dim)};
}

}  // namespace tandem
