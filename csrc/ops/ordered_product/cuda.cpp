// ordered_product on a CUDA device: device guard, current stream, launch. Allocates through torch alone and never
// synchronises, so that it can be captured in a CUDA graph.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <optional>
#include <type_traits>

#include "cuda/stream.h"
#include "ops/ordered_product/ordered_product.cuh"
#include "ops/ordered_product/plan.h"
#include "ops/product/cuda_pack_weight.h"

namespace tandem {

namespace {

Tensor ordered_product(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& packed,
                       const Sizes& stride, const Sizes& padding, const Sizes& dilation, int64_t groups,
                       const std::optional<Tensor>& master, const std::optional<Tensor>& unit) {
  const char* op = "ordered_product";
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  const OrderedPlan plan = plan_ordered(op, input, weight, packed, stride, padding, dilation, groups);
  check_master(op, weight, master, unit);
  const Tensor out = empty_sums(op, plan);
  if (plan.geometry.pixels_out() == 0) return out;
  dispatch_integers(weight.scalar_type(), [&](auto element) {
    using E = decltype(element);
    const Tensor arranged = packed_on_device<E>(op, weight, packed, plan.geometry);
    const PackedLayout layout = packed_layout<E>(plan.geometry);
    CudaOrderedArgs<E> args = {};
    args.geometry = plan.geometry;
    args.input = static_cast<const float*>(plan.input.const_data_ptr());
    args.weight = static_cast<const E*>(arranged.const_data_ptr());
    args.block = layout.block, args.blocks = layout.blocks;
    args.out = output<float>(out);
    check_launch(op, launch_ordered_product(args, current_stream(op, input.get_device_index())));
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tandem_cuda, CUDA, m) { m.impl("ordered_product", TORCH_BOX(&ordered_product)); }

}  // namespace tandem
