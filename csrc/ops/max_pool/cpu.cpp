// max_pool_spikes on the CPU.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "cpu/aligned_buffer.h"
#include "cpu/parallel.h"
#include "ops/max_pool/cpu_kernels.h"
#include "ops/max_pool/plan.h"
#include "ops/spike_train/cpu_kernels.h"

namespace tandem {

namespace {

std::tuple<Tensor, Tensor> max_pool_spikes(const Tensor& bits, const std::optional<Tensor>& count,
                                           const Sizes& kernel_size, const Sizes& stride, const Sizes& padding,
                                           const Sizes& dilation, bool ceil_mode, int64_t time_steps, bool want_count,
                                           bool radix) {
  const MaxPoolPlan plan = plan_max_pool_spikes(
      {bits, count, kernel_size, stride, padding, dilation, ceil_mode, time_steps, want_count, radix});
  const ConvGeometry& g = plan.geometry;
  MaxPoolArgs args = {};
  args.geometry = &g;
  args.bits = static_cast<const uint8_t*>(plan.bits.const_data_ptr());
  args.planes = plan.bits.size(0);
  args.radix = radix;
  args.count = data_or_null<int32_t>(plan.count);
  args.out = output<uint8_t>(plan.out);
  constexpr int64_t kGrain = 16384;  // bytes to read that pay for a thread
  if (plan.out.numel() > 0) {
    const int64_t taps = pool_taps(g), grain = std::max<int64_t>(1, kGrain / (taps * g.in_channels));
    parallel_ranges(g.pixels_out(), grain, [&](int64_t begin, int64_t end) {
      const AlignedBuffer<uint8_t> scratch("max_pool_spikes", pool_pixels(g) * pool_scratch_bytes(taps));
      kernels<MaxPoolKernels>().max_pool(args, begin, end, scratch.data);
    });
  }
  if (int32_t* const counts = output<int32_t>(plan.out_count)) {
    const int64_t neurons = plan.out_count.numel();
    parallel_ranges(neurons, kGrain, [&](int64_t begin, int64_t end) {
      kernels<SpikeTrainKernels>().add_counts(args.bits, args.planes, neurons, begin, end, args.count, counts);
    });
  }
  return {plan.out, plan.out_count};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tandem_cuda, CPU, m) { m.impl("max_pool_spikes", TORCH_BOX(&max_pool_spikes)); }

}  // namespace tandem
