#include "ops/ordered_product/plan.h"

namespace tandem {

OrderedPlan plan_ordered(const char* op, const Tensor& input, const Tensor& weight, const std::optional<Tensor>& packed,
                         const Sizes& stride, const Sizes& padding, const Sizes& dilation, int64_t groups) {
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
  return {g, channels_last(op, input, dim), weight, packed, sizes, dim};
}

Tensor empty_sums(const char* op, const OrderedPlan& plan) {
  return empty_channels_last(op, plan.input, plan.sizes, ScalarType::Float, plan.dim);
}

namespace {

FiringPlan firing_plan(const char* op, const OrderedPlan& plan, const std::optional<Tensor>& scale,
                       const std::optional<Tensor>& bias, int64_t time_steps) {
  const Sizes vector = {plan.geometry.out_channels};
  if (scale) check_like(op, "scale", *scale, plan.input, "input", vector);
  if (bias) check_like(op, "bias", *bias, plan.input, "input", vector);
  Sizes sizes = plan.sizes;
  sizes.insert(sizes.begin(), planes_for(time_steps));
  checked_numel(op, sizes);
  return {channels_last(op, scale, 0), channels_last(op, bias, 0),
          empty_channels_last(op, plan.input, sizes, ScalarType::Byte, plan.dim + 1)};
}

}  // namespace

OrderedNeurons plan_neurons(const char* op, const OrderedPlan& plan, const std::optional<Tensor>& scale,
                            const std::optional<Tensor>& bias, int64_t time_steps, int64_t mode, int64_t neuron,
                            const std::vector<double>& parameters) {
  TANDEM_CHECK(mode >= 0 && mode < kCurrentModes && static_cast<CurrentMode>(mode) != CurrentMode::kSeries, op,
               "mode must be 0 (constant), 1 (impulse) or 3 (once), got ", mode);
  check_time_steps(op, time_steps);
  const Neuron model = checked_neuron(op, neuron, parameters, ScalarType::Float);
  return {firing_plan(op, plan, scale, bias, time_steps), static_cast<CurrentMode>(mode), model};
}

FiringPlan plan_radix_neurons(const char* op, const OrderedPlan& plan, const std::optional<Tensor>& scale,
                              const std::optional<Tensor>& bias, const RadixNeurons& neurons) {
  check_radix_neurons(op, neurons, ScalarType::Float);
  return firing_plan(op, plan, scale, bias, neurons.time_steps);
}

}  // namespace tandem
