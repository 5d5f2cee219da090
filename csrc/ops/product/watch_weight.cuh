// Whether weights have changed since they were packed: the device finds out, so that the host need not wait for it.
// Torch-free.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace tandem {

// Blocks of a launch. Each has a part of the memory, the same one in every launch. Their state, in words of 64 bits:
// the fingerprint of every part, then for every part whether the last launch found another one than the launch before.
constexpr int kWatchBlocks = 128;
constexpr int64_t kWatchWords = int64_t{2} * kWatchBlocks;

// memory: a multiple of what one weight takes, from an address that this divides. state: zeros before the first launch.
struct WatchArgs {
  const void* memory;
  int64_t bytes;
  uint64_t* state;
};

// A change of one word, or of one byte of it, always changes the fingerprint; others leave it with a chance of 2^-64.
// A launch takes note of what it reads, so whoever launches it has to pack the weights if they have changed.
cudaError_t launch_watch_weight(const WatchArgs& args, cudaStream_t stream);

}  // namespace tandem
