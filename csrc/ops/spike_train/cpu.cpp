// pack_spikes, unpack_spikes and spike_count on the CPU: dense trains at the edges, bit planes within.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>

#include "cpu/parallel.h"
#include "ops/spike_train/cpu_count.h"
#include "ops/spike_train/cpu_kernels.h"

namespace tandem {

namespace {

constexpr int64_t kGrain = 16384;

Tensor pack_spikes(const Tensor& spikes) {
  const char* op = "pack_spikes";
  const TrainPlan plan = plan_pack_spikes(spikes);
  const int64_t time_steps = spikes.size(0);
  dispatch_dense(op, "spikes", spikes.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const T* dense = static_cast<const T*>(plan.in.const_data_ptr());
    uint8_t* out = static_cast<uint8_t*>(plan.out.mutable_data_ptr());
    std::atomic<bool> binary{true};
    parallel_ranges(plan.neurons, kGrain, [&](int64_t begin, int64_t end) {
      if (!kernels<SpikeTrainKernels>().pack(dense, time_steps, plan.neurons, begin, end, out)) binary = false;
    });
    if (!binary) {
      const T* odd = std::find_if(dense, dense + plan.in.numel(), [](T x) { return !(x == 0 || x == 1); });
      fail(op, "spikes must be 0 or 1, got ", static_cast<double>(*odd));
    }
  });
  return plan.out;
}

Tensor unpack_spikes(const Tensor& bits, int64_t time_steps, ScalarType dtype) {
  const TrainPlan plan = plan_unpack_spikes(bits, time_steps, dtype);
  dispatch_dense("unpack_spikes", "dtype", dtype, [&](auto type) {
    using T = decltype(type);
    const uint8_t* from = static_cast<const uint8_t*>(plan.in.const_data_ptr());
    T* to = static_cast<T*>(plan.out.mutable_data_ptr());
    parallel_ranges(plan.neurons, kGrain, [&](int64_t begin, int64_t end) {
      kernels<SpikeTrainKernels>().unpack(from, plan.neurons, time_steps, plan.neurons, begin, end, to);
    });
  });
  return plan.out;
}

Tensor spike_count(const Tensor& bits, ScalarType dtype) {
  return run_count("spike_count", plan_spike_count(bits, dtype), false);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tandem_cuda, CPU, m) {
  m.impl("pack_spikes", TORCH_BOX(&pack_spikes));
  m.impl("unpack_spikes", TORCH_BOX(&unpack_spikes));
  m.impl("spike_count", TORCH_BOX(&spike_count));
}

}  // namespace tandem
