// update_statistics_ and fold_norm on a CUDA device. Allocates through torch alone and never synchronises, so that they
// can be captured in a CUDA graph.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cuda/stream.h"
#include "ops/batch_norm/batch_norm.cuh"
#include "ops/batch_norm/plan.h"

namespace tandem {

namespace {

using torch::stable::accelerator::DeviceGuard;

void update_statistics_(const Tensor& running_mean, const Tensor& running_var, const Tensor& num_batches_tracked,
                        const Tensor& mean, const Tensor& var, const Tensor& product,
                        const std::optional<Tensor>& missing, double momentum, double repeats,
                        const std::optional<Tensor>& unit, const std::optional<Tensor>& momentum_now) {
  const char* op = "update_statistics_";
  const DeviceGuard guard(running_mean.get_device_index());
  const UpdateStatisticsPlan plan = plan_update_statistics({running_mean, running_var, num_batches_tracked, mean, var,
                                                            product, missing, momentum, repeats, unit, momentum_now});
  const cudaStream_t stream = current_stream(op, running_mean.get_device_index());
  dispatch_floating(op, running_mean.scalar_type(), [&](auto type) {
    check_launch(op, launch_update_statistics(plan.arguments<decltype(type)>(), stream));
  });
}

std::tuple<Tensor, Tensor> fold_norm(const Tensor& running_mean, const Tensor& running_var,
                                     const std::optional<Tensor>& gamma, const std::optional<Tensor>& beta,
                                     const std::optional<Tensor>& bias, const std::optional<Tensor>& unit, double eps,
                                     double amplitude, int64_t time_steps) {
  const char* op = "fold_norm";
  const DeviceGuard guard(running_mean.get_device_index());
  const FoldNormPlan plan =
      plan_fold_norm({running_mean, running_var, gamma, beta, bias, unit, eps, amplitude, time_steps});
  const cudaStream_t stream = current_stream(op, running_mean.get_device_index());
  dispatch_floating(op, running_mean.scalar_type(),
                    [&](auto type) { check_launch(op, launch_fold_norm(plan.arguments<decltype(type)>(), stream)); });
  return {plan.gain_out, plan.bias_out};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tandem_cuda, CUDA, m) {
  m.impl("update_statistics_", TORCH_BOX(&update_statistics_));
  m.impl("fold_norm", TORCH_BOX(&fold_norm));
}

}  // namespace tandem
