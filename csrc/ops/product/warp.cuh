// What the engines for products on CUDA share.
#pragma once

#include <cstdint>

#include "cuda/device.cuh"
#include "neuron/models.h"

namespace tandem {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kPackThreads = 256;  // of a block that packs weights

// Blocks for so many tasks; beyond 2^30 they walk their tasks in a grid-stride loop.
inline unsigned grid_for(int64_t tasks) {
  constexpr int64_t kMostBlocks = int64_t{1} << 30;
  return static_cast<unsigned>(tasks < kMostBlocks ? tasks : kMostBlocks);
}

// What a byte of a count product's input stands for: the number of its spikes, or the value of radix spikes.
__device__ __forceinline__ unsigned number_of(unsigned byte, bool values) {
  return values ? byte : static_cast<unsigned>(__popc(byte));
}

// The neurons of a count product, which has none.
template <class T>
using Silent = If<Scalar<T>>;

}  // namespace tandem
