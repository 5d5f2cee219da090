// The list of neuron models, and the way from a model's number to its type. Torch-free, host and device.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "neuron/adaptive_if.h"
#include "neuron/if.h"
#include "neuron/lif.h"
#include "neuron/refractory.h"

namespace tandem {

template <template <class> class... kModels>
struct ModelList {};

// Numbered from 0 in this order: `neuron` in the schemas.
using Models = ModelList<  //
    If,                    //
    Lif,                   //
    Refractory,            //
    AdaptiveIf>;

template <template <class> class... kModels>
constexpr int count_models(ModelList<kModels...> /*models*/) {
  return sizeof...(kModels);
}
template <template <class> class... kModels>
constexpr int count_most_parameters(ModelList<kModels...> /*models*/) {
  int most = 0;
  for (const int n : {kModels<Scalar<double>>::kParameterCount...}) most = n > most ? n : most;
  return most;
}

constexpr int kModelCount = count_models(Models{});
constexpr int kMostParameters = count_most_parameters(Models{});

// A checked model as data: what arguments carry to a kernel.
struct Neuron {
  int kind;  // below kModelCount
  double parameters[kMostParameters];
};

template <class N, class F, template <class> class... kModels>
TANDEM_HOST void visit_model(const Neuron& neuron, const F& f, ModelList<kModels...> /*models*/) {
  int kind = 0;
  const auto parameter = [&](int i) { return N::of(neuron.parameters[i]); };
  (void)((neuron.kind == kind++ ? (f(kModels<N>::with(parameter)), true) : false) || ...);
}

// Calls f with the neuron's model, of numbers N, its parameters rounded to these.
template <class N, class F>
TANDEM_HOST void visit_model(const Neuron& neuron, const F& f) {
  visit_model<N>(neuron, f, Models{});
}

// State variables of a neuron.
inline int64_t states_of(const Neuron& neuron) {
  int64_t states = 0;
  visit_model<Scalar<double>>(neuron, [&](const auto& model) { states = model.kStates; });
  return states;
}

}  // namespace tandem
