// The neuron loop on given currents. Each step of a neuron waits for the one before it: several vectors at once hide
// that, and their states stay in registers for all time steps.
#pragma once

#include "core/bit_planes.h"
#include "cpu/simd.inl.h"
#include "neuron/epilogue.inl.h"
#include "ops/neuron_loop/cpu_kernels.h"

namespace tandem::TANDEM_ISA {

constexpr int kGroups = 2;  // of kSpikeVectors vectors
template <class T>
constexpr int64_t kFireBlock = kGroups * kSpikeVectors * kLanes<T>;

// What a block's code need not plan for: each is compiled once for a model, so that there are few.
enum class Currents {
  kPlain,         // bits alone of a constant current, from the model's start
  kOneForAll,     // one current, whatever the mode makes of it
  kSeries,        // one for each step, whose sum is not asked for
  kSummedSeries,  // whose sum may be asked for
};

// Neurons at..at+n-1, a whole block or fewer; the first one's channel is `channel`.
template <Currents kCurrents, bool kWhole, class T, class Model>
TANDEM_HOST void fire_block(const IntegrateAndFireArgs<T>& a, const Model& model, int64_t at, int64_t channel,
                            int64_t n) {
  static_assert(kFireBlock<T> <= kNeuronBlock);
  constexpr bool kSums = kCurrents == Currents::kSummedSeries, kSeries = kSums || kCurrents == Currents::kSeries;
  constexpr bool kSigns = kInvalidIsNegative && Model::kSubtractive;
  constexpr int kVectors = kGroups * kSpikeVectors;
  using Word = std::conditional_t<kSigns, SpikeSigns<T>, SpikeWord<T>>;
  // The currents of a series are summed up where they are at hand, others after a plane: there are not the registers.
  Stepping<kSums, T, Model, Word, kGroups> stepping(model);
  auto& neurons = stepping.neurons;
  constexpr bool kMaySum = kSums || kCurrents == Currents::kOneForAll;
  Vec<T> next[kVectors], bias[kVectors] = {};
  const auto canonical = [](Vec<T> x) TANDEM_INLINE {
    if constexpr (kSigns) x = negative_nan<T>(x);
    return x;
  };
  const auto each = [](const auto& f)
                        TANDEM_INLINE { unrolled<kVectors>([&](int j) TANDEM_INLINE { f(j, j * kLanes<T>); }); };
  // The current that is given for a time step.
  const auto given = [&](int64_t t, int j) TANDEM_INLINE {
    const int64_t i = j * kLanes<T>;
    const Vec<T> scale = a.scale ? load(a.scale + channel + i, n - i) : Vec<T>{};
    const Vec<T> sum = load(a.current + t * a.current_stride + at + i, n - i);
    return canonical(current_of(sum, a.scale != nullptr, scale, a.bias != nullptr, bias[j]));
  };
  each([&](int j, int64_t i) TANDEM_INLINE {
    if (a.bias) bias[j] = load(a.bias + channel + i, n - i);
    first_state<T>(model, a.initial, at + i, n - i, neurons.state[j]);
    if (kSigns && a.initial) neurons.state[j][0] = canonical(neurons.state[j][0]);
    // -0 + x is x, whatever x is.
    if (kMaySum) neurons.sum[j] = a.sum && a.add_sum ? load(a.sum + at + i, n - i) : -Vec<T>{};
  });
  stepping.begin(bool{a.initial}, [&](int /*s*/, int j) TANDEM_INLINE {
    const Vec<T> x = given(0, j);
    if (!kSeries) {
      next[j] = a.mode == CurrentMode::kConstant ? x : a.mode == CurrentMode::kImpulse ? canonical(bias[j]) : Vec<T>{};
    }
    if (!kSeries && kMaySum) neurons.sum[j] += x;
    return x;
  });
  for (int64_t first = 0; first < a.time_steps; first += kStepsPerPlane) {
    const int64_t plane = first / kStepsPerPlane, steps = steps_in_plane(plane, a.time_steps);
    const auto current = [&](int s, int j) TANDEM_INLINE { return kSeries ? given(first + s, j) : next[j]; };
    Word words[kGroups];
    // Not for the few neurons of a last block, whose loads of single elements would make it long.
    stepping.template run_plane<kWhole && !kSeries>(steps, first + kStepsPerPlane < a.time_steps, current, words);
    unrolled<kGroups>([&](int g) TANDEM_INLINE {
      const int64_t i = g * kSpikeVectors * kLanes<T>;
      words[g].store(a.bits + plane * a.bits_stride + at + i, n - i);
    });
    if (kSeries || !kMaySum || !a.sum) continue;
    for (int64_t t = first ? first : 1; t < first + steps; ++t) {
      each([&](int j, int64_t /*i*/) TANDEM_INLINE { neurons.sum[j] += next[j]; });
    }
  }
  each([&](int j, int64_t i) TANDEM_INLINE {
    if (kMaySum && a.sum) store(a.sum + at + i, neurons.sum[j], n - i);
    if (a.state) store_state<T>(a.state, at + i, neurons.state[j], n - i);
  });
}

constexpr int64_t kFetchAhead = 8192;  // bytes

// Whole blocks.
template <Currents kCurrents, class T, class Model>
void fire_blocks(const IntegrateAndFireArgs<T>& args, const Model& model, int64_t begin, int64_t end) {
  constexpr bool kPlain = kCurrents == Currents::kPlain;
  IntegrateAndFireArgs<T> a = args;  // a copy, which the stores cannot change
  if (kPlain) {
    a.mode = CurrentMode::kConstant;
    a.initial = {};
    a.state = {};
  }
  const int64_t stride = kFireBlock<T> % a.channels;
  int64_t channel = begin % a.channels;
  for (int64_t at = begin; at < end; at += kFireBlock<T>) {
    if (kPlain) {  // takes little longer than reading, and the processor itself fetches ahead within a page alone
      const char* ahead = reinterpret_cast<const char*>(a.current + at) + kFetchAhead;
      unrolled<kGroups * kSpikeVectors>([&](int i)
                                            TANDEM_INLINE { __builtin_prefetch(ahead + int64_t{i} * kVectorBytes); });
    }
    fire_block<kCurrents, true>(a, model, at, channel, kFireBlock<T>);
    channel += stride;
    if (channel >= a.channels) channel -= a.channels;
  }
}

template <class T>
void integrate_and_fire(const IntegrateAndFireArgs<T>& a, int64_t begin, int64_t end) {
  const int64_t rest = (end - begin) % kFireBlock<T>, whole = end - rest;
  const bool series = a.mode == CurrentMode::kSeries;
  visit_model<Simd<T>>(a.neuron, [&](const auto& model) {
    if (series) {
      a.sum ? fire_blocks<Currents::kSummedSeries>(a, model, begin, whole)
            : fire_blocks<Currents::kSeries>(a, model, begin, whole);
    } else if (a.mode == CurrentMode::kConstant && !a.sum && !a.initial && !a.state) {
      fire_blocks<Currents::kPlain>(a, model, begin, whole);
    } else {
      fire_blocks<Currents::kOneForAll>(a, model, begin, whole);
    }
    if (rest == 0) return;
    const int64_t channel = whole % a.channels;
    series ? fire_block<Currents::kSummedSeries, false>(a, model, whole, channel, rest)
           : fire_block<Currents::kOneForAll, false>(a, model, whole, channel, rest);
  });
}

}  // namespace tandem::TANDEM_ISA
