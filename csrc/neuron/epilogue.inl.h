// The neuron loop on the CPU: the steps of one plane, for neurons that stay in registers. Every kernel whose neurons
// fire ends in it.
#pragma once

#include "core/bit_planes.h"
#include "cpu/simd.inl.h"
#include "neuron/models.h"
#include "neuron/state.h"

namespace tandem::TANDEM_ISA {

// kVectors vectors of neurons. Model: of Simd<T>.
template <class T, class Model, int kVectors>
struct Neurons {
  Vec<T> state[kVectors][Model::kStates];
  Vec<T> sum[kVectors];  // of currents
};

// The states of n neurons from a place on.
template <class T, int kStates>
TANDEM_HOST void load_state(State<const T> from, int64_t neuron, int64_t n, Vec<T> (&state)[kStates]) {
  unrolled<kStates>([&](int v) TANDEM_INLINE { state[v] = load(from.at(v, neuron), n); });
}

template <class T, int kStates>
TANDEM_HOST void store_state(State<T> to, int64_t neuron, const Vec<T> (&state)[kStates], int64_t n) {
  unrolled<kStates>([&](int v) TANDEM_INLINE { store(to.at(v, neuron), state[v], n); });
}

// The states before the first step: those given, or where there are none the model's.
template <class T, class Model>
TANDEM_HOST void first_state(const Model& model, State<const T> given, int64_t neuron, int64_t n,
                             Vec<T> (&state)[Model::kStates]) {
  if (given) {
    load_state<T>(given, neuron, n, state);
  } else {
    unrolled<Model::kStates>([&](int v) TANDEM_INLINE { state[v] = model.start(v); });
  }
}

// One step of the vectors that a word of spikes collects, the first of them `first`; `s`: the step's bit.
template <bool kSum, class T, class Model, int kVectors, class Current, class Word>
TANDEM_HOST void run_step(const Model& model, int s, int first, const Current& current,
                          Neurons<T, Model, kVectors>& neurons, Word& word) {
  Vec<T> value[Word::kVectors];
  unrolled<Word::kVectors>([&](int j) TANDEM_INLINE {
    Vec<T>(&state)[Model::kStates] = neurons.state[first + j];
    const Vec<T> x = current(s, first + j);
    if constexpr (kSum) neurons.sum[first + j] += x;
    if constexpr (std::is_same_v<Word, SpikeSigns<T>>) {
      static_assert(Model::kSubtractive);
      state[0] = reset<T>(state[0], state[0] - model.threshold) + x;
      value[j] = state[0] - model.threshold;
    } else {
      value[j] = model.step(state, x);
    }
  });
  if constexpr (std::is_same_v<Word, SpikeSigns<T>>) {
    word.add(value, s);
  } else {
    word.add(value, model.threshold, s);
  }
}

// The steps of one plane. current(s, j): what step s brings vector j, scale and bias included (current_of). words: of
// Word::kVectors vectors each, empty; several words step together, since each neuron waits for itself. kUnroll: a whole
// plane is one piece of code without branches. kSum: currents are summed up.
template <bool kUnroll, bool kSum, class T, class Model, int kVectors, class Current, class Word, int kWords>
TANDEM_HOST void run_plane(const Model& model, int64_t steps, const Current& current,
                           Neurons<T, Model, kVectors>& neurons, Word (&words)[kWords]) {
  static_assert(kWords * Word::kVectors == kVectors);
  const auto step = [&](int s) TANDEM_INLINE {
    unrolled<kWords>([&](int g)
                         TANDEM_INLINE { run_step<kSum>(model, s, g * Word::kVectors, current, neurons, words[g]); });
  };
  if (kUnroll && steps == kStepsPerPlane) {
    unrolled<kStepsPerPlane>(step);
  } else {
    for (int s = 0; s < steps; ++s) step(s);
  }
}

}  // namespace tandem::TANDEM_ISA
