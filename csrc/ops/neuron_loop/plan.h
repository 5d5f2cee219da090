// What integrate_and_fire checks and allocates, whatever the device.
#pragma once

#include <optional>
#include <vector>

#include "core/tensors.h"
#include "neuron/arguments.h"

namespace tandem {

struct IntegrateAndFirePlan {
  Tensor current;                 // channels last
  std::optional<Tensor> scale;    // contiguous
  std::optional<Tensor> bias;     // contiguous
  std::optional<Tensor> initial;  // state, channels last
  Tensor bits, sum, state;        // outputs, channels last; shape [0] where not wanted
  int64_t channels, neurons;      // neurons = N * C * spatial
  CurrentMode mode;
  Neuron neuron;
};

IntegrateAndFirePlan plan_integrate_and_fire(const Tensor& current, const std::optional<Tensor>& scale,
                                             const std::optional<Tensor>& bias, const std::optional<Tensor>& state,
                                             int64_t time_steps, int64_t mode, int64_t neuron,
                                             const std::vector<double>& parameters, bool want_sum, bool want_state);

}  // namespace tandem
