// integrate_and_fire on a CUDA device: device guard, current stream, launch. Allocates through torch alone and never
// synchronises, so that it can be captured in a CUDA graph.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "cuda/stream.h"
#include "ops/neuron_loop/integrate_and_fire.cuh"
#include "ops/neuron_loop/plan.h"

namespace tandem {

namespace {

std::tuple<Tensor, Tensor, Tensor> integrate_and_fire(const Tensor& current, const std::optional<Tensor>& scale,
                                                      const std::optional<Tensor>& bias,
                                                      const std::optional<Tensor>& state, int64_t time_steps,
                                                      int64_t mode, int64_t neuron,
                                                      const std::vector<double>& parameters, bool want_sum,
                                                      bool want_state) {
  const char* op = "integrate_and_fire";
  const torch::stable::accelerator::DeviceGuard guard(current.get_device_index());
  const IntegrateAndFirePlan plan =
      plan_integrate_and_fire(current, scale, bias, state, time_steps, mode, neuron, parameters, want_sum, want_state);
  const cudaStream_t stream = current_stream(op, current.get_device_index());
  dispatch_floating(op, current.scalar_type(), [&](auto type) {
    using T = decltype(type);
    CudaIntegrateAndFireArgs<T> args = {};
    args.current = static_cast<const T*>(plan.current.const_data_ptr());
    args.scale = data_or_null<T>(plan.scale);
    args.bias = data_or_null<T>(plan.bias);
    args.initial = given_state<T>(plan.initial);
    args.bits = output<uint8_t>(plan.bits);
    args.sum = output<T>(plan.sum);
    args.state = wanted_state<T>(plan.state);
    args.neurons = plan.neurons;
    args.channels = plan.channels;
    args.time_steps = time_steps;
    args.mode = plan.mode;
    args.neuron = plan.neuron;
    check_launch(op, launch_integrate_and_fire(args, stream));
  });
  return {plan.bits, plan.sum, plan.state};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tandem_cuda, CUDA, m) { m.impl("integrate_and_fire", TORCH_BOX(&integrate_and_fire)); }

}  // namespace tandem
