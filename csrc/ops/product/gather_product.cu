// The gather engine: rows of weights are added for the inputs that spike. Any weights, any geometry. A neuron belongs
// to one thread for all time steps: currents, states and spikes of a step stay in registers. See docs/cuda.md.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core/bit_planes.h"
#include "cuda/device.cuh"
#include "neuron/epilogue.cuh"
#include "ops/product/block_size.h"
#include "ops/product/packing.cuh"
#include "ops/product/pixel.cuh"
#include "ops/product/spiking_product.cuh"
#include "ops/product/warp.cuh"

namespace tandem {

namespace {

constexpr int kGatherWarps = 8;

// Long, as is the tensor-core kernel: what a kernel keeps in registers stays there only in one function.
// One warp: one output pixel and one row of output channels, kPerLane a lane. A warp reads the bytes of 32 input
// channels at once, finds by ballot those that spike, and adds the row of weights of each, one coalesced read, to the
// sums of the steps at which it spikes.
template <class E, class T, int kPerLane, bool kCounts, class Model>
__global__ void __launch_bounds__(kGatherWarps* kWarp, 2)
    gather_kernel(const CudaProductArgs<E, T> a, const Model model) {
  // Integers are summed exactly: the fan-ins that the plan admits fit 32 bits at one step if weights have 8 or 16, not
  // with counts.
  using Integer = std::conditional_t<kCounts || std::is_same_v<E, int32_t>, long long, int32_t>;
  using Sum = std::conditional_t<std::is_integral<E>::value, Integer, T>;
  constexpr int kSums = kCounts ? 1 : static_cast<int>(kStepsPerPlane);
  const ConvGeometry& g = a.geometry;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t pixels = g.pixels_out(), channels = g.group_in(), outputs = g.group_out(), row_at = lane * kPerLane;
  const bool has_row = row_at < a.block;  // rows of 16 channels, or 8, leave lanes without any
  const int64_t warps = static_cast<int64_t>(gridDim.x) * kGatherWarps;
  // Pixels innermost: neighbouring warps share a row of output channels.
  for (int64_t task = static_cast<int64_t>(blockIdx.x) * kGatherWarps + threadIdx.x / kWarp;
       task < pixels * g.groups * a.blocks; task += warps) {
    const int64_t at = task % pixels, b = task / pixels % a.blocks, group = task / pixels / a.blocks;
    const Pixel pixel = pixel_at(g, at);
    const E* const rows = a.weight + (group * a.blocks + b) * g.features() * a.block + row_at;
    const int64_t first = group * outputs + b * a.block + row_at;  // output channel of the lane
    const int64_t place = at * g.out_channels + first;
    const int64_t left = has_row ? outputs - b * a.block - row_at : 0;  // real channels from `first` on

    DeviceNeuron<T, Model> neurons[kPerLane];
    for (int v = 0; v < kPerLane; ++v) {
      neurons[v].start(model, v < left ? a.initial : State<const T>{}, place + v);
      neurons[v].sum = 0;
    }
    Sum sums[kSums][kPerLane] = {};
    for (int64_t p = 0; p < (kCounts ? 1 : a.planes); ++p) {
      for (int t = 0; t < kSums; ++t) {
        for (int v = 0; v < kPerLane; ++v) sums[t][v] = 0;
      }
      for (int64_t tap = 0; tap < g.taps(); ++tap) {
        const int64_t seen = seen_by(g, pixel, tap / g.kernel_w, tap % g.kernel_w);
        if (seen < 0) continue;
        const uint8_t* const in = a.bits + (p * g.pixels_in() + seen) * g.in_channels + group * channels;
        for (int64_t c = 0; c < channels; c += kWarp) {
          unsigned word = 0;  // the spikes of the lane's input channel, their number, or the value of radix spikes
          if (c + lane < channels) {
            if constexpr (kCounts) {
              for (int64_t q = 0; q < a.planes; ++q) {
                word += number_of(in[q * g.pixels_in() * g.in_channels + c + lane], a.values);
              }
            } else {
              word = in[c + lane];
            }
          }
          unsigned active = __ballot_sync(kAllLanes, word != 0);
          while (active != 0) {
            const int from = __ffs(static_cast<int>(active)) - 1;
            active &= active - 1;
            const unsigned spikes = __shfl_sync(kAllLanes, word, from);
            const E* const row = rows + (tap * channels + c + from) * a.block;
            for (int v = 0; v < kPerLane; ++v) {
              const Sum weight = has_row ? static_cast<Sum>(row[v]) : Sum(0);
              if constexpr (kCounts) {
                sums[0][v] += static_cast<Sum>(spikes) * weight;
              } else {
#pragma unroll
                for (int t = 0; t < kSums; ++t) {
                  if (spikes >> t & 1) sums[t][v] += weight;
                }
              }
            }
          }
        }
      }
      if constexpr (!kCounts) {
        const int steps = static_cast<int>(steps_in_plane(p, a.time_steps));
#pragma unroll
        for (int v = 0; v < kPerLane; ++v) {
          if (v >= left) continue;
          const T scale = a.scale ? a.scale[first + v] : T(1), bias = a.bias ? a.bias[first + v] : T(0);
          const float unit = a.unit ? a.unit[first + v] : 1.0f;
          const auto current = [&](int s) {
            const T x = current_of(in_units(sums[s][v], unit), a.scale != nullptr, scale, a.bias != nullptr, bias);
            return add_joined(a.joined, p, s, place + v, first + v, x);
          };
          a.out_bits[p * pixels * g.out_channels + place + v] =
              run_plane<kStepsPerPlane>(model, steps, current, neurons[v]);
        }
      }
    }
    for (int v = 0; v < kPerLane; ++v) {
      if (v >= left) continue;
      if constexpr (kCounts) {
        const T scale = a.scale ? a.scale[first + v] : T(1), bias = a.bias ? a.bias[first + v] : T(0);
        const T sum = in_units(sums[0][v], a.unit ? a.unit[first + v] : 1.0f);
        a.sum[place + v] = current_of(sum, a.scale != nullptr, scale, a.bias != nullptr, bias);
      } else {
        neurons[v].store(a.state, a.sum, place + v);
      }
    }
  }
}

template <class E, class T, int kPerLane>
void launch_gather(const CudaProductArgs<E, T>& args, cudaStream_t stream) {
  const int64_t tasks = args.geometry.pixels_out() * args.geometry.groups * args.blocks;
  const unsigned grid = grid_for((tasks + kGatherWarps - 1) / kGatherWarps);
  if (args.out_bits == nullptr) {
    TANDEM_LAUNCH((gather_kernel<E, T, kPerLane, true, Silent<T>>), grid, kGatherWarps * kWarp, 0, stream, args,
                  Silent<T>{});
    return;
  }
  visit_model<Scalar<T>>(args.neuron, [&](const auto& model) {
    using Model = std::decay_t<decltype(model)>;
    TANDEM_LAUNCH((gather_kernel<E, T, kPerLane, false, Model>), grid, kGatherWarps * kWarp, 0, stream, args, model);
  });
}

template <class W>
__global__ void __launch_bounds__(kPackThreads) pack_weight_kernel(const CudaPackArgs<W> a) {
  if (is_unchanged(a.watched)) return;
  using E = DevicePacked<W>;
  const ConvGeometry& g = a.geometry;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kPackThreads;
  const int64_t elements = g.groups * a.blocks * g.features() * a.block;
  // Rows are numbered in 32 bits, in which it is cheap to divide; their length is a power of 2.
  const int of_row = __ffs(static_cast<int>(a.block)) - 1;
  const auto features = static_cast<unsigned>(g.features()), channels = static_cast<unsigned>(g.group_in());
  const auto blocks = static_cast<unsigned>(a.blocks), kernel_w = static_cast<unsigned>(g.kernel_w);
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kPackThreads + threadIdx.x; i < elements; i += stride) {
    const auto row = static_cast<unsigned>(i >> of_row);
    const unsigned b = row / features, feature = row % features, tap = feature / channels;
    const int64_t in_group = b % blocks * a.block + (i & (a.block - 1));
    const int64_t channel = b / blocks * g.group_out() + in_group;
    const int64_t from = channel * a.stride_o + feature % channels * a.stride_c + tap / kernel_w * a.stride_h +
                         tap % kernel_w * a.stride_w;
    E packed = 0;
    if (in_group < g.group_out()) {
      packed = as_packed(a.weight[from], a.unit ? units_of_one(a.unit[channel]) : 1.0f);
    }
    a.packed[i] = packed;
  }
}

// A block: the units of output channels, one after another.
template <class W>
__global__ void __launch_bounds__(kPackThreads) weight_unit_kernel(const CudaPackArgs<W> a) {
  if (is_unchanged(a.watched)) return;
  __shared__ uint32_t largest[kPackThreads / kWarp];
  const ConvGeometry& g = a.geometry;
  const auto features = static_cast<unsigned>(g.features()), channels = static_cast<unsigned>(g.group_in());
  const auto kernel_w = static_cast<unsigned>(g.kernel_w);
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  for (int64_t channel = blockIdx.x; channel < g.out_channels; channel += gridDim.x) {
    const W* const weights = a.weight + channel * a.stride_o;
    uint32_t size = 0;
    for (unsigned feature = threadIdx.x; feature < features; feature += kPackThreads) {
      const unsigned tap = feature / channels;
      const int64_t from = feature % channels * a.stride_c + tap / kernel_w * a.stride_h + tap % kernel_w * a.stride_w;
      size = std::max(size, magnitude_of(weights[from]));
    }
    for (int apart = kWarp / 2; apart != 0; apart /= 2) size = std::max(size, __shfl_xor_sync(kAllLanes, size, apart));
    if (threadIdx.x % kWarp == 0) largest[warp] = size;
    __syncthreads();
    for (const uint32_t other : largest) size = std::max(size, other);
    if (threadIdx.x == 0) a.unit[channel] = weight_unit(size);
    __syncthreads();  // everybody has read the sizes of this channel
  }
}

}  // namespace

