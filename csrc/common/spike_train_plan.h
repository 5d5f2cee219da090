// What pack_spikes, unpack_spikes, spike_count, tandem_count and tandem_count_backward check and allocate, whatever the
// device.
#pragma once

#include <vector>

#include "common/tensors.h"

namespace tandem {

// The dtypes of dense trains: calls f(uint8_t{}), f(float{}) or f(double{}).
template <class F>
void dispatch_dense(const char* op, const char* argument, ScalarType type, F&& f) {
  if (type == ScalarType::Bool || type == ScalarType::Byte) {
    f(uint8_t{});  // torch's bool is a byte of 0 or 1
  } else {
    check(type == ScalarType::Float || type == ScalarType::Double, op, argument,
          " must be float32, float64, bool or uint8, got ", name_of(type));
    dispatch_floating(op, type, f);
  }
}

// From one train, or its counts, to another: features last in memory, so that a step or plane is a row of neurons.
struct TrainPlan {
  Tensor in, out;
  int64_t neurons = 0;  // N * C * spatial
};

TrainPlan plan_pack_spikes(const Tensor& spikes);
TrainPlan plan_unpack_spikes(const Tensor& bits, int64_t time_steps, ScalarType dtype);
TrainPlan plan_spike_count(const Tensor& bits, ScalarType dtype);
TrainPlan plan_tandem_count(const Tensor& bits, const Tensor& pre_activation, int64_t time_steps, int64_t neuron,
                            const std::vector<double>& parameters, double upper);

// All three without gaps and in the same order; grad may be out itself.
struct TandemGradientPlan {
  Tensor grad, pre_activation, out;
};

TandemGradientPlan plan_tandem_count_backward(const Tensor& grad, const Tensor& pre_activation, double threshold,
                                              double upper);

}  // namespace tandem
