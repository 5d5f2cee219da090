// Spikes per neuron, or values of radix spikes, on the current CUDA device.
#pragma once

#include "cuda/stream.h"
#include "ops/spike_train/plan.h"
#include "ops/spike_train/spike_train.cuh"

namespace tandem {

inline Tensor run_count(const char* op, const TrainPlan& plan, int64_t time_steps, bool radix) {
  if (plan.neurons == 0) return plan.out;
  const cudaStream_t stream = current_stream(op, plan.out.get_device_index());
  dispatch_floating(op, plan.out.scalar_type(), [&](auto type) {
    using T = decltype(type);
    CudaSpikeCountArgs<T> args = {};
    args.bits = static_cast<const uint8_t*>(plan.in.const_data_ptr());
    args.count = static_cast<T*>(plan.out.mutable_data_ptr());
    args.planes = plan.in.size(0);
    args.neurons = plan.neurons;
    args.past = bits_past(time_steps);
    args.radix = radix;
    check_launch(op, launch_spike_count(args, stream));
  });
  return plan.out;
}

}  // namespace tandem
