// What quantise_weight checks and allocates, whatever the device.
#pragma once

#include "core/tensors.h"

namespace tandem {

struct QuantisePlan {
  Tensor weight;           // [O, ...], contiguous
  Tensor integers;         // int8 or int16 [O, ...], contiguous
  Tensor scale;            // float32 [O]
  int64_t channels, size;  // O, and the weights of each
};

QuantisePlan plan_quantise_weight(const Tensor& weight, int64_t largest);

// Calls f(Q{}) for the integers' type.
template <class F>
void dispatch_integers(const QuantisePlan& plan, F&& f) {
  if (plan.integers.scalar_type() == ScalarType::Char) {
    f(int8_t{});
  } else {
    f(int16_t{});
  }
}

}  // namespace tandem
