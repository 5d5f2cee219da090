// integrate_and_fire on the CPU: threads and kernel choice.
#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "ops/neuron_loop/cpu_run_neurons.h"
#include "ops/neuron_loop/plan.h"

namespace tandem {

namespace {

template <class T>
void run(const IntegrateAndFirePlan& plan, int64_t time_steps) {
  IntegrateAndFireArgs<T> args = {};
  args.current = static_cast<const T*>(plan.current.const_data_ptr());
  args.current_stride = plan.neurons;
  args.scale = data_or_null<T>(plan.scale);
  args.bias = data_or_null<T>(plan.bias);
  args.initial = given_state<T>(plan.initial);
  args.bits = static_cast<uint8_t*>(plan.bits.mutable_data_ptr());
  args.bits_stride = plan.neurons;
  args.sum = plan.sum.numel() ? static_cast<T*>(plan.sum.mutable_data_ptr()) : nullptr;
  args.state = wanted_state<T>(plan.state);
  args.channels = plan.channels;
  args.time_steps = time_steps;
  args.mode = plan.mode;
  args.neuron = plan.neuron;
  run_neurons(args, plan.neurons);
}

std::tuple<Tensor, Tensor, Tensor> integrate_and_fire(const Tensor& current, const std::optional<Tensor>& scale,
                                                      const std::optional<Tensor>& bias,
                                                      const std::optional<Tensor>& state, int64_t time_steps,
                                                      int64_t mode, int64_t neuron,
                                                      const std::vector<double>& parameters, bool want_sum,
                                                      bool want_state) {
  const IntegrateAndFirePlan plan =
      plan_integrate_and_fire(current, scale, bias, state, time_steps, mode, neuron, parameters, want_sum, want_state);
  if (plan.neurons > 0) {
    dispatch_floating("integrate_and_fire", current.scalar_type(),
                      [&](auto type) { run<decltype(type)>(plan, time_steps); });
  }
  return {plan.bits, plan.sum, plan.state};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tandem_cuda, CPU, m) { m.impl("integrate_and_fire", TORCH_BOX(&integrate_and_fire)); }

}  // namespace tandem
