// The CPU kernel of the neuron loop: plain pointers and sizes. Torch-free.
#pragma once

#include <cstdint>

#include "cpu/isa.h"
#include "cpu/kernel_table.h"
#include "neuron/models.h"
#include "neuron/state.h"

namespace tandem {

// Neurons that integrate_and_fire handles at once, at most.
constexpr int64_t kNeuronBlock = 128;

// The neuron loop; channels lie last, so that neuron i belongs to channel i % channels.
template <class T>
struct IntegrateAndFireArgs {
  const T* current;        // [neurons], series [time_steps, neurons]
  int64_t current_stride;  // elements between time steps of a series
  // [channels + kNeuronBlock], those of `channels` again and again; or null
  const T* scale;          // of the current
  const T* bias;           // per time step
  State<const T> initial;  // before the first step [kStates, neurons], or null: the model's start
  uint8_t* bits;           // [planes, neurons]
  int64_t bits_stride;     // bytes between planes
  T* sum;                  // [neurons] or null
  bool add_sum;            // sum holds that of earlier time steps
  State<T> state;          // after the last step [kStates, neurons], or null
  int64_t channels;
  int64_t time_steps;
  CurrentMode mode;
  Neuron neuron;
};

template <class T>
using IntegrateAndFire = void(const IntegrateAndFireArgs<T>&, int64_t begin, int64_t end);

struct NeuronLoopKernels {
  // The neurons begin..end-1.
  KernelOf<IntegrateAndFire<float>, IntegrateAndFire<double>> integrate_and_fire;
};

TANDEM_KERNELS(NeuronLoopKernels)

}  // namespace tandem
