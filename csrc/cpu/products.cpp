// spiking_linear, spiking_conv2d, count_linear and count_conv2d on the CPU.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cpu/event_product.h"

namespace tandem {

namespace {

std::tuple<Tensor, Tensor, Tensor> spiking(const char* op, const ProductArguments& arguments,
                                           const SpikingArguments& neurons, const ConvGeometry& geometry, bool linear) {
  const ProductPlan plan = plan_spiking(op, arguments, neurons, geometry, linear);
  run_spiking_product(op, plan, neurons.time_steps, neurons.threshold, neurons.leak);
  return {plan.out_bits, plan.out_sum, plan.out_potential};
}

Tensor counted(const char* op, const ProductArguments& arguments, const ConvGeometry& geometry, bool linear) {
  const ProductPlan plan = plan_product(op, arguments, geometry, linear);
  run_count_product(op, plan);
  return plan.out_sum;
}

std::tuple<Tensor, Tensor, Tensor> spiking_linear(const Tensor& bits, const std::optional<Tensor>& count,
                                                  const Tensor& weight, const std::optional<Tensor>& bias,
                                                  const std::optional<Tensor>& potential, int64_t time_steps,
                                                  double threshold, double leak, bool want_sum, bool want_potential) {
  const char* op = "spiking_linear";
  return spiking(op, {bits, count, weight, bias}, {potential, time_steps, threshold, leak, want_sum, want_potential},
                 linear_geometry(op, bits, weight), true);
}

std::tuple<Tensor, Tensor, Tensor> spiking_conv2d(const Tensor& bits, const std::optional<Tensor>& count,
                                                  const Tensor& weight, const std::optional<Tensor>& bias,
                                                  const std::optional<Tensor>& potential, const Sizes& stride,
                                                  const Sizes& padding, const Sizes& dilation, int64_t groups,
                                                  int64_t time_steps, double threshold, double leak, bool want_sum,
                                                  bool want_potential) {
  const char* op = "spiking_conv2d";
  return spiking(op, {bits, count, weight, bias}, {potential, time_steps, threshold, leak, want_sum, want_potential},
                 conv2d_geometry(op, bits, weight, stride, padding, dilation, groups), false);
}

Tensor count_linear(const Tensor& bits, const std::optional<Tensor>& count, const Tensor& weight,
                    const std::optional<Tensor>& bias) {
  const char* op = "count_linear";
  return counted(op, {bits, count, weight, bias}, linear_geometry(op, bits, weight), true);
}

Tensor count_conv2d(const Tensor& bits, const std::optional<Tensor>& count, const Tensor& weight,
                    const std::optional<Tensor>& bias, const Sizes& stride, const Sizes& padding, const Sizes& dilation,
                    int64_t groups) {
  const char* op = "count_conv2d";
  return counted(op, {bits, count, weight, bias}, conv2d_geometry(op, bits, weight, stride, padding, dilation, groups),
                 false);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tandem_cuda, CPU, m) {
  m.impl("spiking_linear", TORCH_BOX(&spiking_linear));
  m.impl("spiking_conv2d", TORCH_BOX(&spiking_conv2d));
  m.impl("count_linear", TORCH_BOX(&count_linear));
  m.impl("count_conv2d", TORCH_BOX(&count_conv2d));
}

}  // namespace tandem
