// pack_spikes, unpack_spikes and spike_count on a CUDA device: device guard, current stream, launch. Allocates through
// torch alone and never synchronises, so that it can be captured in a CUDA graph.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "cuda/stream.h"
#include "ops/spike_train/cuda_count.h"

namespace tandem {

namespace {

using torch::stable::accelerator::DeviceGuard;

Tensor pack_spikes(const Tensor& spikes) {
  const char* op = "pack_spikes";
  const DeviceGuard guard(spikes.get_device_index());
  const TrainPlan plan = plan_pack_spikes(spikes);
  if (plan.neurons == 0) return plan.out;
  const cudaStream_t stream = current_stream(op, spikes.get_device_index());
  dispatch_dense(op, "spikes", spikes.scalar_type(), [&](auto type) {
    using T = decltype(type);
    CudaPackSpikesArgs<T> args = {};
    args.dense = static_cast<const T*>(plan.in.const_data_ptr());
    args.bits = static_cast<uint8_t*>(plan.out.mutable_data_ptr());
    args.time_steps = spikes.size(0);
    args.neurons = plan.neurons;
    check_launch(op, launch_pack_spikes(args, stream));
  });
  return plan.out;
}

Tensor unpack_spikes(const Tensor& bits, int64_t time_steps, ScalarType dtype) {
  const char* op = "unpack_spikes";
  const DeviceGuard guard(bits.get_device_index());
  const TrainPlan plan = plan_unpack_spikes(bits, time_steps, dtype);
  if (plan.neurons == 0) return plan.out;
  const cudaStream_t stream = current_stream(op, bits.get_device_index());
  dispatch_dense(op, "dtype", dtype, [&](auto type) {
    using T = decltype(type);
    CudaUnpackSpikesArgs<T> args = {};
    args.bits = static_cast<const uint8_t*>(plan.in.const_data_ptr());
    args.dense = static_cast<T*>(plan.out.mutable_data_ptr());
    args.time_steps = time_steps;
    args.neurons = plan.neurons;
    check_launch(op, launch_unpack_spikes(args, stream));
  });
  return plan.out;
}

Tensor spike_count(const Tensor& bits, ScalarType dtype) {
  const DeviceGuard guard(bits.get_device_index());
  return run_count("spike_count", plan_spike_count(bits, dtype), bits.size(0) * kStepsPerPlane, false);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tandem_cuda, CUDA, m) {
  m.impl("pack_spikes", TORCH_BOX(&pack_spikes));
  m.impl("unpack_spikes", TORCH_BOX(&unpack_spikes));
  m.impl("spike_count", TORCH_BOX(&spike_count));
}

}  // namespace tandem
