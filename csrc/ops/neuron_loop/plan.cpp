#include "ops/neuron_loop/plan.h"

namespace tandem {

IntegrateAndFirePlan plan_integrate_and_fire(const Tensor& current, const std::optional<Tensor>& scale,
                                             const std::optional<Tensor>& bias, const std::optional<Tensor>& state,
                                             int64_t time_steps, int64_t mode, int64_t neuron,
                                             const std::vector<double>& parameters, bool want_sum, bool want_state) {
  const char* op = "integrate_and_fire";
  TANDEM_CHECK(mode >= 0 && mode < kCurrentModes, op,
               "mode must be 0 (constant), 1 (impulse), 2 (series) or 3 (once), got ", mode);
  check_floating(op, "current", current);
  check_time_steps(op, time_steps);
  const Neuron model = checked_neuron(op, neuron, parameters, current.scalar_type());
  const bool series = static_cast<CurrentMode>(mode) == CurrentMode::kSeries;
  Sizes neurons = sizes_of(current);
  const char* expected = series ? "[T, N, C, ...]" : "[N, C, ...]";
  TANDEM_CHECK(neurons.size() >= (series ? 3U : 2U), op, "current must be ", expected, ", got ", shape(current));
  if (series) {
    TANDEM_CHECK(neurons[0] == time_steps, op, "current must hold ", time_steps, " time steps, got ", shape(current));
    neurons.erase(neurons.begin());
  }
  const int64_t channels = neurons[1];
  if (scale) check_like(op, "scale", *scale, current, "current", {channels});
  if (bias) check_like(op, "bias", *bias, current, "current", {channels});
  const Sizes states = state_sizes(model, neurons);
  if (state) check_like(op, "state", *state, current, "current", states);

  Sizes bit_sizes = neurons;
  bit_sizes.insert(bit_sizes.begin(), planes_for(time_steps));
  checked_numel(op, bit_sizes);
  const ScalarType type = current.scalar_type();
  IntegrateAndFirePlan plan = {
      channels_last(op, current, series ? 2 : 1),
      channels_last(op, scale, 0),
      channels_last(op, bias, 0),
      channels_last(op, state, 2),
      empty_channels_last(op, current, bit_sizes, ScalarType::Byte, 2),
      want_sum ? empty_channels_last(op, current, neurons, type, 1) : no_tensor(op, current, type),
      want_state ? empty_channels_last(op, current, states, type, 2) : no_tensor(op, current, type),
      channels,
      checked_numel(op, neurons),
      static_cast<CurrentMode>(mode),
      model,
  };
  return plan;
}

}  // namespace tandem
