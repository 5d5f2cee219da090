// Tiles of products of bytes: blocks of weights as panels, and where their sums or spikes go.
#pragma once

#include <algorithm>
#include <cstring>

#include "cpu/aligned_buffer.h"
#include "ops/product/cpu_count_kernels.h"
#include "ops/product/cpu_event.h"
#include "ops/product/cpu_pack_weight.h"
#include "ops/product/packed_layout.h"
#include "ops/product/plan.h"
#include "ops/radix_spikes/cpu_fire.h"

namespace tandem {

inline int64_t parts_of(int64_t all, int64_t most) { return (all + most - 1) / std::max<int64_t>(1, most); }

// The outputs of a thread's tiles. Neurons whose threshold is no power of two fire once a tile has stored its sums.
template <class E>
class PanelOutputs {
  const ProductPlan& plan_;
  const uint8_t* const panels_;
  const PackedLayout layout_;
  const RadixNeurons* const neurons_;  // or null
  const bool stores_;
  const AlignedBuffer<float> sums_;
  const AlignedBuffer<uint8_t> bits_;

  void set_neurons_of(CountTileArgs<E>& tile, int64_t at, int64_t channel) const {
    RadixSpikesArgs<float> neurons = {};
    set_neurons<float>(neurons, *neurons_);
    tile.start = neurons.start;
    tile.inverse = exact_inverse(neurons.threshold);
    tile.most = static_cast<float>((1 << neurons.time_steps) - 1);
    tile.joined = joined_of<float>(plan_).at(0, at);
    if (tile.joined.amplitude) tile.joined.amplitude += channel;
    tile.joined_stride = plan_.geometry.out_channels;
    tile.bits = output<uint8_t>(plan_.out_bits) + at;
  }

 public:
  // panels: of all groups and blocks; pixels: of a tile, at most.
  PanelOutputs(const char* op, const ProductPlan& plan, const uint8_t* panels, int64_t pixels)
      : plan_(plan),
        panels_(panels),
        layout_(packed_layout<E>(plan.geometry)),
        neurons_(plan.radix_neurons ? &*plan.radix_neurons : nullptr),
        stores_(neurons_ && exact_inverse(static_cast<float>(neurons_->threshold)) == 0),
        sums_(op, stores_ ? pixels * layout_.block : 0),
        bits_(op, stores_ ? pixels * layout_.block : 0) {}

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
    tile.row_stride = stores_ ? tile.valid : g.out_channels;
    if (neurons_) set_neurons_of(tile, at, channel);
    tile.sum = stores_ ? sums_.data : neurons_ ? nullptr : output<float>(plan_.out_sum) + at;
    if (stores_) tile.bits = nullptr;
    return tile;
  }

  // To be called when a kernel has computed the tile. All neurons fire at once, since a call for each pixel would leave
  // most vectors partly empty.
  void finish(const CountTileArgs<E>& tile, int64_t group, int64_t b, int64_t first) const {
    if (!stores_) return;
    const int64_t stride = plan_.geometry.out_channels;
    uint8_t* const to =
        output<uint8_t>(plan_.out_bits) + first * stride + group * plan_.geometry.group_out() + b * layout_.block;
    const bool dense = tile.valid == stride;
    fire_radix<float>(*neurons_, tile.sum, tile.pixels * tile.valid, dense ? to : bits_.data);
    for (int64_t i = 0; i < tile.pixels && !dense; ++i) {
      std::memcpy(to + i * stride, bits_.data + i * tile.valid, static_cast<size_t>(tile.valid));
    }
  }
};

}  // namespace tandem
