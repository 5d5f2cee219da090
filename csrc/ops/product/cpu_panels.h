// Tiles of products of bytes: blocks of weights as panels, and where their sums or spikes go.
#pragma once

#include <algorithm>

#include "ops/product/cpu_count_kernels.h"
#include "ops/product/cpu_event.h"
#include "ops/product/cpu_pack_weight.h"
#include "ops/product/packed_layout.h"
#include "ops/product/plan.h"
#include "ops/radix_spikes/plan.h"

namespace tandem {

inline int64_t parts_of(int64_t all, int64_t most) { return (all + most - 1) / std::max<int64_t>(1, most); }

// The outputs of tiles.
template <class E>
class PanelOutputs {
  const ProductPlan& plan_;
  const uint8_t* const panels_;
  const PackedLayout layout_;
  RadixFiring firing_ = {};  // of the plan's neurons, if it has any

  void set_neurons_of(CountTileArgs<E>& tile, int64_t at, int64_t channel) const {
    tile.firing = firing_;
    tile.joined = joined_of<float>(plan_).at(0, at);
    if (tile.joined.amplitude) tile.joined.amplitude += channel;
    tile.joined_stride = plan_.geometry.out_channels;
    tile.bits = output<uint8_t>(plan_.out_bits) + at;
  }

 public:
  // panels: of all groups and blocks.
  PanelOutputs(const ProductPlan& plan, const uint8_t* panels)
      : plan_(plan), panels_(panels), layout_(packed_layout<E>(plan.geometry)) {
    if (!plan.radix_neurons) return;
    RadixSpikesArgs<float> neurons = {};
    set_neurons<float>(neurons, *plan.radix_neurons);
    firing_ = firing_at_once(neurons);
  }

  // Of a block of outputs and the output pixels first..first+pixels-1 of all samples, without inputs.
  CountTileArgs<E> tile(int64_t group, int64_t b, int64_t first, int64_t pixels) const {
    const ConvGeometry& g = plan_.geometry;
    const int64_t channel = group * g.group_out() + b * layout_.block, at = first * g.out_channels + channel;
    CountTileArgs<E> tile = {};
    tile.panel = panels_ + (group * layout_.blocks + b) * panel_bytes<E>(g);
    const PanelHolds& holds = holds_of<E>(g, tile.panel);
    tile.sizes = PanelSizes(g, holds.paired_inputs);
    tile.paired_outputs = holds.paired_outputs;
    tile.block = layout_.block / (holds.paired_outputs ? 2 : 1);
    tile.valid = std::min(layout_.block, g.group_out() - b * layout_.block);
    tile.pixels = pixels;
    tile.scale = plan_.scale ? data_or_null<float>(plan_.scale) + channel : nullptr;
    tile.bias = plan_.bias ? data_or_null<float>(plan_.bias) + channel : nullptr;
    tile.row_stride = g.out_channels;
    if (plan_.radix_neurons) set_neurons_of(tile, at, channel);
    tile.sum = plan_.radix_neurons ? nullptr : output<float>(plan_.out_sum) + at;
    return tile;
  }
};

}  // namespace tandem
