// The state of neurons in memory: the model's variables one after the other, each of them like the neurons' sums.
// Torch-free, host and device.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace tandem {

// T: const where the state is only read.
template <class T>
struct State {
  T* data;         // null: not given, or not wanted
  int64_t stride;  // elements between variables

  TANDEM_HOST_DEVICE explicit operator bool() const { return data != nullptr; }
  TANDEM_HOST_DEVICE T& operator()(int variable, int64_t neuron) const { return data[variable * stride + neuron]; }
  TANDEM_HOST_DEVICE T* at(int variable, int64_t neuron) const { return data + variable * stride + neuron; }
  // The neurons from the given one on.
  TANDEM_HOST_DEVICE State operator+(int64_t neurons) const { return {data ? data + neurons : nullptr, stride}; }
};

// The state that one pass left is where the next one starts.
template <class T>
State<const T> read_only(State<T> state) {
  return {state.data, state.stride};
}

}  // namespace tandem
