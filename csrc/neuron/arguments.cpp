#include "neuron/arguments.h"

#include "common/tensors.h"

namespace tandem {

NeuronArguments neuron_arguments(const char* op, int64_t kind, const std::vector<double>& parameters) {
  check(kind == 0 || kind == 1, op, "neuron must be 0 (IF) or 1 (LIF), got ", kind);
  const size_t expected = kind == 0 ? 1 : 2;
  check(parameters.size() == expected, op, "parameters of ",
        kind == 0 ? "IF must be [threshold]" : "LIF must be [threshold, leak]", ", got ", parameters.size(),
        " of them");
  const NeuronArguments out = {parameters[0], kind == 0 ? 1.0 : parameters[1]};
  check_neuron(op, out.threshold, out.leak);
  return out;
}

}  // namespace tandem
