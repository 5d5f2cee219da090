// Integrate and fire: u[t] = u[t-1] - threshold * s[t-1] + x[t], s[t] = (u[t] >= threshold).
#pragma once

#include "neuron/neuron.h"

namespace tandem {

template <class N>
struct If {
  using V = typename N::Vector;
  static constexpr const char* kName = "IF";
  static constexpr int kParameterCount = 2;
  static constexpr Parameter kParameters[kParameterCount] = {kThreshold, kInitial};
  static constexpr int kStates = 1;  // u before its reset, which tells s, too
  static constexpr bool kSubtractive = true;
  V threshold, initial;

  template <class F>
  TANDEM_HOST static If with(const F& parameter) {
    return {parameter(0), parameter(1)};
  }
  TANDEM_HOST_DEVICE V start(int /*variable*/) const { return initial * threshold; }
  TANDEM_HOST_DEVICE V step(V (&state)[kStates], V x) const {
    return state[0] = N::subtract_spiked(state[0], state[0], threshold) + x;
  }
};

}  // namespace tandem
