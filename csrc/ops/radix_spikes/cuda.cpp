// radix_spikes on a CUDA device: device guard, current stream, launch. Allocates through torch alone and never
// synchronises, so that it can be captured in a CUDA graph.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cuda/stream.h"
#include "ops/radix_spikes/plan.h"
#include "ops/radix_spikes/radix_spikes.cuh"

namespace tandem {

namespace {

std::tuple<Tensor, Tensor> radix_spikes(const Tensor& current, const std::optional<Tensor>& scale,
                                        const std::optional<Tensor>& bias, int64_t time_steps, double threshold,
                                        double initial, bool want_state) {
  const char* op = "radix_spikes";
  const torch::stable::accelerator::DeviceGuard guard(current.get_device_index());
  const RadixNeurons neurons = {time_steps, threshold, initial};
  const RadixSpikesPlan plan = plan_radix_spikes(current, scale, bias, neurons, want_state);
  if (plan.neurons == 0) return {plan.bits, plan.state};
  const cudaStream_t stream = current_stream(op, current.get_device_index());
  dispatch_floating(op, current.scalar_type(), [&](auto type) {
    using T = decltype(type);
    CudaRadixSpikesArgs<T> args = {};
    set_arguments<T>(args, plan, neurons);
    args.neurons = plan.neurons;
    check_launch(op, launch_radix_spikes(args, stream));
  });
  return {plan.bits, plan.state};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tandem_cuda, CUDA, m) { m.impl("radix_spikes", TORCH_BOX(&radix_spikes)); }

}  // namespace tandem
