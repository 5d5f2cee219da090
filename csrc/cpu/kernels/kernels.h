// The CPU kernels' interface: plain pointers and sizes, one table per instruction set. Torch-free.
//
// Each loop is written once, in *.inl.h, and compiled by scalar.cpp, avx2.cpp and avx512.cpp into a namespace of its
// own, so that no code of a wider instruction set can leak into a narrower one through the linker.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/conv_geometry.h"
#include "common/neuron.h"

namespace tandem {

template <class T>
struct NeuronParameters {
  T threshold, leak;
};

// The neuron loop over rows of `channels` neurons each (channels last).
template <class T>
struct IntegrateAndFireArgs {
  const T* current;        // [rows, channels], series [time_steps, rows, channels]
  int64_t current_stride;  // elements between time steps of a series
  const T* bias;           // [channels] per time step, or null
  const T* initial;        // potential before the first step [rows, channels], or null (zero)
  uint8_t* bits;           // [planes, rows, channels]
  int64_t bits_stride;     // bytes between planes
  T* sum;                  // [rows, channels] or null
  T* potential;            // [rows, channels] or null
  int64_t rows, channels;
  int64_t time_steps;
  CurrentMode mode;
  NeuronParameters<T> neuron;
};

// Event-driven product of one tile of output pixels with one block of output channels. Spikes come as masks: word w of
// a pixel's masks at step t holds channels 64 w .. 64 w + 63.
template <class T>
struct EventTileArgs {
  const ConvGeometry* geometry;
  const uint64_t* masks;  // [planes, pixels_in, words_in, 8]
  int64_t words_in;       // ceil(C / 64)
  int64_t steps;          // time steps, or binary digits of a count: the planes' valid bits
  const T* weight;        // [features, block] of this group and block of output channels, 64-byte aligned
  int64_t block;          // output channels in a row of weight, a block_size()
  int64_t valid;          // of them real, the rest padding
  int64_t group;
  int64_t row_begin, row_end;  // output pixels of the tile
  // All below point at the block's first channel; their rows are row_stride elements apart.
  int64_t row_stride;
  const T* bias;     // [block] or null
  const T* initial;  // or null
  uint8_t* bits;     // neuron loop: planes bits_stride apart; null for a count product
  int64_t bits_stride;
  T* sum;        // sum of currents or the count product; or null
  T* potential;  // or null
  NeuronParameters<T> neuron;
  void* scratch;  // event_scratch_bytes(), 64-byte aligned
};

// A dense train's elements, T or bool's byte, to bit planes and back; neurons begin..end-1 of each time step.
template <class D>
struct DenseKernels {
  // [time_steps, neurons] -> [planes, neurons]; false where an element is neither 0 nor 1.
  bool (*pack)(const D* dense, int64_t time_steps, int64_t neurons, int64_t begin, int64_t end, uint8_t* bits);
  void (*unpack)(const uint8_t* bits, int64_t time_steps, int64_t neurons, int64_t begin, int64_t end, D* dense);
};

template <class T>
struct TypedKernels {
  // Rows begin..end-1 of the neuron loop.
  void (*integrate_and_fire)(const IntegrateAndFireArgs<T>&, int64_t begin, int64_t end);
  void (*event_tile)(const EventTileArgs<T>&);
  // [n] spike counts of the neurons begin..end-1; planes are `stride` bytes apart.
  void (*spike_count)(const uint8_t* bits, int64_t planes, int64_t stride, int64_t begin, int64_t end, T* count);
};

struct Kernels {
  const char* isa;
  TypedKernels<float> f32;
  TypedKernels<double> f64;
  DenseKernels<float> dense_f32;
  DenseKernels<double> dense_f64;
  DenseKernels<uint8_t> dense_u8;
  // Bit planes of the pixels begin..end-1, [pixels, channels], to masks [pixels, ceil(channels / 64), 8].
  void (*transpose_bits)(const uint8_t* bits, int64_t channels, int64_t begin, int64_t end, uint64_t* masks);
  // Spike counts as unsigned integers, their bytes in planes of `stride`: the binary digits of a count take the place
  // of time steps in a count product.
  void (*count_bytes)(const uint8_t* bits, int64_t planes, int64_t stride, int64_t begin, int64_t end, uint8_t* bytes,
                      int64_t byte_planes);

  template <class T>
  const TypedKernels<T>& typed() const;
  template <class D>
  const DenseKernels<D>& dense() const;
};

template <>
inline const TypedKernels<float>& Kernels::typed<float>() const {
  return f32;
}
template <>
inline const TypedKernels<double>& Kernels::typed<double>() const {
  return f64;
}

template <>
inline const DenseKernels<float>& Kernels::dense<float>() const {
  return dense_f32;
}
template <>
inline const DenseKernels<double>& Kernels::dense<double>() const {
  return dense_f64;
}
template <>
inline const DenseKernels<uint8_t>& Kernels::dense<uint8_t>() const {
  return dense_u8;
}

// Output channels that an event tile handles at once: rows of 64, 128 or 256 bytes, whichever fits `channels` best.
template <class T>
constexpr int64_t block_size(int64_t channels) {
  constexpr int64_t unit = 64 / static_cast<int64_t>(sizeof(T));
  return channels <= unit ? unit : channels <= 2 * unit ? 2 * unit : 4 * unit;
}

constexpr int64_t words_for(int64_t channels) { return (channels + 63) / 64; }

// Scratch memory of one event tile: patch masks, accumulators, carried potentials and sums.
template <class T>
constexpr int64_t event_scratch_bytes(int64_t rows, int64_t features, int64_t block) {
  const int64_t item = static_cast<int64_t>(sizeof(T));
  return rows * (words_for(features) * 64 + 8 * block * item + 2 * block * item);
}

namespace scalar {
extern const Kernels kernels;
}
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}

}  // namespace tandem
