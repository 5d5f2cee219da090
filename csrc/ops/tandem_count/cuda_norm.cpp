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

std::tuple<Tensor, Tensor, Tensor> tandem_norm_count_backward(const Tensor& grad, const Tensor& product,
                                                              const Tensor& mean, const Tensor& var,
                                                              const Tensor& gamma, const Tensor& beta, double eps,
                                                              double threshold, double upper,
                                                              const std::optional<Tensor>& unit) {
  const char* op = "tandem_norm_count_backward";
  const DeviceGuard guard(product.get_device_index());
  const NormGradientPlan plan =
      plan_tandem_norm_count_backward(grad, {product, mean, var, gamma, beta, eps, threshold, upper, unit});
  const cudaStream_t stream = current_stream(op, product.get_device_index());
  const int64_t chunks = (plan.rows + kNormRows - 1) / kNormRows;
  const Tensor sums = empty_channels_last(op, product, {chunks * 2 * plan.channels}, product.scalar_type(), 0);
  dispatch_floating(op, product.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const auto data = [](const Tensor& tensor) { return static_cast<const T*>(tensor.const_data_ptr()); };
    const auto output = [](const Tensor& tensor) { return static_cast<T*>(tensor.mutable_data_ptr()); };
    CudaNormGradientArgs<T> args = {};
    args.grad = data(plan.grad), args.product = data(plan.product);
    args.mean = data(plan.mean), args.var = data(plan.var);
    args.gamma = data(plan.gamma), args.beta = data(plan.beta), args.unit = data_or_null<T>(plan.unit);
    args.grad_product = output(plan.grad_product);
    args.grad_gamma = output(plan.grad_gamma), args.grad_beta = output(plan.grad_beta);
    args.sums = output(sums);
    args.rows = plan.rows, args.channels = plan.channels;
    args.eps = static_cast<T>(eps), args.threshold = static_cast<T>(threshold), args.upper = static_cast<T>(upper);
    check_launch(op, launch_tandem_norm_count_backward(args, stream));
  });
  return {plan.grad_product, plan.grad_gamma, plan.grad_beta};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tandem_cuda, CUDA, m) {
  m.impl("tandem_norm_count", TORCH_BOX(&tandem_norm_count));
  m.impl("tandem_norm_count_backward", TORCH_BOX(&tandem_norm_count_backward));
}

}  // namespace tandem
