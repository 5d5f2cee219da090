// tandem_norm_count and its gradient on a CUDA device. Allocates through torch alone and never synchronises, so that it
// can be captured in a CUDA graph.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "cuda/stream.h"
#include "ops/spike_train/cuda_count.h"
#include "ops/tandem_count/norm_gate.h"
#include "ops/tandem_count/norm_plan.h"
#include "ops/tandem_count/tandem_norm_count.cuh"

namespace tandem {

namespace {

using torch::stable::accelerator::DeviceGuard;

Tensor tandem_norm_count(const Tensor& bits, const Tensor& product, const Tensor& mean, const Tensor& var,
                         const Tensor& gamma, const Tensor& beta, double eps, int64_t time_steps, double threshold,
                         double upper, const std::optional<Tensor>& unit, bool radix) {
  const char* op = "tandem_norm_count";
  const DeviceGuard guard(bits.get_device_index());
  const TrainPlan plan =
      plan_tandem_norm_count(bits, {product, mean, var, gamma, beta, eps, threshold, upper, unit}, time_steps, radix);
  return run_count(op, plan, time_steps, radix);
}

// What both passes over memory read.
template <class T>
CudaNormGradientArgs<T> arguments_of(const NormPlan& plan, const NormArguments& a) {
  const auto data = [](const Tensor& tensor) { return static_cast<const T*>(tensor.const_data_ptr()); };
  CudaNormGradientArgs<T> args = {};
  args.grad = data(plan.grad), args.product = data(plan.product);
  args.mean = data(plan.mean), args.var = data(plan.var);
  args.gamma = data(plan.gamma), args.beta = data(plan.beta), args.unit = data_or_null<T>(plan.unit);
  args.rows = plan.rows, args.channels = plan.channels;
  args.eps = static_cast<T>(a.eps), args.threshold = static_cast<T>(a.threshold), args.upper = static_cast<T>(a.upper);
  return args;
}

std::tuple<Tensor, Tensor> tandem_norm_count_sums(const Tensor& grad, const Tensor& product, const Tensor& mean,
                                                  const Tensor& var, const Tensor& gamma, const Tensor& beta,
                                                  double eps, double threshold, double upper,
                                                  const std::optional<Tensor>& unit) {
  const char* op = "tandem_norm_count_sums";
  const DeviceGuard guard(product.get_device_index());
  const NormArguments a = {product, mean, var, gamma, beta, eps, threshold, upper, unit};
  const NormSumsPlan plan = plan_norm_sums(grad, a);
  const int64_t chunks = (plan.norm.rows + kNormRows - 1) / kNormRows;
  const Tensor sums = empty_channels_last(op, product, {chunks * 2 * plan.norm.channels}, product.scalar_type(), 0);
  dispatch_floating(op, product.scalar_type(), [&](auto type) {
    using T = decltype(type);
    CudaNormGradientArgs<T> args = arguments_of<T>(plan.norm, a);
    args.sums = static_cast<T*>(sums.mutable_data_ptr());
    args.out_gamma = static_cast<T*>(plan.grad_gamma.mutable_data_ptr());
    args.out_beta = static_cast<T*>(plan.grad_beta.mutable_data_ptr());
    check_launch(op, launch_norm_sums(args, current_stream(op, product.get_device_index())));
  });
  return {plan.grad_gamma, plan.grad_beta};
}

Tensor tandem_norm_count_gradient(const Tensor& grad, const Tensor& product, const Tensor& mean, const Tensor& var,
                                  const Tensor& gamma, const Tensor& beta, const Tensor& grad_gamma,
                                  const Tensor& grad_beta, const std::optional<Tensor>& rows, double eps,
                                  double threshold, double upper, const std::optional<Tensor>& unit) {
  const char* op = "tandem_norm_count_gradient";
  const DeviceGuard guard(product.get_device_index());
  const NormArguments a = {product, mean, var, gamma, beta, eps, threshold, upper, unit};
  const NormGradientPlan plan = plan_norm_gradient(grad, a, grad_gamma, grad_beta, rows);
  dispatch_floating(op, product.scalar_type(), [&](auto type) {
    using T = decltype(type);
    CudaNormGradientArgs<T> args = arguments_of<T>(plan.norm, a);
    args.grad_gamma = static_cast<const T*>(plan.grad_gamma.const_data_ptr());
    args.grad_beta = static_cast<const T*>(plan.grad_beta.const_data_ptr());
    args.all_rows = data_or_null<T>(plan.all_rows);
    args.grad_product = static_cast<T*>(plan.grad_product.mutable_data_ptr());
    check_launch(op, launch_norm_gradient(args, current_stream(op, product.get_device_index())));
  });
  return plan.grad_product;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tandem_cuda, CUDA, m) {
  m.impl("tandem_norm_count", TORCH_BOX(&tandem_norm_count));
  m.impl("tandem_norm_count_sums", TORCH_BOX(&tandem_norm_count_sums));
  m.impl("tandem_norm_count_gradient", TORCH_BOX(&tandem_norm_count_gradient));
}

}  // namespace tandem
