// The CPU kernel of depthwise products: plain pointers and sizes. Torch-free.
#pragma once

#include <cstdint>

#include "core/conv_geometry.h"
#include "cpu/kernel_table.h"
#include "neuron/joined.h"
#include "neuron/models.h"
#include "neuron/state.h"

namespace tandem {

// Output pixels that the depthwise kernel handles at once.
constexpr int64_t kDepthwisePixels = 4;
// The fewest channels whose sums may have 16 bits: as many as fill a vector of any instruction set.
constexpr int64_t kDepthwiseShorts = 32;

// Where a tap of an output pixel finds the first channel's bits and the first channel's weight.
struct DepthwiseTap {
  int64_t input, weight;
};

// A product of one input channel a group, with the neuron loop; or a product of spike counts or of the values of radix
// spikes, of one input channel a group or two.
template <class T>
struct DepthwiseArgs {
  const ConvGeometry* geometry;
  const uint8_t* bits;  // [planes, pixels_in, in_channels]
  int64_t planes;
  bool values;            // of a count product: the bytes are numbers, and no spikes to count
  const T* weight;        // [taps, inputs of a group, weight_stride]
  int64_t weight_stride;  // out_channels, but at least a vector of any instruction set
  // The same weights, of one output channel a group, where all sums of values times weights fit 16 bits; or null.
  const int16_t* short_weight;
  const T* scale;          // [out_channels] of the weights, or null
  const T* bias;           // [out_channels] or null
  State<const T> initial;  // [kStates, pixels_out, out_channels] or null: the model's start
  uint8_t* out_bits;       // neuron loop: [planes, pixels_out, out_channels]; null for a count product
  T* sum;                  // sum of currents or the count product [pixels_out, out_channels]; or null
  int64_t sum_pixel;       // the pixel that sum begins with
  State<T> state;          // [kStates, pixels_out, out_channels] or null
  Joined<T> joined;
  int64_t time_steps;
  Neuron neuron;
  DepthwiseTap* scratch;  // [kDepthwisePixels, taps]
};

template <class T>
using Depthwise = void(const DepthwiseArgs<T>&, int64_t begin, int64_t end);

struct DepthwiseKernels {
  // Output pixels begin..end-1.
  KernelOf<Depthwise<float>, Depthwise<double>> depthwise;
};

TANDEM_KERNELS(DepthwiseKernels)

}  // namespace tandem
