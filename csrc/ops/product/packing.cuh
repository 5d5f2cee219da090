// What the kernels that pack weights share.
#pragma once

#include <cstdint>

#include "cuda/device.cuh"
#include "ops/product/watch_weight.cuh"

namespace tandem {

// Blocks for so many of them, at most as many as a device runs at once, about: they walk their tasks in a grid-stride
// loop, and soon end where the weights have not changed.
inline unsigned packing_grid(int64_t blocks) {
  constexpr int64_t kMostBlocks = 4096;
  return static_cast<unsigned>(blocks < kMostBlocks ? blocks : kMostBlocks);
}

// Whether the last launch of watch_weight found weights unchanged, so that they need not be packed. watched: its state,
// or null if they are packed in any case. For whole warps.
__device__ __forceinline__ bool is_unchanged(const uint64_t* watched) {
  if (watched == nullptr) return false;
  uint64_t changed = 0;
#pragma unroll
  for (int i = 0; i < kWatchBlocks; i += 32) changed |= watched[kWatchBlocks + i + static_cast<int>(threadIdx.x) % 32];
  return __any_sync(0xffffffffu, changed != 0) == 0;
}

}  // namespace tandem
