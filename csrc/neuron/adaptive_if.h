// Integrate and fire with a threshold that every spike raises: threshold + adaptation * b[t], b[t] = the share of steps
// with a spike, averaged with the weights decay^k. A reset subtracts the raised threshold.
#pragma once

#include "neuron/neuron.h"

namespace tandem {

// What is nearer to 1 is 1 in float32, where b would never move.
constexpr bool is_decay(double x) { return x >= 0 && x < 1 - 1.0 / (1 << 25); }

template <class N>
struct AdaptiveIf {
  using V = typename N::Vector;
  static constexpr const char* kName = "IF with an adaptive threshold";
  static constexpr int kParameterCount = 4;
  static constexpr Parameter kParameters[kParameterCount] = {
      kThreshold,
      {"adaptation", "positive and finite", is_positive_and_finite},
      {"decay", "in [0, 1)", is_decay},
      kInitial};
  static constexpr int kStates = 2;  // u before its reset, and b at the same step, which tell s
  static constexpr bool kSubtractive = false;
  V threshold, adaptation, decay, initial;

  template <class F>
  TANDEM_HOST static AdaptiveIf with(const F& parameter) {
    return {parameter(0), parameter(1), parameter(2), parameter(3)};
  }
  TANDEM_HOST_DEVICE V start(int variable) const { return variable == 0 ? initial * threshold : V{}; }
  TANDEM_HOST_DEVICE V step(V (&state)[kStates], V x) const {
    const V u = state[0], b = state[1], above = u - adaptation * b;
    const auto fired = above >= threshold;
    const V spike = fired ? N::of(1) : V{};
    state[0] = (fired ? above - threshold : u) + x;
    state[1] = spike + decay * (b - spike);
    return state[0] - adaptation * state[1];
  }
};

}  // namespace tandem
