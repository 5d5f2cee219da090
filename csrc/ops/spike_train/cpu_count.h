// Spikes per neuron, or values of radix spikes, on the CPU: threads and kernel choice.
#pragma once

#include <algorithm>

#include "cpu/parallel.h"
#include "ops/spike_train/cpu_kernels.h"
#include "ops/spike_train/plan.h"

namespace tandem {

inline Tensor run_count(const char* op, const TrainPlan& plan, bool radix) {
  dispatch_floating(op, plan.out.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const uint8_t* from = static_cast<const uint8_t*>(plan.in.const_data_ptr());
    T* to = static_cast<T*>(plan.out.mutable_data_ptr());
    const int64_t planes = plan.in.size(0);
    const SpikeTrainKernels& k = kernels<SpikeTrainKernels>();
    parallel_ranges(plan.neurons, 16384, [&](int64_t begin, int64_t end) {
      if (radix) {
        std::copy(from + begin, from + end, to + begin);
      } else {
        k.spike_count(from, planes, plan.neurons, begin, end, to);
      }
    });
  });
  return plan.out;
}

}  // namespace tandem
