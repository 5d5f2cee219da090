// One pass over memory each: a thread takes four neighbouring neurons, or one where rows are not aligned, through all
// steps or planes.
#include <cstdio>

#include "core/bit_planes.h"
#include "cuda/device.cuh"
#include "cuda/lanes.cuh"
#include "ops/spike_train/spike_train.cuh"

namespace tandem {

namespace {

constexpr unsigned kThreads = 256;
// Blocks beyond this many walk the neurons in a grid-stride loop: enough to fill any device many times over.
constexpr int64_t kMostBlocks = int64_t{1} << 20;
constexpr int kWide = 4;
constexpr int kSteps = static_cast<int>(kStepsPerPlane);

// Whether kWide elements can be moved at once wherever they begin in a row.
template <class T>
bool aligned(const T* data, int64_t rows, int64_t neurons) {
  constexpr auto boundary = alignof(Lanes<T, kWide>);
  return reinterpret_cast<uintptr_t>(data) % boundary == 0 &&
         (rows == 1 || static_cast<uint64_t>(neurons) * sizeof(T) % boundary == 0);
}

// What is done to neurons i..i + kLanes - 1:

template <class D>
struct PackSpikes {
  CudaPackSpikesArgs<D> a;

  template <int kLanes>
  __device__ __forceinline__ void run(int64_t i) const {
    D odd = 0;
    for (int64_t p = 0; p * kStepsPerPlane < a.time_steps; ++p) {
      const int64_t steps = steps_in_plane(p, a.time_steps);
      const D* from = a.dense + p * kStepsPerPlane * a.neurons + i;
      // All loads of a plane before the first use of one.
      Lanes<D, kLanes> in[kSteps] = {};
      for (int s = 0; s < kSteps; ++s) {
        if (s < steps) in[s] = load_lanes<kLanes>(from + s * a.neurons);
      }
      Lanes<uint8_t, kLanes> word = {};
      for (int s = 0; s < kSteps; ++s) {
        for (int j = 0; j < kLanes; ++j) {
          const D value = in[s].x[j];
          const bool spike = value == D(1);
          if (!(spike || value == D(0))) odd = value;
          word.x[j] = static_cast<uint8_t>(word.x[j] | static_cast<unsigned>(spike) << s);
        }
      }
      store_lanes(a.bits + p * a.neurons + i, word);
    }
    if (!(odd == D(0))) {
      printf("pack_spikes: spikes must be 0 or 1, got %g\n", static_cast<double>(odd));
      __trap();
    }
  }
};

template <class D>
struct UnpackSpikes {
  CudaUnpackSpikesArgs<D> a;

  template <int kLanes>
  __device__ __forceinline__ void run(int64_t i) const {
    for (int64_t p = 0; p * kStepsPerPlane < a.time_steps; ++p) {
      const int64_t steps = steps_in_plane(p, a.time_steps);
      const Lanes<uint8_t, kLanes> word = load_lanes<kLanes>(a.bits + p * a.neurons + i);
      D* to = a.dense + p * kStepsPerPlane * a.neurons + i;
      for (int s = 0; s < kSteps; ++s) {
        if (s >= steps) break;
        Lanes<D, kLanes> out;
        for (int j = 0; j < kLanes; ++j) out.x[j] = static_cast<D>(word.x[j] >> s & 1);
        store_lanes(to + s * a.neurons, out);
      }
    }
  }
};

template <class T>
struct SpikeCount {
  CudaSpikeCountArgs<T> a;

  template <int kLanes>
  __device__ __forceinline__ void run(int64_t i) const {
    int count[kLanes] = {};
    for (int64_t p = 0; p < a.planes; ++p) {
      const Lanes<uint8_t, kLanes> word = load_lanes<kLanes>(a.bits + p * a.neurons + i);
      const unsigned past = p + 1 == a.planes ? a.past : 0;
      for (int j = 0; j < kLanes; ++j) {
        const unsigned bits = word.x[j] & ~past;
        count[j] += a.radix ? static_cast<int>(bits) : __popc(bits);
      }
    }
    Lanes<T, kLanes> out;
    for (int j = 0; j < kLanes; ++j) out.x[j] = static_cast<T>(count[j]);
    store_lanes(a.count + i, out);
  }
};

template <class T>
struct TandemCountBackward {
  CudaTandemCountBackwardArgs<T> a;

