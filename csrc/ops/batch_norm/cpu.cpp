// update_statistics_ and fold_norm on the CPU: a few hundred numbers, for which threads and vectors do not pay.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "ops/batch_norm/plan.h"

namespace tandem {

namespace {

void update_statistics_(const Tensor& running_mean, const Tensor& running_var, const Tensor& num_batches_tracked,
                        const Tensor& mean, const Tensor& var, const Tensor& product,
                        const std::optional<Tensor>& missing, double momentum, double repeats,
                        const std::optional<Tensor>& unit, const std::optional<Tensor>& momentum_now) {
  const UpdateStatisticsPlan plan = plan_update_statistics({running_mean, running_var, num_batches_tracked, mean, var,
                                                            product, missing, momentum, repeats, unit, momentum_now});
  dispatch_floating("update_statistics_", running_mean.scalar_type(), [&](auto type) {
    const auto args = plan.arguments<decltype(type)>();
    const auto factors = factors_of(args);
    for (int64_t c = 0; c < args.channels; ++c) update_channel(args, factors, c);
    ++*args.num_batches_tracked;
  });
}

std::tuple<Tensor, Tensor> fold_norm(const Tensor& running_mean, const Tensor& running_var,
                                     const std::optional<Tensor>& gamma, const std::optional<Tensor>& beta,
                                     const std::optional<Tensor>& bias, const std::optional<Tensor>& unit, double eps,
                                     double amplitude, int64_t time_steps) {
  const FoldNormPlan plan =
      plan_fold_norm({running_mean, running_var, gamma, beta, bias, unit, eps, amplitude, time_steps});
  dispatch_floating("fold_norm", running_mean.scalar_type(), [&](auto type) {
    const auto args = plan.arguments<decltype(type)>();
    for (int64_t c = 0; c < args.channels; ++c) fold_channel(args, c);
  });
  return {plan.gain_out, plan.bias_out};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tandem_cuda, CPU, m) {
  m.impl("update_statistics_", TORCH_BOX(&update_statistics_));
  m.impl("fold_norm", TORCH_BOX(&fold_norm));
}

}  // namespace tandem
