// The CPU kernels of spike trains: packing, unpacking and counting bit planes. Plain pointers and sizes. Torch-free.
#pragma once

#include <cstdint>

#include "cpu/kernel_table.h"

namespace tandem {

// A dense train's elements, floating-point numbers or bool's bytes, to bit planes and back.
template <class D>
using Pack = bool(const D* dense, int64_t time_steps, int64_t neurons, int64_t begin, int64_t end, uint8_t* bits);
template <class D>
using Unpack = void(const uint8_t* bits, int64_t stride, int64_t time_steps, int64_t neurons, int64_t begin,
                    int64_t end, D* dense);
template <class T>
using SpikeCount = void(const uint8_t* bits, int64_t planes, int64_t stride, int64_t begin, int64_t end, T* count);
template <class T>
using WholeBytes = bool(const T* values, int64_t begin, int64_t end, uint8_t* bytes, int64_t* ones);

// All of them take the neurons or elements begin..end-1. Planes are `stride` bytes apart.
struct SpikeTrainKernels {
  // [time_steps, neurons] -> [planes, neurons]; false where an element is neither 0 nor 1.
  KernelOf<Pack<float>, Pack<double>, Pack<uint8_t>> pack;
  KernelOf<Unpack<float>, Unpack<double>, Unpack<uint8_t>> unpack;
  KernelOf<SpikeCount<float>, SpikeCount<double>> spike_count;
  // Whole numbers from 0 to 255 to bytes; false where one is none. Adds their binary ones.
  KernelOf<WholeBytes<float>, WholeBytes<double>> whole_bytes;
  // Spikes of all steps in the bytes begin..end-1 of bit planes.
  int64_t (*count_spikes)(const uint8_t* bits, int64_t begin, int64_t end);
  // Spike counts as unsigned integers, their bytes in planes of `stride`: the binary digits of a count take the place
  // of time steps in a count product.
  void (*count_bytes)(const uint8_t* bits, int64_t planes, int64_t stride, int64_t begin, int64_t end, uint8_t* bytes,
                      int64_t byte_planes);
  // Spikes added to `initial`, or to zero where that is null.
  void (*add_counts)(const uint8_t* bits, int64_t planes, int64_t stride, int64_t begin, int64_t end,
                     const int32_t* initial, int32_t* out);
};

TANDEM_KERNELS(SpikeTrainKernels)

}  // namespace tandem
