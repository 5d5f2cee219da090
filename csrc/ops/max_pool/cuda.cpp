// max_pool_spikes on a CUDA device: device guard, current stream, launch. Allocates through torch alone and never
// synchronises, so that it can be captured in a CUDA graph.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cuda/stream.h"
#include "ops/max_pool/max_pool_spikes.cuh"
#include "ops/max_pool/plan.h"

namespace tandem {

namespace {

std::tuple<Tensor, Tensor> max_pool_spikes(const Tensor& bits, const std::optional<Tensor>& count,
                                           const Sizes& kernel_size, const Sizes& stride, const Sizes& padding,
                                           const Sizes& dilation, bool ceil_mode, int64_t time_steps, bool want_count,
                                           bool radix) {
  const char* op = "max_pool_spikes";
  const torch::stable::accelerator::DeviceGuard guard(bits.get_device_index());
  const MaxPoolPlan plan = plan_max_pool_spikes(
      {bits, count, kernel_size, stride, padding, dilation, ceil_mode, time_steps, want_count, radix});
  if (plan.out.numel() == 0) return {plan.out, plan.out_count};
  CudaMaxPoolArgs args = {};
  args.geometry = plan.geometry;
  args.bits = static_cast<const uint8_t*>(plan.bits.const_data_ptr());
  args.count = data_or_null<int32_t>(plan.count);
  args.out = output<uint8_t>(plan.out);
  args.out_count = output<int32_t>(plan.out_count);
  args.planes = plan.bits.size(0);
  args.radix = radix;
  const int64_t rows = pool_counts(args.planes, plan.count.has_value(), want_count);
  const int64_t neurons = plan.geometry.pixels_in() * plan.geometry.in_channels;
  const Tensor scratch = empty_channels_last(op, bits, {checked_numel(op, {rows, neurons})}, ScalarType::Int, 0);
  args.scratch = output<int32_t>(scratch);
  check_launch(op, launch_max_pool_spikes(args, current_stream(op, bits.get_device_index())));
  return {plan.out, plan.out_count};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tandem_cuda, CUDA, m) { m.impl("max_pool_spikes", TORCH_BOX(&max_pool_spikes)); }

}  // namespace tandem
