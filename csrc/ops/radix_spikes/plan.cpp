#include "ops/radix_spikes/plan.h"

#include <cmath>

#include "neuron/arguments.h"

namespace tandem {

namespace {

// Throws unless the thresholds of all steps are positive and finite, also in the dtype of the potential.
void check_thresholds(const char* op, double threshold, int64_t time_steps, ScalarType type) {
  check_threshold(op, threshold);
  const double rounded = type == ScalarType::Float ? static_cast<double>(static_cast<float>(threshold)) : threshold;
  TANDEM_CHECK(rounded > 0, op, "threshold must be positive in the dtype of the potential, got ", threshold);
  const double largest = std::ldexp(rounded, static_cast<int>(time_steps) - 1);
  const bool finite = std::isfinite(type == ScalarType::Float ? static_cast<float>(largest) : largest);
  TANDEM_CHECK(finite, op, "threshold * 2^(time_steps - 1) must be finite in the dtype of the potential, got ",
               threshold, " and ", time_steps, " time steps");
}

}  // namespace

void check_radix_neurons(const char* op, const RadixNeurons& neurons, ScalarType type) {
  check_radix_steps(op, neurons.time_steps);
  check_thresholds(op, neurons.threshold, neurons.time_steps, type);
  TANDEM_CHECK(kInitial.holds(neurons.initial), op, "initial must be ", kInitial.rule, ", got ", neurons.initial);
}

RadixSpikesPlan plan_radix_spikes(const Tensor& current, const std::optional<Tensor>& scale,
                                  const std::optional<Tensor>& bias, const RadixNeurons& neurons, bool want_state) {
  const char* op = "radix_spikes";
  check_floating(op, "current", current);
  check_radix_neurons(op, neurons, current.scalar_type());
  Sizes sizes = sizes_of(current);
  TANDEM_CHECK(sizes.size() >= 2, op, "current must be [N, C, ...], got ", shape(current));
  const int64_t channels = sizes[1], all = checked_numel(op, sizes);
  if (scale) check_like(op, "scale", *scale, current, "current", {channels});
  if (bias) check_like(op, "bias", *bias, current, "current", {channels});
  sizes.insert(sizes.begin(), 1);
  const ScalarType type = current.scalar_type();
  return {
      channels_last(op, current, 1),
      channels_last(op, scale, 0),
      channels_last(op, bias, 0),
      empty_channels_last(op, current, sizes, ScalarType::Byte, 2),
      want_state ? empty_channels_last(op, current, sizes, type, 2) : no_tensor(op, current, type),
      channels,
      all,
  };
}

}  // namespace tandem
