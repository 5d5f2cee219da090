// A neuron model as it crosses the operator boundary: one number, its kind, one vector, its parameters, and its state,
// a tensor.
#pragma once

#include <optional>
#include <vector>

#include "core/tensors.h"
#include "neuron/models.h"
#include "neuron/state.h"

namespace tandem {

// Throws unless `kind` is a model's number and `parameters` are that model's, also in the dtype of its numbers, float32
// or float64, where a tiny one could vanish.
Neuron checked_neuron(const char* op, int64_t kind, const std::vector<double>& parameters, ScalarType type);
void check_threshold(const char* op, double threshold);

// Sizes of the state of neurons of these sizes.
Sizes state_sizes(const Neuron& neuron, const Sizes& neurons);

template <class T>
State<const T> given_state(const std::optional<Tensor>& state) {
  if (!state || state->numel() == 0) return {};
  return {static_cast<const T*>(state->const_data_ptr()), state->numel() / state->size(0)};
}

// Null for a state that was not asked for.
template <class T>
State<T> wanted_state(const Tensor& state) {
  if (state.numel() == 0) return {};
  return {static_cast<T*>(state.mutable_data_ptr()), state.numel() / state.size(0)};
}

}  // namespace tandem
