// Spiking and count products with whole weights on integer tensor cores: plain pointers and a stream. Torch-free.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "ops/product/fragment_layout.h"
#include "ops/product/spiking_product.cuh"

namespace tandem {

// Whether the integer engine computes this exactly: sums of every digit fit 32 bits, and sizes are numbered in them.
// planes: of the input. largest: number that an input of a count product stands for; 0 for a product of spikes.
bool fits_integer_engine(const ConvGeometry& geometry, int digits, int64_t planes, int64_t largest);

// Bytes of memory, from a multiple of 16 on, for spikes as the engine reads them, or their counts; 0 where it reads the
// planes as they are, spikes or values of radix spikes. counts: whether it multiplies counts.
int64_t prepared_bytes(const ConvGeometry& geometry, const uint8_t* bits, int64_t planes, bool counts);

// Blocks of a launch with large tiles. Where they do not fill the device, small tiles have more blocks. Tiles of
// warpgroups have as many; of fewer than 64 pixels or channels, up to half as many.
int64_t large_blocks(const ConvGeometry& geometry, int digits, int64_t time_steps, bool counts);

enum class Tiles {
  kSmall,      // 16 channels and 8 pixels, whose inputs the warps of a block share out
  kLarge,      // 64 rows of digits
  kWarpgroup,  // of spikes alone: 64 pixels, which need compute capability 9.0 and has_warpgroup_tiles()
};
bool has_warpgroup_tiles();

// args.weight is not read. fragments: from launch_pack_fragments, 16-byte aligned. prepared: prepared_bytes. E: int8_t,
// int16_t or int32_t, any value. Needs compute capability 8.0, and what fits_integer_engine says. Exact; neurons as
// everywhere.
template <class E>
cudaError_t launch_integer_product(const CudaProductArgs<E, float>& args, const void* fragments, uint8_t* prepared,
                                   Tiles tiles, cudaStream_t stream);

// Weights [O, C/groups, kH, kW] with these strides -> fragments, fragment_layout(..).bytes(), 16-byte aligned.
template <class W>
struct CudaFragmentArgs {
  ConvGeometry geometry;
  const W* weight;
  int64_t stride_o, stride_c, stride_h, stride_w;
  const float* unit;  // [O] of floats, from launch_pack_weight; else null
  void* fragments;
  const uint64_t* watched;  // as in CudaPackArgs
};
template <class W>
cudaError_t launch_pack_fragments(const CudaFragmentArgs<W>& args, cudaStream_t stream);

}  // namespace tandem
