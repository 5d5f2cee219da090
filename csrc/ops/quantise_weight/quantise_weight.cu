// A block: one output channel, whose weights it reads twice: for the largest one, and to round them.
#include <cstring>
#include <limits>

#include "cuda/device.cuh"
#include "ops/quantise_weight/nearest.h"
#include "ops/quantise_weight/quantise_weight.cuh"

namespace tandem {

namespace {

constexpr int kThreads = 256, kLanes = 32, kWarps = kThreads / kLanes;
constexpr unsigned kWholeWarp = ~0u;
constexpr uint32_t kInfinity = 0x7f800000;

// The bits of |x|, which have the order of the numbers; infinity and NaN are above all others.
__device__ __forceinline__ uint32_t magnitude(float x) {
  uint32_t word;
  std::memcpy(&word, &x, sizeof(word));
  return word & 0x7fffffff;
}

__device__ __forceinline__ uint32_t larger(uint32_t a, uint32_t b) { return a > b ? a : b; }

// The largest value that any of the block's threads brings. shared: a word for each warp.
__device__ __forceinline__ uint32_t largest_of_block(uint32_t most, uint32_t* shared) {
  for (int lanes = kLanes / 2; lanes > 0; lanes /= 2) most = larger(most, __shfl_xor_sync(kWholeWarp, most, lanes));
  if (threadIdx.x % kLanes == 0) shared[threadIdx.x / kLanes] = most;
  __syncthreads();
  for (int warp = 0; warp < kWarps; ++warp) most = larger(most, shared[warp]);
  return most;
}

template <class Q>
__global__ void __launch_bounds__(kThreads) quantise_weight_kernel(const QuantiseArgs<Q> a) {
  __shared__ uint32_t shared[kWarps];
  const int64_t first = static_cast<int64_t>(blockIdx.x) * a.size;
  const float* const from = a.weight + first;
  Q* const to = a.integers + first;
  uint32_t most = 0;
  for (int64_t i = threadIdx.x; i < a.size; i += kThreads) most = larger(most, magnitude(from[i]));
  most = largest_of_block(most, shared);

  float scale;
  std::memcpy(&scale, &most, sizeof(scale));
  scale = most < kInfinity ? scale / a.largest : std::numeric_limits<float>::quiet_NaN();
  const bool rounds = scale > 0;  // else zeros, or so small that no scale is, or not finite
  if (threadIdx.x == 0) a.scale[blockIdx.x] = scale == 0 ? 1 : scale;
  for (int64_t i = threadIdx.x; i < a.size; i += kThreads) {
    to[i] = rounds ? nearest_integer<Q>(from[i], scale, a.largest) : Q{0};
  }
}

}  // namespace

template <class Q>
cudaError_t launch_quantise_weight(const QuantiseArgs<Q>& args, cudaStream_t stream) {
  if (args.channels > INT32_MAX) return cudaErrorInvalidValue;
  TANDEM_LAUNCH((quantise_weight_kernel<Q>), static_cast<unsigned>(args.channels), kThreads, 0, stream, args);
  return cudaGetLastError();
}

template cudaError_t launch_quantise_weight(const QuantiseArgs<int8_t>&, cudaStream_t);
template cudaError_t launch_quantise_weight(const QuantiseArgs<int16_t>&, cudaStream_t);

}  // namespace tandem
