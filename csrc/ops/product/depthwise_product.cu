// Products of groups with one input channel: a thread computes one neuron, and lanes are neighbouring output channels.
#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "core/bit_planes.h"
#include "cuda/device.cuh"
#include "neuron/epilogue.cuh"
#include "ops/product/depthwise_product.cuh"
#include "ops/product/pixel.cuh"
#include "ops/product/warp.cuh"

namespace tandem {

namespace {

constexpr int kDepthwiseLanes = 32, kDepthwisePixels = 8;  // of a block: channels side by side, pixels

template <class W, class T, bool kCounts, class Model>
__global__ void __launch_bounds__(kDepthwiseLanes* kDepthwisePixels, 2)
    depthwise_kernel(const CudaDepthwiseArgs<W, T> args, const Model model) {
  using E = DevicePacked<W>;  // what weights are summed as, as by the gather engine
  using Integer = std::conditional_t<kCounts || std::is_same_v<E, int32_t>, long long, int32_t>;
  using Sum = std::conditional_t<std::is_integral<E>::value, Integer, T>;
  constexpr int kSums = kCounts ? 1 : static_cast<int>(kStepsPerPlane);
  const CudaProductArgs<W, T>& a = args.product;
  const ConvGeometry& g = a.geometry;
  const int64_t pixels = g.pixels_out();
  const auto outputs = static_cast<unsigned>(a.block), width = static_cast<unsigned>(g.out_width);
  const auto height = static_cast<unsigned>(g.out_height);
  const int64_t lane = threadIdx.x % kDepthwiseLanes, row = threadIdx.x / kDepthwiseLanes;
  for (int64_t o = static_cast<int64_t>(blockIdx.y) * kDepthwiseLanes + lane; o < g.out_channels;
       o += static_cast<int64_t>(gridDim.y) * kDepthwiseLanes) {
    const T scale = a.scale ? a.scale[o] : T(1), bias = a.bias ? a.bias[o] : T(0);
    const W* const weights = a.weight + o * args.stride_o;
    const int64_t from = static_cast<unsigned>(o) / outputs;  // the input channel
    const auto weight_at = [&](int64_t kh, int64_t kw) { return weights[kh * args.stride_h + kw * args.stride_w]; };
    float unit = 1;
    if constexpr (std::is_same_v<E, int32_t>) {
      uint32_t size = 0;
      for (int64_t kh = 0; kh < g.kernel_h; ++kh) {
        for (int64_t kw = 0; kw < g.kernel_w; ++kw) size = std::max(size, magnitude_of(weight_at(kh, kw)));
      }
      unit = weight_unit(size);
    }
    const float per_one = units_of_one(unit);
    for (int64_t at = static_cast<int64_t>(blockIdx.x) * kDepthwisePixels + row; at < pixels;
         at += static_cast<int64_t>(gridDim.x) * kDepthwisePixels) {
      const auto number = static_cast<unsigned>(at);
      Pixel pixel;
      pixel.image = number / width / height * (g.height * g.width);
      pixel.top = number / width % height * g.stride_h - g.padding_h;
      pixel.side = number % width * g.stride_w - g.padding_w;
      const int64_t place = at * g.out_channels + o;
      DeviceNeuron<T, Model> neuron;
      neuron.start(model, a.initial, place);
      neuron.sum = 0;
      Sum sums[kSums] = {};
      for (int64_t p = 0; p < (kCounts ? 1 : a.planes); ++p) {
#pragma unroll
        for (int t = 0; t < kSums; ++t) sums[t] = 0;
        for (int64_t kh = 0; kh < g.kernel_h; ++kh) {
          for (int64_t kw = 0; kw < g.kernel_w; ++kw) {
            const int64_t seen = seen_by(g, pixel, kh, kw);
            if (seen < 0) continue;
            const uint8_t* const in = a.bits + (p * g.pixels_in() + seen) * g.in_channels + from;
            unsigned spikes = *in;  // those of 8 steps, their number, or the value of radix spikes
            if constexpr (kCounts) {
              spikes = 0;
              for (int64_t q = 0; q < a.planes; ++q) {
                spikes += number_of(in[q * g.pixels_in() * g.in_channels], a.values);
              }
            }
            if (spikes == 0) continue;
            const auto weight = static_cast<Sum>(as_packed(weight_at(kh, kw), per_one));
            if constexpr (kCounts) {
              sums[0] += static_cast<Sum>(spikes) * weight;
            } else {
#pragma unroll
              for (int t = 0; t < kSums; ++t) {
                if (spikes >> t & 1) sums[t] += weight;
              }
            }
          }
        }
        if constexpr (!kCounts) {
          const auto current = [&](int s) {
            const T x = current_of(in_units(sums[s], unit), a.scale != nullptr, scale, a.bias != nullptr, bias);
            return add_joined(a.joined, p, s, place, o, x);
          };
          const int steps = static_cast<int>(steps_in_plane(p, a.time_steps));
          a.out_bits[p * pixels * g.out_channels + place] = run_plane<kStepsPerPlane>(model, steps, current, neuron);
        }
      }
      if constexpr (kCounts) {
        a.sum[place] = current_of(in_units(sums[0], unit), a.scale != nullptr, scale, a.bias != nullptr, bias);
      } else {
        neuron.store(a.state, a.sum, place);
      }
    }
  }
}

}  // namespace

bool fits_depthwise(const ConvGeometry& g) {
  return g.group_in() == 1 && g.pixels_out() <= INT32_MAX && g.out_channels <= INT32_MAX;
}

template <class W, class T>
cudaError_t launch_depthwise_product(const CudaDepthwiseArgs<W, T>& args, cudaStream_t stream) {
  const ConvGeometry& g = args.product.geometry;
  if (g.pixels_out() == 0) return cudaSuccess;
  if (!fits_depthwise(g)) return cudaErrorInvalidValue;
  CudaDepthwiseArgs<W, T> own = args;
  own.product.block = g.group_out();  // divided once
  const auto blocks = [](int64_t n, int64_t of_block, int64_t most) {
    return static_cast<unsigned>(std::min((n + of_block - 1) / of_block, most));
  };
  const dim3 grid(blocks(g.pixels_out(), kDepthwisePixels, int64_t{1} << 30),
                  blocks(g.out_channels, kDepthwiseLanes, 65535));
  constexpr int kBlock = kDepthwiseLanes * kDepthwisePixels;
  if (args.product.out_bits == nullptr) {
    using Model = If<Scalar<T>>;  // which does not run
    TANDEM_LAUNCH((depthwise_kernel<W, T, true, Model>), grid, kBlock, 0, stream, own, Model{});
    return cudaGetLastError();
  }
  visit_model<Scalar<T>>(args.product.neuron, [&](const auto& model) {
    using Model = std::decay_t<decltype(model)>;
    TANDEM_LAUNCH((depthwise_kernel<W, T, false, Model>), grid, kBlock, 0, stream, own, model);
  });
  return cudaGetLastError();
}

template cudaError_t launch_depthwise_product(const CudaDepthwiseArgs<float, float>&, cudaStream_t);
template cudaError_t launch_depthwise_product(const CudaDepthwiseArgs<double, double>&, cudaStream_t);
template cudaError_t launch_depthwise_product(const CudaDepthwiseArgs<Float16, float>&, cudaStream_t);
template cudaError_t launch_depthwise_product(const CudaDepthwiseArgs<BFloat16, float>&, cudaStream_t);
template cudaError_t launch_depthwise_product(const CudaDepthwiseArgs<int8_t, float>&, cudaStream_t);
template cudaError_t launch_depthwise_product(const CudaDepthwiseArgs<int16_t, float>&, cudaStream_t);

}  // namespace tandem
