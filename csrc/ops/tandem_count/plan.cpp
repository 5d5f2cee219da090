#include "ops/tandem_count/plan.h"

#include "neuron/arguments.h"

namespace tandem {

TrainPlan plan_tandem_count(const Tensor& bits, const Tensor& pre_activation, int64_t time_steps, int64_t neuron,
                            const std::vector<double>& parameters, double upper, bool radix) {
  const char* op = "tandem_count";
  check_bits(op, bits, 2);
  if (radix) check_radix_steps(op, time_steps);
  check_planes(op, bits, time_steps);
  checked_neuron(op, neuron, parameters, ScalarType::Double);
  TANDEM_CHECK(upper > 0, op, "upper must be positive, got ", upper);
  check_floating(op, "pre_activation", pre_activation);
  check_same_device(op, "pre_activation", pre_activation, bits, "bits");
  check_shape(op, "pre_activation", pre_activation, without_time(bits));
  TrainPlan plan = plan_count(op, bits, pre_activation.scalar_type());
  check_past_end(op, "bits", plan.in, time_steps);
  return plan;
}

namespace {

bool laid_out_alike(const Tensor& a, const Tensor& b) {
  for (int64_t d = 0; d < a.dim(); ++d) {
    if (a.size(d) > 1 && a.stride(d) != b.stride(d)) return false;
  }
  return true;
}

}  // namespace

TandemGradientPlan plan_tandem_count_backward(const Tensor& grad, const Tensor& pre_activation, double threshold,
                                              double upper) {
  const char* op = "tandem_count_backward";
  check_floating(op, "pre_activation", pre_activation);
  check_like(op, "grad", grad, pre_activation, "pre_activation", sizes_of(pre_activation));
  check_threshold(op, threshold);
  TANDEM_CHECK(upper > 0, op, "upper must be positive, got ", upper);
  // Without gaps and, if pre_activation has none, in the same order.
  TandemGradientPlan plan = {grad, pre_activation, torch::stable::empty_like(pre_activation)};
  if (plan.out.numel() == 0) return plan;
  if (!laid_out_alike(pre_activation, plan.out)) {
    plan.pre_activation = torch::stable::empty_like(plan.out);
    torch::stable::copy_(plan.pre_activation, pre_activation);
  }
  if (!laid_out_alike(grad, plan.out)) {
    plan.grad = plan.out;
    torch::stable::copy_(plan.grad, grad);
  }
  return plan;
}

}  // namespace tandem
