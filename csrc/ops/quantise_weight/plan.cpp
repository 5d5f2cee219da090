#include "ops/quantise_weight/plan.h"

#include "cpu/finite.h"

namespace tandem {

QuantisePlan plan_quantise_weight(const Tensor& weight, int64_t largest) {
  const char* op = "quantise_weight";
  TANDEM_CHECK(weight.scalar_type() == ScalarType::Float, op, "weight must be float32, got ",
               name_of(weight.scalar_type()));
  TANDEM_CHECK(largest == 127 || largest == kLargest16, op, "largest must be 127 or 32639, got ", largest);
  TANDEM_CHECK(weight.dim() >= 2 && weight.numel() > 0, op, "weight must be [O, ...] with no empty dimension, got ",
               shape(weight));
  const ScalarType type = largest == 127 ? ScalarType::Char : ScalarType::Short;
  const int64_t channels = weight.size(0), last = weight.dim() - 1;
  return {channels_last(op, weight, last), empty_channels_last(op, weight, sizes_of(weight), type, last),
          empty_channels_last(op, weight, {channels}, ScalarType::Float, 0), channels, weight.numel() / channels};
}

}  // namespace tandem