template <class E, class T>
cudaError_t launch_gather_product(const CudaProductArgs<E, T>& args, cudaStream_t stream) {
  if (args.geometry.pixels_out() == 0) return cudaSuccess;
  constexpr int kMost = 256 / static_cast<int>(sizeof(SumOf<E>)) / kWarp;  // the largest block over the lanes
  if (args.block <= kWarp) {
    launch_gather<E, T, 1>(args, stream);
  } else if (args.block < kMost * kWarp) {
    launch_gather<E, T, (kMost > 1 ? kMost / 2 : 1)>(args, stream);
  } else {
    launch_gather<E, T, kMost>(args, stream);
  }
  return cudaGetLastError();
}

template <class W>
cudaError_t launch_pack_weight(const CudaPackArgs<W>& args, cudaStream_t stream) {
  const int64_t rows = args.geometry.groups * args.blocks * args.geometry.features();
  if (rows > UINT32_MAX) return cudaErrorInvalidValue;
  if constexpr (!std::is_same_v<W, DevicePacked<W>>) {
    TANDEM_LAUNCH((weight_unit_kernel<W>), packing_grid(args.geometry.out_channels), kPackThreads, 0, stream, args);
  }
  const unsigned grid = packing_grid((rows * args.block + kPackThreads - 1) / kPackThreads);
  TANDEM_LAUNCH((pack_weight_kernel<W>), grid, kPackThreads, 0, stream, args);
  return cudaGetLastError();
}

template cudaError_t launch_gather_product(const CudaProductArgs<int32_t, float>&, cudaStream_t);
template cudaError_t launch_gather_product(const CudaProductArgs<double, double>&, cudaStream_t);
template cudaError_t launch_gather_product(const CudaProductArgs<int8_t, float>&, cudaStream_t);
template cudaError_t launch_gather_product(const CudaProductArgs<int16_t, float>&, cudaStream_t);
template cudaError_t launch_pack_weight(const CudaPackArgs<float>&, cudaStream_t);
template cudaError_t launch_pack_weight(const CudaPackArgs<Float16>&, cudaStream_t);
template cudaError_t launch_pack_weight(const CudaPackArgs<BFloat16>&, cudaStream_t);
template cudaError_t launch_pack_weight(const CudaPackArgs<double>&, cudaStream_t);
template cudaError_t launch_pack_weight(const CudaPackArgs<int8_t>&, cudaStream_t);
template cudaError_t launch_pack_weight(const CudaPackArgs<int16_t>&, cudaStream_t);

}  // namespace tandem
