// ordered_product on the CPU.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>

#include "ops/ordered_product/plan.h"
#include "ops/product/cpu_pack_weight.h"
#include "ops/product/cpu_tiles.h"

namespace tandem {

namespace {

template <class E>
void run(const char* op, const OrderedPlan& plan, const E* packed) {
  const ConvGeometry& g = plan.geometry;
  const PackedLayout layout = packed_layout<E>(g);
  const int64_t rows = tile_rows(g, layout.block * static_cast<int64_t>(sizeof(float)), g.groups * layout.blocks);
  const int64_t tiles = (g.pixels_out() + rows - 1) / rows;
  parallel_tasks(g.groups * layout.blocks, tiles, [&](const auto& next) {
    const AlignedBuffer<float> scratch(op, rows * layout.block);
    for (int64_t task = next(); task >= 0; task = next()) {
      const int64_t b = task / tiles % layout.blocks, group = task / tiles / layout.blocks;
      OrderedTileArgs<E> tile = {};
      tile.geometry = &g;
      tile.input = static_cast<const float*>(plan.input.const_data_ptr());
      tile.weight = packed + (group * layout.blocks + b) * layout.block_elements();
      tile.block = layout.block;
      tile.valid = std::min(layout.block, g.group_out() - b * layout.block);
      tile.group = group;
      tile.row_begin = task % tiles * rows;
      tile.row_end = std::min(g.pixels_out(), tile.row_begin + rows);
      tile.out = output<float>(plan.out) + group * g.group_out() + b * layout.block;
      tile.scratch = scratch.data;
      kernels().ordered_tile<E>()(tile);
    }
  });
}

Tensor ordered_product(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& packed,
                       const Sizes& stride, const Sizes& padding, const Sizes& dilation, int64_t groups,
                       const std::optional<Tensor>& master, const std::optional<Tensor>& unit) {
  const char* op = "ordered_product";
  const OrderedPlan plan = plan_ordered_product(input, weight, packed, stride, padding, dilation, groups);
  check_master(op, weight, master, unit);
  if (plan.geometry.pixels_out() == 0) return plan.out;
  dispatch_integers(weight.scalar_type(), [&](auto element) {
    using E = decltype(element);
    if (packed) check_packed<E>(op, "packed", *packed, weight, plan.geometry);
    const Tensor arranged = packed ? *packed : packed_weight(op, weight, plan.geometry);
    run(op, plan, static_cast<const E*>(arranged.const_data_ptr()));
  });
  return plan.out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tandem_cuda, CPU, m) { m.impl("ordered_product", TORCH_BOX(&ordered_product)); }

}  // namespace tandem
