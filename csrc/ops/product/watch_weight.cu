// Fingerprints of weights. A part is the sum of its words, each mixed with its number: any order of additions makes the
// same one.
#include "cuda/device.cuh"
#include "ops/product/warp.cuh"
#include "ops/product/watch_weight.cuh"

namespace tandem {

namespace {

constexpr int kWatchThreads = 512;

// Words that differ become words that differ: splitmix64's last steps (Steele, Lea & Flood 2014), each of which can be
// undone.
__device__ __forceinline__ unsigned long long mixed(unsigned long long word, unsigned long long number) {
  unsigned long long x = word + (number + 1) * 0x9e3779b97f4a7c15u;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  return x ^ x >> 31;
}

template <class Word>
__global__ void __launch_bounds__(kWatchThreads)
    watch_weight_kernel(const Word* memory, const int64_t words, uint64_t* state) {
  __shared__ unsigned long long parts[kWatchThreads / kWarp];
  constexpr int64_t kStride = int64_t{kWatchBlocks} * kWatchThreads;
  unsigned long long sum = 0;
#pragma unroll 8
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kWatchThreads + threadIdx.x; i < words; i += kStride) {
    sum += mixed(memory[i], static_cast<unsigned long long>(i));
  }
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(kAllLanes, sum, lanes);
  if (threadIdx.x % kWarp == 0) parts[threadIdx.x / kWarp] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  sum = 1;  // so that zeros are the fingerprint of nothing
  for (const unsigned long long part : parts) sum += part;
  state[kWatchBlocks + blockIdx.x] = state[blockIdx.x] != sum ? 1 : 0;
  state[blockIdx.x] = sum;
}

template <class Word>
cudaError_t launch(const WatchArgs& args, cudaStream_t stream) {
  TANDEM_LAUNCH((watch_weight_kernel<Word>), kWatchBlocks, kWatchThreads, 0, stream,
                static_cast<const Word*>(args.memory), args.bytes / static_cast<int64_t>(sizeof(Word)), args.state);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_watch_weight(const WatchArgs& args, cudaStream_t stream) {
  const auto both = reinterpret_cast<uintptr_t>(args.memory) | static_cast<uintptr_t>(args.bytes);
  if (both % 8 == 0) return launch<uint64_t>(args, stream);
  if (both % 4 == 0) return launch<uint32_t>(args, stream);
  return both % 2 == 0 ? launch<uint16_t>(args, stream) : launch<uint8_t>(args, stream);
}

}  // namespace tandem
