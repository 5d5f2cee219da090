// quantise_weight on a CUDA device. Allocates through torch alone and never synchronises, so that it can be captured in
// a CUDA graph.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cuda/stream.h"
#include "ops/quantise_weight/plan.h"
#include "ops/quantise_weight/quantise_weight.cuh"

namespace tandem {

namespace {

std::tuple<Tensor, Tensor> quantise_weight(const Tensor& weight, int64_t largest) {
  const char* op = "quantise_weight";
  const torch::stable::accelerator::DeviceGuard guard(weight.get_device_index());
  const QuantisePlan plan = plan_quantise_weight(weight, largest);
  const cudaStream_t stream = current_stream(op, weight.get_device_index());
  dispatch_integers(plan, [&](auto type) {
    QuantiseArgs<decltype(type)> args = {};
    args.weight = static_cast<const float*>(plan.weight.const_data_ptr());
    args.integers = static_cast<decltype(type)*>(plan.integers.mutable_data_ptr());
    args.scale = static_cast<float*>(plan.scale.mutable_data_ptr());
    args.channels = plan.channels, args.size = plan.size;
    args.largest = static_cast<float>(largest);
    check_launch(op, launch_quantise_weight(args, stream));
  });
  return {plan.integers, plan.scale};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tandem_cuda, CUDA, m) { m.impl("quantise_weight", TORCH_BOX(&quantise_weight)); }

}  // namespace tandem
