// Spiking and count products on the device: plain pointers and a stream. Torch-free.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <type_traits>

#include "core/conv_geometry.h"
#include "core/narrow_float.h"
#include "neuron/joined.h"
#include "neuron/models.h"
#include "neuron/state.h"
#include "ops/product/whole_weight.h"

namespace tandem {

// What weights of type W are packed as on a device: floats as whole numbers and their units, others as they are.
template <class W>
using DevicePacked = std::conditional_t<std::is_integral_v<W> || std::is_same_v<W, double>, W, int32_t>;

// E: packed weights (double, int8_t, int16_t or int32_t); T: neurons. A product with spike counts, or with values of
// radix spikes, has no out_bits; its scale and bias apply once.
template <class E, class T>
struct CudaProductArgs {
  ConvGeometry geometry;
  const uint8_t* bits;     // [planes, N * H * W, C]
  int64_t planes;          // bit planes of the input
  bool values;             // whether the bytes of its one plane are values of radix spikes
  int64_t largest;         // of a count product, the largest number that an input stands for; else 0
  const E* weight;         // packed: [groups, blocks, features, block], 16-byte aligned
  int64_t block, blocks;   // output channels in a row; rows of a group
  const float* unit;       // [O] of int32_t, else null
  const T* scale;          // [O] or null
  const T* bias;           // [O] or null
  State<const T> initial;  // [kStates, N * Ho * Wo, O] or null: the model's start
  uint8_t* out_bits;       // [planes, N * Ho * Wo, O] or null
  T* sum;                  // [N * Ho * Wo, O] or null
  State<T> state;          // [kStates, N * Ho * Wo, O] or null
  Joined<T> joined;        // [.., N * Ho * Wo, O]
  int64_t time_steps;
  Neuron neuron;
};

// Each launches on the current device and returns what cudaGetLastError says of it.

// The gather engine: weights of the inputs that spike are added, on CUDA cores. Any weights, any geometry.
template <class E, class T>
cudaError_t launch_gather_product(const CudaProductArgs<E, T>& args, cudaStream_t stream);

// Weights [O, C/groups, kH, kW] with these strides -> packed, and unit. watched: the state of launch_watch_weight, so
// that nothing is written if it found no change, or null.
template <class W>
struct CudaPackArgs {
  ConvGeometry geometry;
  const W* weight;
  int64_t stride_o, stride_c, stride_h, stride_w;
  DevicePacked<W>* packed;
  int64_t block, blocks;
  float* unit;  // [O] of float, Float16 and BFloat16; else null
  const uint64_t* watched;
};
// At most 2^32 - 1 rows: of 32 bytes or more each, 128 GiB.
template <class W>
cudaError_t launch_pack_weight(const CudaPackArgs<W>& args, cudaStream_t stream);

}  // namespace tandem
