// Leaky integrate and fire: u[t] = leak * u[t-1] - threshold * s[t-1] + x[t], s[t] = (u[t] >= threshold).
#pragma once

#include "neuron/neuron.h"

namespace tandem {

constexpr bool is_leak(double x) { return x > 0 && x <= 1; }

template <class N>
struct Lif {
  using V = typename N::Vector;
  static constexpr const char* kName = "LIF";
  static constexpr int kParameterCount = 3;
  static constexpr Parameter kParameters[kParameterCount] = {kThreshold, {"leak", "in (0, 1]", is_leak}, kInitial};
  static constexpr int kStates = 1;  // u before its reset, which tells s, too
  static constexpr bool kSubtractive = false;
  V threshold, leak, initial;

  template <class F>
  TANDEM_HOST static Lif with(const F& parameter) {
    return {parameter(0), parameter(1), parameter(2)};
  }
  TANDEM_HOST_DEVICE V start(int /*variable*/) const { return initial * threshold; }
  TANDEM_HOST_DEVICE V step(V (&state)[kStates], V x) const {
    return state[0] = N::subtract_spiked(leak * state[0], state[0], threshold) + x;
  }
};

}  // namespace tandem
