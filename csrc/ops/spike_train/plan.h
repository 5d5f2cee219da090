// What pack_spikes, unpack_spikes and spike_count check and allocate, whatever the device.
#pragma once

#include "core/tensors.h"

namespace tandem {

// The dtypes of dense trains: calls f(uint8_t{}), f(float{}) or f(double{}).
template <class F>
void dispatch_dense(const char* op, const char* argument, ScalarType type, F&& f) {
  if (type == ScalarType::Bool || type == ScalarType::Byte) {
    f(uint8_t{});  // torch's bool is a byte of 0 or 1
  } else {
    TANDEM_CHECK(type == ScalarType::Float || type == ScalarType::Double, op, argument,
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
// For spikes of checked bits, summed over all time steps.
TrainPlan plan_count(const char* op, const Tensor& bits, ScalarType dtype);

Sizes without_time(const Tensor& train);

}  // namespace tandem
