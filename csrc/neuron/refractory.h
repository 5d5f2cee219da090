// Integrate and fire with a refractory period: for some steps after a spike a neuron integrates nothing and cannot
// fire.
#pragma once

#include "neuron/neuron.h"

namespace tandem {

// Steps; float32 counts that far.
constexpr bool is_refractory(double x) {
  return x >= 1 && x <= (1 << 24) && x == static_cast<double>(static_cast<int>(x));
}

template <class N>
struct Refractory {
  using V = typename N::Vector;
  static constexpr const char* kName = "IF with a refractory period";
  static constexpr int kParameterCount = 3;
  static constexpr Parameter kParameters[kParameterCount] = {
      kThreshold, kInitial, {"refractory", "a whole number of steps from 1 to 2^24", is_refractory}};
  // u before its reset, and the refractory steps that were left in the last step, itself among them: 0 where the
  // neuron was active, so that both tell whether it fired.
  static constexpr int kStates = 2;
  static constexpr bool kSubtractive = false;
  V threshold, initial, refractory;

  template <class F>
  TANDEM_HOST static Refractory with(const F& parameter) {
    return {parameter(0), parameter(1), parameter(2)};
  }
  TANDEM_HOST_DEVICE V start(int variable) const { return variable == 0 ? initial * threshold : V{}; }
  TANDEM_HOST_DEVICE V step(V (&state)[kStates], V x) const {
    const V zero = {}, u = state[0], before = state[1];
    const auto fired = (before == zero) & (u >= threshold);
    const V lower = before - N::of(1);
    const V left = fired ? refractory : lower < zero ? zero : lower;
    const V held = fired ? u - threshold : u;
    const auto active = left == zero;
    state[0] = active ? held + x : held;
    state[1] = left;
    return active ? state[0] : zero;  // which is below the threshold
  }
};

}  // namespace tandem
