// What the spiking and the count products check and allocate, whatever the device.
#pragma once

#include <optional>
#include <vector>

#include "core/conv_geometry.h"
#include "core/tensors.h"
#include "neuron/arguments.h"
#include "neuron/joined.h"
#include "ops/radix_spikes/plan.h"

namespace tandem {

enum class Engine { kAuto, kEvent, kDense };  // numbered as in the schemas

// The arguments that the linear and the convolutional products share.
struct ProductArguments {
  const Tensor& bits;
  const std::optional<Tensor>& count;
  const Tensor& weight;
  const std::optional<Tensor>& packed;
  const std::optional<Tensor>& scale;
  const std::optional<Tensor>& bias;
  int64_t engine;
  int64_t radix;
};

struct SpikingArguments {
  const std::optional<Tensor>& state;
  int64_t time_steps;
  int64_t neuron;
  const std::vector<double>& parameters;
  bool want_sum, want_state;
  const std::optional<Tensor>&added, &amplitude;
};

// Neurons that a count product drives, and what another branch adds to its sums.
struct RadixArguments {
  RadixNeurons neurons;
  const std::optional<Tensor>&added, &amplitude;
};

// Some samples of a batch.
struct Samples {
  int64_t first, last;  // last: the one behind them

  int64_t count() const { return last - first; }
};

struct ProductPlan {
  ConvGeometry geometry;
  Tensor bits;                        // [P, N, C, H, W] or [P, N, *, F], features last
  Tensor weight;                      // as given: its strides are the kernel's affair
  std::optional<Tensor> packed;       // as given; unchecked, since each engine has a layout of its own
  std::optional<Tensor> scale, bias;  // [O], contiguous
  Engine engine;
  int64_t radix;                              // T where bytes are the values of radix spikes, else 0
  ScalarType type;                            // of currents and potentials
  Neuron neuron;                              // of a spiking product
  std::optional<Tensor> initial;              // state, features last
  std::optional<Tensor> added;                // to what drives neurons: another branch's, or its spikes; features last
  std::optional<Tensor> amplitude;            // of such a spike [O]; none: 1
  Tensor out_bits, out_sum, out_state;        // features last; shape [0] where not wanted
  std::optional<RadixNeurons> radix_neurons;  // of a count product: what it drives
};

// The largest number that an input of a count product stands for.
inline int64_t largest_input(int64_t radix, int64_t planes) {
  return radix ? (int64_t{1} << radix) - 1 : planes * kStepsPerPlane;
}
inline int64_t largest_input(const ProductPlan& plan) { return largest_input(plan.radix, plan.bits.size(0)); }

// Whether weights are integers, of 8 or 16 bits.
constexpr bool is_integer(ScalarType type) { return type == ScalarType::Char || type == ScalarType::Short; }
// Inputs of a neuron whose sum fits 32 bits, whatever the weights.
constexpr int64_t most_inputs(ScalarType type) {
  return ((int64_t{1} << 31) - 1) / (type == ScalarType::Char ? 128 : 32639);
}

// Throws unless a geometry's argument is two integers from `least` to 2^30.
void check_pair(const char* op, const char* argument, const Sizes& value, int64_t least);
// Throws where stride, padding, dilation, groups and shapes do not make a convolution.
// The input has the sizes [N, C, H, W].
ConvGeometry conv2d_geometry(const char* op, const Sizes& input, const Tensor& weight, const Sizes& stride,
                             const Sizes& padding, const Sizes& dilation, int64_t groups);
// Of a linear product where the weight has two dimensions, else of a convolution.
ConvGeometry product_geometry(const char* op, const Tensor& bits, const Tensor& weight, const Sizes& stride,
                              const Sizes& padding, const Sizes& dilation, int64_t groups);
// The same for an input of sizes [N, *, F] or [N, C, H, W].
ConvGeometry product_geometry(const char* op, const Sizes& input, const Tensor& weight, const Sizes& stride,
                              const Sizes& padding, const Sizes& dilation, int64_t groups);

// Throws unless `master` has the shape of integer weights and `unit` a number for each output.
void check_master(const char* op, const Tensor& weight, const std::optional<Tensor>& master,
                  const std::optional<Tensor>& unit);

// The geometry of the weights alone: an input of no sample and no pixel.
ConvGeometry weight_geometry(const char* op, const Tensor& weight, int64_t groups);

// What the plan adds to the currents of its neurons.
template <class T>
Joined<T> joined_of(const ProductPlan& plan) {
  if (!plan.added) return {};
  const Tensor& added = *plan.added;
  const int64_t stride = added.size(0) ? added.numel() / added.size(0) : 0;
  const bool spikes = added.scalar_type() == ScalarType::Byte;
  return {spikes ? nullptr : static_cast<const T*>(added.const_data_ptr()),
          spikes ? static_cast<const uint8_t*>(added.const_data_ptr()) : nullptr, stride,
          data_or_null<T>(plan.amplitude)};
}

// Sizes of the neurons that `geometry` gives for `bits`: [N, O, Ho, Wo] or [N, *, O]. With neurons there is no out_sum
// before add_sums.
ProductPlan plan_product(const char* op, const ProductArguments& arguments, const ConvGeometry& geometry, bool linear,
                         const RadixArguments* firing = nullptr);
// Allocates the currents of neurons, if they have none yet.
void add_sums(const char* op, ProductPlan& plan);
// Of the currents of each step, [T, N, O, Ho, Wo] or [T, N, *, O]: out_sum.
ProductPlan plan_steps(const char* op, const ProductArguments& arguments, int64_t time_steps,
                       const ConvGeometry& geometry, bool linear);
ProductPlan plan_spiking(const char* op, const ProductArguments& arguments, const SpikingArguments& spiking,
                         const ConvGeometry& geometry, bool linear);

}  // namespace tandem
