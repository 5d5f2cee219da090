// tandem_count and its gradient on a CUDA device. Allocates through torch alone and never synchronises, so that it can
// be captured in a CUDA graph.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <vector>

#include "ops/spike_train/cuda_count.h"
#include "ops/tandem_count/plan.h"

namespace tandem {

namespace {

using torch::stable::accelerator::DeviceGuard;

Tensor tandem_count(const Tensor& bits, const Tensor& pre_activation, int64_t time_steps, int64_t neuron,
                    const std::vector<double>& parameters, double upper, bool radix) {
  const DeviceGuard guard(bits.get_device_index());
  const TrainPlan plan = plan_tandem_count(bits, pre_activation, time_steps, neuron, parameters, upper, radix);
  return run_count("tandem_count", plan, time_steps, radix);
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
  m.impl("tandem_count", TORCH_BOX(&tandem_count));
  m.impl("tandem_count_backward", TORCH_BOX(&tandem_count_backward));
}

}  // namespace tandem