  template <int kLanes>
  __device__ __forceinline__ void run(int64_t i) const {
    const Lanes<T, kLanes> v = load_lanes<kLanes>(a.pre_activation + i), grad = load_lanes<kLanes>(a.grad + i);
    Lanes<T, kLanes> out;
    for (int j = 0; j < kLanes; ++j) {
      const T scaled = grad.x[j] / a.threshold;
      out.x[j] = v.x[j] > T(0) && v.x[j] <= a.upper ? scaled : T(0);
    }
    store_lanes(a.out + i, out);
  }
};

template <class Op, int kLanes>
__global__ void __launch_bounds__(kThreads) spike_train_kernel(const Op op) {
  const int64_t neurons = op.a.neurons, stride = static_cast<int64_t>(gridDim.x) * kThreads * kLanes;
  int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kLanes;
  for (; i + kLanes <= neurons; i += stride) op.template run<kLanes>(i);
  // The last group of neurons may not be full; one thread comes by here.
  for (; i < neurons; ++i) op.template run<1>(i);
}

template <class Op>
cudaError_t launch(const Op& op, bool wide, cudaStream_t stream) {
  if (op.a.neurons == 0) return cudaSuccess;
  const int64_t a_block = static_cast<int64_t>(kThreads) * (wide ? kWide : 1);
  const int64_t blocks = (op.a.neurons - 1) / a_block + 1;
  const auto grid = static_cast<unsigned>(blocks < kMostBlocks ? blocks : kMostBlocks);
  if (wide) {
    TANDEM_LAUNCH((spike_train_kernel<Op, kWide>), grid, kThreads, 0, stream, op);
  } else {
    TANDEM_LAUNCH((spike_train_kernel<Op, 1>), grid, kThreads, 0, stream, op);
  }
  return cudaGetLastError();
}

}  // namespace

template <class D>
cudaError_t launch_pack_spikes(const CudaPackSpikesArgs<D>& args, cudaStream_t stream) {
  const bool wide = aligned(args.dense, args.time_steps, args.neurons) &&
                    aligned(args.bits, planes_for(args.time_steps), args.neurons);
  return launch(PackSpikes<D>{args}, wide, stream);
}

template <class D>
cudaError_t launch_unpack_spikes(const CudaUnpackSpikesArgs<D>& args, cudaStream_t stream) {
  const bool wide = aligned(args.dense, args.time_steps, args.neurons) &&
                    aligned(args.bits, planes_for(args.time_steps), args.neurons);
  return launch(UnpackSpikes<D>{args}, wide, stream);
}

template <class T>
cudaError_t launch_spike_count(const CudaSpikeCountArgs<T>& args, cudaStream_t stream) {
  const bool wide = aligned(args.bits, args.planes, args.neurons) && aligned(args.count, 1, args.neurons);
  return launch(SpikeCount<T>{args}, wide, stream);
}

template <class T>
cudaError_t launch_tandem_count_backward(const CudaTandemCountBackwardArgs<T>& args, cudaStream_t stream) {
  const bool wide = aligned(args.grad, 1, args.neurons) && aligned(args.pre_activation, 1, args.neurons) &&
                    aligned(args.out, 1, args.neurons);
  return launch(TandemCountBackward<T>{args}, wide, stream);
}

template cudaError_t launch_pack_spikes(const CudaPackSpikesArgs<uint8_t>&, cudaStream_t);
template cudaError_t launch_pack_spikes(const CudaPackSpikesArgs<float>&, cudaStream_t);
template cudaError_t launch_pack_spikes(const CudaPackSpikesArgs<double>&, cudaStream_t);
template cudaError_t launch_unpack_spikes(const CudaUnpackSpikesArgs<uint8_t>&, cudaStream_t);
template cudaError_t launch_unpack_spikes(const CudaUnpackSpikesArgs<float>&, cudaStream_t);
template cudaError_t launch_unpack_spikes(const CudaUnpackSpikesArgs<double>&, cudaStream_t);
template cudaError_t launch_spike_count(const CudaSpikeCountArgs<float>&, cudaStream_t);
template cudaError_t launch_spike_count(const CudaSpikeCountArgs<double>&, cudaStream_t);
template cudaError_t launch_tandem_count_backward(const CudaTandemCountBackwardArgs<float>&, cudaStream_t);
template cudaError_t launch_tandem_count_backward(const CudaTandemCountBackwardArgs<double>&, cudaStream_t);

}  // namespace tandem
