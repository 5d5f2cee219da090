// What ordered_product and ordered_spikes check and allocate, whatever the device.
#pragma once

#include <optional>
#include <vector>

#include "neuron/arguments.h"
#include "ops/product/plan.h"

namespace tandem {

struct OrderedPlan {
  ConvGeometry geometry;
  Tensor input;  // float32 [N, C, H, W] or [N, *, F], features last
  Tensor weight;
  std::optional<Tensor> packed;  // as given, unchecked
  Sizes sizes;                   // of the sums, [N, O, Ho, Wo] or [N, *, O]
  int64_t dim;                   // of their features
};

OrderedPlan plan_ordered(const char* op, const Tensor& input, const Tensor& weight, const std::optional<Tensor>& packed,
                         const Sizes& stride, const Sizes& padding, const Sizes& dilation, int64_t groups);

// Uninitialised sums, float32, features last.
Tensor empty_sums(const char* op, const OrderedPlan& plan);

// What the neurons that the sums drive have in common.
struct FiringPlan {
  std::optional<Tensor> scale, bias;  // [O], contiguous
  Tensor bits;                        // [P, N, O, Ho, Wo] or [P, N, *, O], features last
};

struct OrderedNeurons : FiringPlan {
  CurrentMode mode;
  Neuron neuron;
};

OrderedNeurons plan_neurons(const char* op, const OrderedPlan& plan, const std::optional<Tensor>& scale,
                            const std::optional<Tensor>& bias, int64_t time_steps, int64_t mode, int64_t neuron,
                            const std::vector<double>& parameters);
FiringPlan plan_radix_neurons(const char* op, const OrderedPlan& plan, const std::optional<Tensor>& scale,
                              const std::optional<Tensor>& bias, const RadixNeurons& neurons);

}  // namespace tandem
