// What tandem_norm_count and its gradient check and allocate, whatever the device.
#pragma once

#include "ops/spike_train/plan.h"

namespace tandem {

// product: [N, C, *spatial]; the vectors: [C]
struct NormArguments {
  const Tensor& product;
  const Tensor& mean;
  const Tensor& var;
  const Tensor& gamma;
  const Tensor& beta;
  double eps, threshold, upper;
  const std::optional<Tensor>& unit;
};

TrainPlan plan_tandem_norm_count(const Tensor& bits, const NormArguments& arguments, int64_t time_steps, bool radix);

struct NormPlan {
  Tensor grad, product;           // channels last
  Tensor mean, var, gamma, beta;  // contiguous
  std::optional<Tensor> unit;     // contiguous
  int64_t rows, channels;         // rows: N * spatial
};

NormPlan plan_norm(const char* op, const Tensor& grad, const NormArguments& arguments);

// Sums over the batch, [C] and contiguous; of all processes' batches in NormGradientPlan.
struct NormSumsPlan {
  NormPlan norm;
  Tensor grad_gamma, grad_beta;  // outputs
};
struct NormGradientPlan {
  NormPlan norm;
  Tensor grad_gamma, grad_beta;
  std::optional<Tensor> all_rows;  // [1]; none: norm.rows
  Tensor grad_product;             // output, channels last
};

NormSumsPlan plan_norm_sums(const Tensor& grad, const NormArguments& arguments);
NormGradientPlan plan_norm_gradient(const Tensor& grad, const NormArguments& arguments, const Tensor& grad_gamma,
                                    const Tensor& grad_beta, const std::optional<Tensor>& all_rows);

}  // namespace tandem
