// Event-driven product fused with the neuron loop: rows of weights are added for the inputs that spike, nothing else.
//
// The features of a neuron (taps x channels) fall into chunks of at most 256. A tile of output pixels is swept with one
// chunk of weights at a time, which stays in the inner caches while every pixel and step of the tile picks its rows
// from it; the accumulators [pixel, step, channel] stay in L2. Three stages:
// - a unit lists the spikes of some channels of one input pixel, for each of 8 steps;
// - a visit is one (pixel, step) of a tile that has spikes in a chunk, with the list of the rows to add. The visits of
//   a chunk are sorted by the length of their lists: the loop over a list is short, its mispredicted end costs more
//   than its additions, and equal lengths in a row are predicted. Slots and lists are written down in that order, once
//   for all output channels, so that the sweep reads memory from one end to the other;
// - the sweep makes the visits, for each block of output channels anew.
// Where the weights are few, a window's lists are made just before they are added instead (window_lists.inl.h).
//
// 8-bit weights are summed in 16 bits, twice the lanes of a float. A visit that could overflow the sums of its slot
// first moves them to 32 bits, so that the sums are exact whatever the weights, the fan-in and the rate.
#pragma once

#include "core/bit_planes.h"
#include "cpu/simd.inl.h"
#include "ops/product/cpu_event_kernels.h"
#include "ops/product/event_rows.inl.h"
#include "ops/product/event_sinks.inl.h"
#include "ops/product/event_tables.inl.h"

namespace tandem::TANDEM_ISA {

// acc[row, step, :] and `wide` = the sums of a plane. Returns whether `wide` holds any.
template <class E, class T, int kVectors>
bool accumulate_plane(const EventTileArgs<E, T>& a, int64_t plane, int64_t steps, SumOf<E>* acc, int32_t* wide) {
  using A = SumOf<E>;
  constexpr int64_t block = kVectors * kLanes<A>;
  if (a.source.spikes) return accumulate_windows<E, T, kVectors>(a, plane, steps, acc, wide);
  const int64_t sums = (a.row_end - a.row_begin) * steps * block;
  bool wide_too = false;
  if constexpr (sizeof(A) == 2) {
    wide_too = a.source.words
                   ? a.geometry->features() > kChunkRows
                   : a.source.widened[(plane * a.geometry->groups + a.group) * a.source.tiles + a.source.tile] != 0;
  }
  std::memset(acc, 0, static_cast<size_t>(sums) * sizeof(A));
  if (wide_too) std::memset(wide, 0, static_cast<size_t>(sums) * sizeof(int32_t));
  if constexpr (std::is_integral_v<E>) {
    if (a.source.words) {
      accumulate_words<E, T, kVectors>(a, plane, steps, acc, wide, static_cast<Vec<A>*>(a.table));
      return wide_too;
    }
  }
  accumulate<E, T, kVectors>(a, plane, acc, wide);
  return wide_too;
}

// Model: of the neurons that fire, or void for a count product.
template <class E, class T, int kVectors, class Model>
void event_tile_of(const EventTileArgs<E, T>& a, [[maybe_unused]] const Model* model) {
  using A = SumOf<E>;
  constexpr int64_t lanes = kLanes<T>, block = kVectors * kLanes<A>;
  constexpr bool kFires = !std::is_void_v<Model>;
  using C = Carried<E, T>;
  const int64_t rows = a.row_end - a.row_begin;
  T* sum = static_cast<T*>(a.scratch);                       // of currents
  [[maybe_unused]] C* counted = static_cast<C*>(a.scratch);  // of a count product
  [[maybe_unused]] State<T> carried = {reinterpret_cast<T*>(counted + rows * block), rows * block};
  A* acc = reinterpret_cast<A*>(carried.data);
  if constexpr (kFires) acc = reinterpret_cast<A*>(carried.data + Model::kStates * carried.stride);
  int32_t* wide = reinterpret_cast<int32_t*>(acc + rows * kStepsPerPlane * block);  // of 16-bit sums alone
  if constexpr (kFires) {
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t at = (a.row_begin + row) * a.row_stride;
      for (int64_t c = 0; c < block; c += lanes) {
        const bool real = c < a.valid;
        Vec<T> state[Model::kStates];
        first_state<T>(*model, real ? a.sink.initial : State<const T>{}, at + c, a.valid - c, state);
        store_state<T>(carried, row * block + c, state, lanes);
        store(sum + row * block + c, real && a.sink.add_sum ? load(a.sink.sum + at + c, a.valid - c) : Vec<T>{}, lanes);
      }
    }
  } else {
    std::memset(counted, 0, static_cast<size_t>(rows * block) * sizeof(C));
  }
  for (int64_t plane = 0; plane * kStepsPerPlane < a.steps; ++plane) {
    const int64_t steps = steps_in_plane(plane, a.steps);
    const bool wide_too = accumulate_plane<E, T, kVectors>(a, plane, steps, acc, wide);
    const Sums<A> sums = {acc, wide_too ? wide : nullptr};
    if constexpr (kFires) {
      constexpr int kTogether = block / lanes < kSpikeVectors ? 1 : kSpikeVectors;
      if (a.sink.joined) {
        fire<E, T, 1, true, false>(a, *model, plane, steps, sums, carried, sum);  // the rarer case, so short code
      } else if (a.sink.scale && a.sink.bias && !a.sink.sum && !wide_too) {
        fire<E, T, kTogether, false, true>(a, *model, plane, steps, sums, carried, sum);
      } else {
        fire<E, T, kTogether, false, false>(a, *model, plane, steps, sums, carried, sum);
      }
    } else {
      weigh_digits<E, T>(a, plane, steps, sums, counted);
    }
  }
  if (!a.sink.sum && !a.sink.state) return;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t at = (a.row_begin + row) * a.row_stride;
    for (int64_t c = 0; c < a.valid; c += lanes) {
      const int64_t left = a.valid - c;
      Vec<T> total;
      if constexpr (kFires) {
        total = load(sum + row * block + c, lanes);
      } else {
        total = __builtin_convertvector(*reinterpret_cast<typename LanesOf<T, C>::type*>(counted + row * block + c),
                                        Vec<T>);
      }
      if constexpr (!kFires) {
        if (a.sink.scale) total *= load(a.sink.scale + c, left);
        if (a.sink.bias) total += load(a.sink.bias + c, left);
      }
      if (a.sink.sum) store(a.sink.sum + at + c, total, left);
      if constexpr (kFires) {
        if (!a.sink.state) continue;
        Vec<T> state[Model::kStates];
        load_state<T>(read_only(carried), row * block + c, lanes, state);
        store_state<T>(a.sink.state, at + c, state, left);
      }
    }
  }
}

