#include "ops/tandem_count/norm_plan.h"

#include "neuron/arguments.h"

namespace tandem {

namespace {

void check_norm(const char* op, const NormArguments& a) {
  check_floating(op, "product", a.product);
  TANDEM_CHECK(a.product.dim() >= 2, op, "product must be [N, C, ...], got ", shape(a.product));
  const Sizes channels = {a.product.size(1)};
  check_like(op, "mean", a.mean, a.product, "product", channels);
  check_like(op, "var", a.var, a.product, "product", channels);
  check_like(op, "gamma", a.gamma, a.product, "product", channels);
  check_like(op, "beta", a.beta, a.product, "product", channels);
  if (a.unit) check_like(op, "unit", *a.unit, a.product, "product", channels);
  check_threshold(op, a.threshold);
  TANDEM_CHECK(a.eps >= 0, op, "eps must not be negative, got ", a.eps);
  TANDEM_CHECK(a.upper > 0, op, "upper must be positive, got ", a.upper);
}

}  // namespace

TrainPlan plan_tandem_norm_count(const Tensor& bits, const NormArguments& a, int64_t time_steps, bool radix) {
  const char* op = "tandem_norm_count";
  check_bits(op, bits, 3);
  if (radix) check_radix_steps(op, time_steps);
  check_planes(op, bits, time_steps);
  check_norm(op, a);
  check_same_device(op, "product", a.product, bits, "bits");
  Sizes neurons = sizes_of(bits);
  neurons.erase(neurons.begin());
  check_shape(op, "product", a.product, neurons);
  TrainPlan plan;
  plan.in = channels_last(op, bits, 2);
  check_past_end(op, "bits", plan.in, time_steps);
  plan.out = empty_channels_last(op, bits, neurons, a.product.scalar_type(), 1);
  plan.neurons = plan.out.numel();
  return plan;
}

NormPlan plan_norm(const char* op, const Tensor& grad, const NormArguments& a) {
  check_norm(op, a);
  check_like(op, "grad", grad, a.product, "product", sizes_of(a.product));
  const int64_t channels = a.product.size(1);
  return {channels_last(op, grad, 1),
          channels_last(op, a.product, 1),
          channels_last(op, a.mean, 0),
          channels_last(op, a.var, 0),
          channels_last(op, a.gamma, 0),
          channels_last(op, a.beta, 0),
          channels_last(op, a.unit, 0),
          channels == 0 ? 0 : a.product.numel() / channels,
          channels};
}

NormSumsPlan plan_norm_sums(const Tensor& grad, const NormArguments& a) {
  const char* op = "tandem_norm_count_sums";
  const NormPlan norm = plan_norm(op, grad, a);
  const auto vector = [&] { return empty_channels_last(op, a.product, {norm.channels}, a.product.scalar_type(), 0); };
  return {norm, vector(), vector()};
}

NormGradientPlan plan_norm_gradient(const Tensor& grad, const NormArguments& a, const Tensor& grad_gamma,
                                    const Tensor& grad_beta, const std::optional<Tensor>& all_rows) {
  const char* op = "tandem_norm_count_gradient";
  const NormPlan norm = plan_norm(op, grad, a);
  check_like(op, "grad_gamma", grad_gamma, a.product, "product", {norm.channels});
  check_like(op, "grad_beta", grad_beta, a.product, "product", {norm.channels});
  if (all_rows) check_like(op, "rows", *all_rows, a.product, "product", {1});
  return {norm, channels_last(op, grad_gamma, 0), channels_last(op, grad_beta, 0), channels_last(op, all_rows, 0),
          empty_channels_last(op, a.product, sizes_of(a.product), a.product.scalar_type(), 1)};
}

}  // namespace tandem
