// radix_spikes on the CPU: threads and kernel choice.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "ops/neuron_loop/cpu_run_neurons.h"
#include "ops/radix_spikes/cpu_kernels.h"
#include "ops/radix_spikes/plan.h"

namespace tandem {

namespace {

static_assert(kRadixBlock <= kNeuronBlock);

std::tuple<Tensor, Tensor> radix_spikes(const Tensor& current, const std::optional<Tensor>& scale,
                                        const std::optional<Tensor>& bias, int64_t time_steps, double threshold,
                                        double initial, bool want_state) {
  const RadixNeurons neurons = {time_steps, threshold, initial};
  const RadixSpikesPlan plan = plan_radix_spikes(current, scale, bias, neurons, want_state);
  if (plan.neurons == 0) return {plan.bits, plan.state};
  dispatch_floating("radix_spikes", current.scalar_type(), [&](auto type) {
    using T = decltype(type);
    RadixSpikesArgs<T> args = {};
    set_arguments<T>(args, plan, neurons);
    const RepeatedChannels<T> repeated(args);
    parallel_ranges(plan.neurons, 8192,
                    [&](int64_t begin, int64_t end) { kernels<RadixSpikesKernels>().radix_spikes(args, begin, end); });
  });
  return {plan.bits, plan.state};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tandem_cuda, CPU, m) { m.impl("radix_spikes", TORCH_BOX(&radix_spikes)); }

}  // namespace tandem