// Currents alone.
template <class E, class T, int kVectors>
void event_currents(const EventTileArgs<E, T>& a) {
  using A = SumOf<E>;
  const int64_t slots = (a.row_end - a.row_begin) * kStepsPerPlane;
  A* const acc = static_cast<A*>(a.scratch);
  auto* const wide = reinterpret_cast<int32_t*>(acc + slots * kVectors * kLanes<A>);  // of 16-bit sums alone
  for (int64_t plane = 0; plane * kStepsPerPlane < a.steps; ++plane) {
    const int64_t steps = steps_in_plane(plane, a.steps);
    const bool wide_too = accumulate_plane<E, T, kVectors>(a, plane, steps, acc, wide);
    write_currents(a, plane, steps, Sums<A>{acc, wide_too ? wide : nullptr});
  }
}

// kVectors: vectors in a row of weights.
template <int kVectors, class E, class T>
void event_tile_in(const EventTileArgs<E, T>& a) {
  if (a.sink.currents) {
    event_currents<E, T, kVectors>(a);
  } else if (a.sink.bits == nullptr) {
    if constexpr (std::is_integral_v<E>) event_tile_of<E, T, kVectors, void>(a, nullptr);
  } else {
    visit_model<Simd<T>>(a.sink.neuron, [&](const auto& model) { event_tile_of<E, T, kVectors>(a, &model); });
  }
}

template <class E, class T>
void event_tile(const EventTileArgs<E, T>& a) {
  const int64_t row_bytes = a.block * static_cast<int64_t>(sizeof(SumOf<E>));
  if (row_bytes == 256) {
    event_tile_in<256 / kVectorBytes>(a);
  } else if (row_bytes == 128) {
    event_tile_in<128 / kVectorBytes>(a);
  } else {
    event_tile_in<64 / kVectorBytes>(a);
  }
}

}  // namespace tandem::TANDEM_ISA
