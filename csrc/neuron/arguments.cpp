#include "neuron/arguments.h"

#include <cmath>
#include <sstream>
#include <string>

namespace tandem {

namespace {

// What messages need of a model.
struct Facts {
  const char* name;
  const Parameter* parameters;
  int count;
};

template <template <class> class... kModels>
std::vector<Facts> facts_of(ModelList<kModels...> /*models*/) {
  return {{kModels<Scalar<double>>::kName, kModels<Scalar<double>>::kParameters,
           kModels<Scalar<double>>::kParameterCount}...};
}

// "0 (IF) or 1 (LIF)"
std::string numbered(const std::vector<Facts>& models) {
  std::string text;
  for (size_t i = 0; i < models.size(); ++i) {
    if (i > 0) text += i + 1 < models.size() ? ", " : " or ";
    text += std::to_string(i) + " (" + models[i].name + ")";
  }
  return text;
}

// "[threshold, leak]"
std::string listed(const Facts& model) {
  std::string text = "[";
  for (int i = 0; i < model.count; ++i) text += (i > 0 ? ", " : "") + std::string(model.parameters[i].name);
  return text + "]";
}

void check_parameter(const char* op, const Parameter& parameter, double value) {
  TANDEM_CHECK(parameter.holds(value), op, parameter.name, " must be ", parameter.rule, ", got ", value);
}

// Whether no neuron has reached its threshold before the first step, which kernels rely on: a threshold that is nearly
// zero has too few digits for a share of it.
template <class T>
bool starts_silent(const Neuron& neuron) {
  bool silent = false;
  visit_model<Scalar<T>>(neuron, [&](const auto& model) { silent = model.start(0) < model.threshold; });
  return silent;
}

std::string listed_values(const std::vector<double>& parameters) {
  std::ostringstream text;
  text << '[';
  for (size_t i = 0; i < parameters.size(); ++i) text << (i ? ", " : "") << parameters[i];
  text << ']';
  return text.str();
}

}  // namespace

Neuron checked_neuron(const char* op, int64_t kind, const std::vector<double>& parameters, ScalarType type) {
  static const std::vector<Facts> models = facts_of(Models{});
  TANDEM_CHECK(kind >= 0 && kind < kModelCount, op, "neuron must be ", numbered(models), ", got ", kind);
  const Facts& model = models[kind];
  TANDEM_CHECK(static_cast<int>(parameters.size()) == model.count, op, "parameters of ", model.name, " must be ",
               listed(model), ", got ", parameters.size(), " numbers");
  Neuron neuron = {};
  neuron.kind = static_cast<int>(kind);
  for (int i = 0; i < model.count; ++i) {
    const double value = parameters[i];
    check_parameter(op, model.parameters[i], value);
    const double rounded = type == ScalarType::Float ? static_cast<double>(static_cast<float>(value)) : value;
    TANDEM_CHECK(rounded > 0 || model.parameters[i].holds(0), op, model.parameters[i].name,
                 " must be positive in the dtype of the potential, got ", value);
    TANDEM_CHECK(std::isfinite(rounded), op, model.parameters[i].name,
                 " must be finite in the dtype of the potential, got ", value);
    neuron.parameters[i] = value;
  }
  TANDEM_CHECK(type == ScalarType::Float ? starts_silent<float>(neuron) : starts_silent<double>(neuron), op,
               "initial must leave the potential below the threshold in its dtype, got parameters ",
               listed_values(parameters));
  return neuron;
}

void check_threshold(const char* op, double threshold) { check_parameter(op, kThreshold, threshold); }

Sizes state_sizes(const Neuron& neuron, const Sizes& neurons) {
  Sizes sizes = neurons;
  sizes.insert(sizes.begin(), states_of(neuron));
  return sizes;
}

}  // namespace tandem
