// pack_spikes, unpack_spikes, spike_count, tandem_count and tandem_count_backward on a CUDA device: device guard,
// current stream, launch. Allocates through torch alone and never synchronises, so that it can be captured in a CUDA
// graph.
#include "cuda/spike_train.cuh"

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <vector>

#include "common/spike_train_plan.h"
#include "cuda/stream.h"

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

Tensor count(const char* op, const TrainPlan& plan, int64_t time_steps) {
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
    check_launch(op, launch_spike_count(args, stream));
  });
  return plan.out;
}

Tensor spike_count(const Tensor& bits, ScalarType dtype) {
  const DeviceGuard guard(bits.get_device_index());
  return count("spike_count", plan_spike_count(bits, dtype), bits.size(0) * kStepsPerPlane);
}

Tensor tandem_count(const Tensor& bits, const Tensor& pre_activation, int64_t time_steps, int64_t neuron,
                    const std::vector<double>& parameters, double upper) {
  const DeviceGuard guard(bits.get_device_index());
  const TrainPlan plan = plan_tandem_count(bits, pre_activation, time_steps, neuron, parameters, upper);
  return count("tandem_count", plan, time_steps);
}

Tensor tandem_count_backward(const Tensor& grad, const Tensor& pre_activation, double threshold, double upper) {
  const char* op = "tandem_count_backward";
  const DeviceGuard guard(pre_activation.get_device_index());
  const TandemGradientPlan plan = plan_tandem_count_backward(grad, pre_activation, threshold, upper);
  if (plan.out.numel() == 0) return plan.out;
  const cudaStream_t stream = current_stream(op, pre_activation.get_device_index());
  dispatch_floating(op, plan.out.scalar_type(), [&](auto type) {
    using T = decltype(type);
    CudaTandemCountBackwardArgs<T> args = {};
    args.grad = static_cast<const T*>(plan.grad.const_data_ptr());
    args.pre_activation = static_cast<const T*>(plan.pre_activation.const_data_ptr());
    args.out = static_cast<T*>(plan.out.mutable_data_ptr());
    args.neurons = plan.out.numel();
    args.threshold = static_cast<T>(threshold);
    args.upper = static_cast<T>(upper);
    check_launch(op, launch_tandem_count_backward(args, stream));
  });
  return plan.out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tandem_cuda, CUDA, m) {
  m.impl("pack_spikes", TORCH_BOX(&pack_spikes));
  m.impl("unpack_spikes", TORCH_BOX(&unpack_spikes));
  m.impl("spike_count", TORCH_BOX(&spike_count));
  m.impl("tandem_count", TORCH_BOX(&tandem_count));
  m.impl("tandem_count_backward", TORCH_BOX(&tandem_count_backward));
}

}  // namespace tandem
