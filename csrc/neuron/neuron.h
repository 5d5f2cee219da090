// What a neuron model is, and what models share. Torch-free, host and device.
//
// A model is a struct template in a header of its own, listed in models.h:
//
//   template <class N>                           // of its numbers: Scalar<float>, or an instruction set's Simd<float>
//   struct Model {
//     using V = typename N::Vector;
//     static constexpr const char* kName;        // for messages
//     static constexpr int kParameterCount;
//     static constexpr Parameter kParameters[kParameterCount];  // what it takes, in this order
//     static constexpr int kStates;              // variables of a neuron that steps hand on, at least 1
//     static constexpr bool kSubtractive;        // one variable u, and step is exactly
//                                                //   u = N::subtract_spiked(u, u, threshold) + x, returning u
//     V threshold;
//     ...                                        // other parameters
//
//     template <class F>
//     TANDEM_HOST static Model with(const F& parameter);  // parameter(i): that of kParameters[i], as a V
//
//     // A variable before the first step where no state is given. Must be one after which the neuron is silent.
//     TANDEM_HOST_DEVICE V start(int variable) const;
//
//     // One time step with the current x: updates the state. Returns what is compared with the threshold: the neuron
//     // spikes where that is not below it. A NaN never spikes.
//     TANDEM_HOST_DEVICE V step(V (&state)[kStates], V x) const;
//   };
//
// step is the model's only definition, for scalars and for SIMD vectors, on the host and on the device. The order of
// its operations is part of the contract: it makes every path round alike.
#pragma once

#include <cstdint>
#include <limits>

#include "core/host_device.h"

namespace tandem {

// How a given current spreads over time: the same at every step; at the first one alone, and the bias at every step;
// one for each step; or current and bias at the first one alone. Numbered as in the schemas.
enum class CurrentMode { kConstant, kImpulse, kSeries, kOnce };
constexpr int64_t kCurrentModes = 4;

// Plain numbers, where a kernel's are vectors.
template <class T>
struct Scalar {
  using Vector = T;
  TANDEM_HOST_DEVICE static T of(double x) { return static_cast<T>(x); }
  // The reset: held - threshold where u >= threshold, else held.
  TANDEM_HOST_DEVICE static T subtract_spiked(T held, T u, T threshold) {
    return held - (u >= threshold ? threshold : T{});
  }
};

// A parameter of a model: "threshold must be positive and finite".
struct Parameter {
  const char* name;
  const char* rule;
  bool (*holds)(double);
};

constexpr bool is_positive_and_finite(double x) { return x > 0 && x <= std::numeric_limits<double>::max(); }
constexpr Parameter kThreshold = {"threshold", "positive and finite", is_positive_and_finite};

// Where the membrane potential starts, as a share of the threshold; what is nearer to 1 is 1 in float32.
constexpr bool is_initial(double x) { return x >= 0 && x < 1 - 1.0 / (1 << 25); }
constexpr Parameter kInitial = {"initial", "in [0, 1)", is_initial};

// What a product has summed up -> the current of a step. Nothing is multiplied or added where there is no scale or no
// bias: -0 + 0 would be another number.
template <class V>
TANDEM_HOST_DEVICE V current_of(V sum, bool scaled, V scale, bool biased, V bias) {
  if (scaled) sum *= scale;
  if (biased) sum += bias;
  return sum;
}

}  // namespace tandem
