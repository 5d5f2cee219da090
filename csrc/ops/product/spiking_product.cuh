// Spiking and count products on the device: plain pointers and a stream. Torch-free.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/conv_geometry.h"
#include "core/narrow_float.h"
#include "neuron/joined.h"
#include "neuron/models.h"
#include "neuron/state.h"
#include "ops/product/term_layout.h"

namespace tandem {

// E: packed weights (float, double, int8_t or int16_t); T: neurons. A product with
// spike counts, or with values of radix spikes, has no out_bits; its scale and bias apply once.
template <class E, class T>
struct CudaProductArgs {
  ConvGeometry geometry;
  const uint8_t* bits;     // [planes, N * H * W, C]
  int64_t planes;          // bit planes of the input
  bool values;             // whether the bytes of its one plane are values of radix spikes
  int64_t largest;         // of a count product, the largest number that an input stands for; else 0
  const E* weight;         // packed: [groups, blocks, features, block], 16-byte aligned
  int64_t block, blocks;   // output channels in a row; rows of a group
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

// Whether the tensor-core engine numbers the parts of this product in its 32 bits.
bool fits_tensor_cores(const ConvGeometry& geometry);

// The tensor-core engine: of each weight the first terms, so many of those that are stored. args.weight is not read.
// fragments: from launch_pack_terms, 16-byte aligned. stored: kStoredTerms of the weights. Needs compute
// capability 8.0, and what fits_tensor_cores says.
cudaError_t launch_tensor_core_product(const CudaProductArgs<float, float>& args, const void* fragments, int stored,
                                       int terms, cudaStream_t stream);

// Weights [O, C/groups, kH, kW] with these strides -> packed. W: Float16 or BFloat16 too, where E is float. watched:
// the state of launch_watch_weight, so that nothing is written if it found no change, or null.
template <class W, class E>
struct CudaPackArgs {
  ConvGeometry geometry;
  const W* weight;
  int64_t stride_o, stride_c, stride_h, stride_w;
  E* packed;
  int64_t block, blocks;
  const uint64_t* watched;
};
// At most 2^32 - 1 rows: of 32 bytes or more each, 128 GiB.
template <class W, class E>
cudaError_t launch_pack_weight(const CudaPackArgs<W, E>& args, cudaStream_t stream);

// Weights [O, C/groups, kH, kW] with these strides -> fragments, term_layout(..).bytes(), 16-byte aligned.
template <class W>
struct CudaTermArgs {
  ConvGeometry geometry;
  const W* weight;
  int64_t stride_o, stride_c, stride_h, stride_w;
  void* fragments;
  const uint64_t* watched;  // as above
};
template <class W>
cudaError_t launch_pack_terms(const CudaTermArgs<W>& args, cudaStream_t stream);

}  // namespace tandem
