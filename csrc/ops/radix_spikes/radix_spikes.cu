// One pass over memory: a thread takes four neighbouring neurons, or one where rows or channels are not aligned.
#include "cuda/device.cuh"
#include "cuda/lanes.cuh"
#include "neuron/neuron.h"
#include "ops/radix_spikes/radix_spikes.cuh"

namespace tandem {

namespace {

constexpr unsigned kThreads = 256;
// Blocks beyond this many walk the neurons in a grid-stride loop: enough to fill any device many times over.
constexpr int64_t kMostBlocks = int64_t{1} << 20;
constexpr int kWide = 4;

template <class T>
bool aligned(const T* data) {
  return reinterpret_cast<uintptr_t>(data) % alignof(Lanes<T, kWide>) == 0;
}

// Neurons i..i + kLanes - 1, of neighbouring channels.
template <int kLanes, class T>
__device__ __forceinline__ void spike(const CudaRadixSpikesArgs<T>& a, int64_t i) {
  int64_t channel = 0;
  if (a.scale || a.bias) {  // a division of 64 bits takes longer than all else
    channel = a.neurons <= UINT32_MAX ? static_cast<uint32_t>(i) % static_cast<uint32_t>(a.channels) : i % a.channels;
  }
  Lanes<T, kLanes> u = load_lanes<kLanes>(a.current + i), scale = {}, bias = {};
  if (a.scale) scale = load_lanes<kLanes>(a.scale + channel);
  if (a.bias) bias = load_lanes<kLanes>(a.bias + channel);
#pragma unroll
  for (int j = 0; j < kLanes; ++j) {
    u.x[j] = current_of(u.x[j], a.scale != nullptr, scale.x[j], a.bias != nullptr, bias.x[j]) + a.start;
  }
  unsigned value[kLanes] = {};
  T threshold = a.threshold * static_cast<T>(1 << (a.time_steps - 1));
  for (int t = 0; t < a.time_steps; ++t, threshold *= T(0.5)) {
#pragma unroll
    for (int j = 0; j < kLanes; ++j) {
      const bool fires = u.x[j] >= threshold;
      if (fires) u.x[j] -= threshold;
      value[j] = value[j] << 1 | static_cast<unsigned>(fires);
    }
  }
  Lanes<uint8_t, kLanes> word;
  for (int j = 0; j < kLanes; ++j) word.x[j] = static_cast<uint8_t>(value[j]);
  store_lanes(a.bits + i, word);
  if (a.state) store_lanes(a.state + i, u);
}

template <class T, int kLanes>
__global__ void __launch_bounds__(kThreads) radix_spikes_kernel(const CudaRadixSpikesArgs<T> a) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads * kLanes;
  int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kLanes;
  for (; i + kLanes <= a.neurons; i += stride) spike<kLanes>(a, i);
  // The last group of neurons may not be full; one thread comes by here.
  for (; i < a.neurons; ++i) spike<1>(a, i);
}

}  // namespace

template <class T>
cudaError_t launch_radix_spikes(const CudaRadixSpikesArgs<T>& args, cudaStream_t stream) {
  if (args.neurons == 0) return cudaSuccess;
  const bool wide =
      aligned(args.current) && aligned(args.bits) && aligned(args.state) &&
      (!(args.scale || args.bias) || (args.channels % kWide == 0 && aligned(args.scale) && aligned(args.bias)));
  const int64_t a_block = static_cast<int64_t>(kThreads) * (wide ? kWide : 1);
  const int64_t blocks = (args.neurons - 1) / a_block + 1;
  const auto grid = static_cast<unsigned>(blocks < kMostBlocks ? blocks : kMostBlocks);
  if (wide) {
    TANDEM_LAUNCH((radix_spikes_kernel<T, kWide>), grid, kThreads, 0, stream, args);
  } else {
    TANDEM_LAUNCH((radix_spikes_kernel<T, 1>), grid, kThreads, 0, stream, args);
  }
  return cudaGetLastError();
}

template cudaError_t launch_radix_spikes(const CudaRadixSpikesArgs<float>&, cudaStream_t);
template cudaError_t launch_radix_spikes(const CudaRadixSpikesArgs<double>&, cudaStream_t);

}  // namespace tandem
