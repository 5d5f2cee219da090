#include "common/bit_planes.h"
#include "cuda/device.cuh"
#include "cuda/integrate_and_fire.cuh"

namespace tandem {

namespace {

constexpr unsigned kThreads = 256;
// Blocks beyond this many walk the neurons in a grid-stride loop: enough to fill any device many times over.
constexpr int64_t kMostBlocks = int64_t{1} << 20;

// One thread a neuron at a time; neighbouring threads read and write neighbouring neurons.
template <class T, CurrentMode kMode>
__global__ void __launch_bounds__(kThreads) integrate_and_fire_kernel(CudaIntegrateAndFireArgs<T> a) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < a.neurons; i += stride) {
    const T bias = a.bias ? a.bias[i % a.channels] : T(0);
    T u = a.initial ? a.initial[i] : T(0);
    T sum = 0;
    const T scale = a.scale ? a.scale[i % a.channels] : T(1);
    // Where there is no bias, nothing is added: -0 + 0 would be another number.
    const auto current = [&](int64_t at) {
      const T scaled = scale * a.current[at];
      return a.bias ? scaled + bias : scaled;
    };
    T x = kMode == CurrentMode::kSeries ? T(0) : current(i);
    int64_t t = 0;
    for (int64_t p = 0; t < a.time_steps; ++p) {
      unsigned word = 0;
      const int64_t steps = steps_in_plane(p, a.time_steps);
      for (int64_t s = 0; s < steps; ++s, ++t) {
        if (kMode == CurrentMode::kSeries) {
          x = current(t * a.neurons + i);
        } else if (kMode == CurrentMode::kImpulse) {
          if (t == 1) x = bias;
        }
        u = membrane_update(u, x, a.neuron.threshold, a.neuron.leak);
        sum = t > 0 ? sum + x : x;  // 0 + -0 would be another number
        word |= static_cast<unsigned>(u >= a.neuron.threshold) << s;
      }
      a.bits[p * a.neurons + i] = static_cast<uint8_t>(word);
    }
    if (a.sum) a.sum[i] = sum;
    if (a.potential) a.potential[i] = u;
  }
}

template <class T>
cudaError_t launch(const CudaIntegrateAndFireArgs<T>& args, cudaStream_t stream) {
  if (args.neurons == 0) return cudaSuccess;
  const int64_t blocks = (args.neurons + kThreads - 1) / kThreads;
  const auto grid = static_cast<unsigned>(blocks < kMostBlocks ? blocks : kMostBlocks);
  switch (args.mode) {
    case CurrentMode::kConstant:
      TANDEM_LAUNCH((integrate_and_fire_kernel<T, CurrentMode::kConstant>), grid, kThreads, 0, stream, args);
      break;
    case CurrentMode::kImpulse:
      TANDEM_LAUNCH((integrate_and_fire_kernel<T, CurrentMode::kImpulse>), grid, kThreads, 0, stream, args);
      break;
    case CurrentMode::kSeries:
      TANDEM_LAUNCH((integrate_and_fire_kernel<T, CurrentMode::kSeries>), grid, kThreads, 0, stream, args);
      break;
  }
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_integrate_and_fire(const CudaIntegrateAndFireArgs<float>& args, cudaStream_t stream) {
  return launch(args, stream);
}

cudaError_t launch_integrate_and_fire(const CudaIntegrateAndFireArgs<double>& args, cudaStream_t stream) {
  return launch(args, stream);
}

}  // namespace tandem
