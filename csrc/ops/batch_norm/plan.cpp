#include "ops/batch_norm/plan.h"

#include <cmath>

namespace tandem {

namespace {

// Checks the running statistics, [C]; returns [C].
Sizes check_running(const char* op, const Tensor& mean, const Tensor& var) {
  check_floating(op, "running_mean", mean);
  TANDEM_CHECK(mean.dim() == 1, op, "running_mean must be [C], got ", shape(mean));
  Sizes channels = sizes_of(mean);
  check_like(op, "running_var", var, mean, "running_mean", channels);
  return channels;
}

// A vector that is written: its memory is the caller's.
void check_contiguous(const char* op, const char* argument, const Tensor& tensor) {
  TANDEM_CHECK(tensor.is_contiguous(), op, argument, " must be contiguous, got ", shape(tensor), " with stride ",
               tensor.stride(0));
}

}  // namespace

UpdateStatisticsPlan plan_update_statistics(const UpdateStatistics& a) {
  const char* op = "update_statistics_";
  const Sizes channels = check_running(op, a.running_mean, a.running_var);
  check_contiguous(op, "running_mean", a.running_mean);
  check_contiguous(op, "running_var", a.running_var);
  TANDEM_CHECK(a.num_batches_tracked.scalar_type() == ScalarType::Long, op, "num_batches_tracked must be int64, got ",
               name_of(a.num_batches_tracked.scalar_type()));
  check_same_device(op, "num_batches_tracked", a.num_batches_tracked, a.running_mean, "running_mean");
  check_shape(op, "num_batches_tracked", a.num_batches_tracked, {});
  check_like(op, "mean", a.mean, a.running_mean, "running_mean", channels);
  check_like(op, "var", a.var, a.running_mean, "running_mean", channels);
  if (a.missing) check_like(op, "missing", *a.missing, a.running_mean, "running_mean", channels);
  if (a.unit) check_like(op, "unit", *a.unit, a.running_mean, "running_mean", channels);
  check_like(op, "product", a.product, a.running_mean, "running_mean", sizes_of(a.product));
  TANDEM_CHECK(a.product.dim() >= 2 && a.product.size(1) == channels[0], op, "product must be [N, ", channels[0],
               ", ...], got ", shape(a.product));
  const int64_t count = channels[0] == 0 ? 0 : a.product.numel() / channels[0];
  TANDEM_CHECK(count >= 2, op, "product must have at least two values per channel, got ", shape(a.product));
  TANDEM_CHECK(a.repeats > 0 && std::isfinite(a.repeats), op, "repeats must be positive and finite, got ", a.repeats);
  if (a.momentum_now) {
    TANDEM_CHECK(a.momentum_now->scalar_type() == ScalarType::Double, op, "momentum must be float64, got ",
                 name_of(a.momentum_now->scalar_type()));
    check_same_device(op, "momentum", *a.momentum_now, a.running_mean, "running_mean");
    check_shape(op, "momentum", *a.momentum_now, {});
  }
  return {a.running_mean,
          a.running_var,
          a.num_batches_tracked,
          channels_last(op, a.mean, 0),
          channels_last(op, a.var, 0),
          channels_last(op, a.missing, 0),
          channels_last(op, a.unit, 0),
          a.momentum_now,
          a.repeats,
          a.momentum,
          count};
}

FoldNormPlan plan_fold_norm(const FoldNorm& a) {
  const char* op = "fold_norm";
  const Sizes channels = check_running(op, a.running_mean, a.running_var);
  const auto check = [&](const char* argument, const std::optional<Tensor>& tensor) {
    if (tensor) check_like(op, argument, *tensor, a.running_mean, "running_mean", channels);
  };
  check("gamma", a.gamma);
  check("beta", a.beta);
  check("bias", a.bias);
  check("unit", a.unit);
  TANDEM_CHECK(a.eps >= 0, op, "eps must not be negative, got ", a.eps);
  TANDEM_CHECK(a.amplitude > 0 && std::isfinite(a.amplitude), op, "amplitude must be positive and finite, got ",
               a.amplitude);
  check_time_steps(op, a.time_steps);
  const auto vector = [&] {
    return empty_channels_last(op, a.running_mean, channels, a.running_mean.scalar_type(), 0);
  };
  return {channels_last(op, a.running_mean, 0),
          channels_last(op, a.running_var, 0),
          channels_last(op, a.gamma, 0),
          channels_last(op, a.beta, 0),
          channels_last(op, a.bias, 0),
          channels_last(op, a.unit, 0),
          vector(),
          vector(),
          a.eps,
          a.amplitude,
          a.time_steps};
}

}  // namespace tandem
