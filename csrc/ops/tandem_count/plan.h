// What tandem_count and its gradient check and allocate, whatever the device.
#pragma once

#include <vector>

#include "ops/spike_train/plan.h"

namespace tandem {

TrainPlan plan_tandem_count(const Tensor& bits, const Tensor& pre_activation, int64_t time_steps, int64_t neuron,
                            const std::vector<double>& parameters, double upper, bool radix);

// All three without gaps and in the same order; grad may be out itself.
struct TandemGradientPlan {
  Tensor grad, pre_activation, out;
};

TandemGradientPlan plan_tandem_count_backward(const Tensor& grad, const Tensor& pre_activation, double threshold,
                                              double upper);

}  // namespace tandem
