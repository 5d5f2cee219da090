// A thread computes one output: its products, one after the other, so that it adds in the order of the CPU.
#include "cuda/device.cuh"
#include "ops/ordered_product/ordered_product.cuh"

namespace tandem {

namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = int64_t{1} << 30;

template <class E>
__global__ void __launch_bounds__(kThreads) ordered_product_kernel(const CudaOrderedArgs<E> a) {
  const ConvGeometry& g = a.geometry;
  const int64_t channels = g.group_in(), outputs = g.group_out();
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < g.pixels_out() * g.out_channels;
       i += stride) {
    const int64_t at = i / g.out_channels, group = i % g.out_channels / outputs, o = i % outputs;
    const int64_t image = at / (g.out_height * g.out_width) * g.height;
    const int64_t top = at / g.out_width % g.out_height * g.stride_h - g.padding_h;
    const int64_t side = at % g.out_width * g.stride_w - g.padding_w;
    const E* const rows = a.weight + (group * a.blocks + o / a.block) * g.features() * a.block + o % a.block;
    float sum = 0;
    for (int64_t tap = 0; tap < g.taps(); ++tap) {
      const int64_t h = top + tap / g.kernel_w * g.dilation_h, w = side + tap % g.kernel_w * g.dilation_w;
      if (h < 0 || h >= g.height || w < 0 || w >= g.width) continue;
      const float* const in = a.input + ((image + h) * g.width + w) * g.in_channels + group * channels;
      for (int64_t c = 0; c < channels; ++c) {
        sum += in[c] * static_cast<float>(rows[(tap * channels + c) * a.block]);  // compiled without fused additions
      }
    }
    a.out[i] = sum;
  }
}

}  // namespace

template <class E>
cudaError_t launch_ordered_product(const CudaOrderedArgs<E>& args, cudaStream_t stream) {
  const int64_t elements = args.geometry.pixels_out() * args.geometry.out_channels;
  const int64_t blocks = (elements + kThreads - 1) / kThreads;
  if (blocks == 0) return cudaSuccess;
  const auto grid = static_cast<unsigned>(blocks < kMostBlocks ? blocks : kMostBlocks);
  TANDEM_LAUNCH((ordered_product_kernel<E>), grid, kThreads, 0, stream, args);
  return cudaGetLastError();
}

template cudaError_t launch_ordered_product(const CudaOrderedArgs<int8_t>&, cudaStream_t);
template cudaError_t launch_ordered_product(const CudaOrderedArgs<int16_t>&, cudaStream_t);

}  // namespace tandem
