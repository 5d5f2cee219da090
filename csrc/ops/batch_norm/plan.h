// What the operators of batch norm check and allocate, whatever the device.
#pragma once

#include "core/tensors.h"
#include "ops/batch_norm/channel.h"

namespace tandem {

// product: [N, C, *spatial], for its shape; num_batches_tracked: int64 []; other tensors, but for the last: [C]
struct UpdateStatistics {
  const Tensor& running_mean;
  const Tensor& running_var;
  const Tensor& num_batches_tracked;
  const Tensor& mean;
  const Tensor& var;
  const Tensor& product;
  const std::optional<Tensor>& missing;
  double momentum, repeats;
  const std::optional<Tensor>& unit;
  const std::optional<Tensor>& momentum_now;  // float64 [], in place of momentum
};

struct UpdateStatisticsPlan {
  Tensor running_mean, running_var, num_batches_tracked;  // of the caller, contiguous
  Tensor mean, var;                                       // contiguous
  std::optional<Tensor> missing, unit, momentum_now;
  double repeats, momentum;
  int64_t values;

  template <class T>
  UpdateStatisticsArgs<T> arguments() const {
    UpdateStatisticsArgs<T> args = {};
    args.running_mean = static_cast<T*>(running_mean.mutable_data_ptr());
    args.running_var = static_cast<T*>(running_var.mutable_data_ptr());
    args.num_batches_tracked = static_cast<int64_t*>(num_batches_tracked.mutable_data_ptr());
    args.mean = static_cast<const T*>(mean.const_data_ptr());
    args.var = static_cast<const T*>(var.const_data_ptr());
    args.missing = data_or_null<T>(missing), args.unit = data_or_null<T>(unit);
    args.repeats = repeats, args.momentum = momentum, args.momentum_now = data_or_null<double>(momentum_now);
    args.values = values;
    args.channels = running_mean.numel();
    return args;
  }
};

UpdateStatisticsPlan plan_update_statistics(const UpdateStatistics& arguments);

// All vectors: [C]
struct FoldNorm {
  const Tensor& running_mean;
  const Tensor& running_var;
  const std::optional<Tensor>& gamma;
  const std::optional<Tensor>& beta;
  const std::optional<Tensor>& bias;
  const std::optional<Tensor>& unit;
  double eps, amplitude;
  int64_t time_steps;
};

struct FoldNormPlan {
  Tensor running_mean, running_var;               // contiguous
  std::optional<Tensor> gamma, beta, bias, unit;  // contiguous
  Tensor gain_out, bias_out;
  double eps, amplitude;
  int64_t time_steps;

  template <class T>
  FoldNormArgs<T> arguments() const {
    FoldNormArgs<T> args = {};
    args.running_mean = static_cast<const T*>(running_mean.const_data_ptr());
    args.running_var = static_cast<const T*>(running_var.const_data_ptr());
    args.gamma = data_or_null<T>(gamma), args.beta = data_or_null<T>(beta);
    args.bias = data_or_null<T>(bias), args.unit = data_or_null<T>(unit);
    args.gain_out = static_cast<T*>(gain_out.mutable_data_ptr());
    args.bias_out = static_cast<T*>(bias_out.mutable_data_ptr());
    args.eps = static_cast<T>(eps), args.amplitude = static_cast<T>(amplitude);
    args.time_steps = static_cast<T>(time_steps);
    args.channels = running_mean.numel();
    return args;
  }
};

FoldNormPlan plan_fold_norm(const FoldNorm& arguments);

}  // namespace tandem
