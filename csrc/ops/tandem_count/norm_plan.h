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

struct NormGradientPlan {
  Tensor grad, product;                        // channels last
  Tensor mean, var, gamma, beta;               // contiguous
  std::optional<Tensor> unit;                  // contiguous
  Tensor grad_product, grad_gamma, grad_beta;  // outputs, the first channels last
  int64_t rows, channels;                      // rows: N * spatial
};

NormGradientPlan plan_tandem_norm_count_backward(const Tensor& grad, const NormArguments& arguments);

}  // namespace tandem
