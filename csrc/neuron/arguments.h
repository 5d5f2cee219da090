// A neuron model as it crosses the operator boundary: one number, its kind, and one vector, its parameters.
#pragma once

#include <cstdint>
#include <vector>

namespace tandem {

struct NeuronArguments {
  double threshold, leak;
};

// Throws unless `kind` is a model's and `parameters` are that model's.
NeuronArguments neuron_arguments(const char* op, int64_t kind, const std::vector<double>& parameters);

}  // namespace tandem
