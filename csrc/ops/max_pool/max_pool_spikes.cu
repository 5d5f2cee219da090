// Two passes: the count of every neuron before each plane, from which a thread takes one pooled neuron through the
// eight steps of one plane.
#include "core/bit_planes.h"
#include "cuda/device.cuh"
#include "ops/max_pool/max_pool_spikes.cuh"

namespace tandem {

namespace {

constexpr unsigned kThreads = 256;
// Blocks beyond this many walk the neurons in a grid-stride loop: enough to fill any device many times over.
constexpr int64_t kMostBlocks = int64_t{1} << 20;
constexpr int kSteps = static_cast<int>(kStepsPerPlane);

struct PlaneCounts {
  const uint8_t* bits;     // [planes, neurons]
  const int32_t* initial;  // [neurons], may be a row of counts, or null
  int32_t* counts;         // [planes + 1, neurons]
  int32_t* final;          // [neurons] or null
  int64_t planes, neurons;
};

__global__ void __launch_bounds__(kThreads) plane_counts_kernel(const PlaneCounts a) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < a.neurons; i += stride) {
    uint32_t count = a.initial ? static_cast<uint32_t>(a.initial[i]) : 0;
    for (int64_t p = 0; p < a.planes; ++p) {
      a.counts[p * a.neurons + i] = static_cast<int32_t>(count);
      count += static_cast<uint32_t>(__popc(a.bits[p * a.neurons + i]));
    }
    a.counts[a.planes * a.neurons + i] = static_cast<int32_t>(count);
    if (a.final) a.final[i] = static_cast<int32_t>(count);
  }
}

struct MaxPool {
  ConvGeometry geometry;
  const uint8_t* bits;    // [planes, pixels_in, channels]
  const int32_t* counts;  // [planes, pixels_in, channels], before each plane, or null: all zero
  uint8_t* out;           // [planes, pixels_out, channels]
  int64_t planes;
  bool radix;  // whether bytes are the values of radix spikes
};

// Index: a type that holds the number of pooled neurons of all planes; to divide by one of 32 bits is cheap.
template <class Index>
__global__ void __launch_bounds__(kThreads) max_pool_kernel(const MaxPool a) {
  const ConvGeometry& g = a.geometry;
  const int64_t neurons = a.planes * g.pixels_out() * g.in_channels;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < neurons; i += stride) {
    Index rest = static_cast<Index>(i) / static_cast<Index>(g.in_channels);
    const int64_t channel = i - static_cast<int64_t>(rest) * g.in_channels;
    Index above = rest / static_cast<Index>(g.out_width);
    const int64_t column = static_cast<int64_t>(rest - above * static_cast<Index>(g.out_width));
    rest = above, above = rest / static_cast<Index>(g.out_height);
    const int64_t row = static_cast<int64_t>(rest - above * static_cast<Index>(g.out_height));
    const int64_t image = static_cast<int64_t>(above) * g.height;  // planes and samples
    // Relative to whichever of the window's neurons comes first: the largest counts before the plane and at each step.
    int32_t base = 0, before = 0, most[kSteps] = {};
    unsigned largest = 0;
    bool any = false;
    for (int64_t ky = 0, y = row * g.stride_h - g.padding_h; ky < g.kernel_h && y < g.height; ++ky, y += g.dilation_h) {
      if (y < 0) continue;
      int64_t x = column * g.stride_w - g.padding_w;
      for (int64_t kx = 0; kx < g.kernel_w && x < g.width; ++kx, x += g.dilation_w) {
        if (x < 0) continue;
        const int64_t at = ((image + y) * g.width + x) * g.in_channels + channel;
        const unsigned word = a.bits[at];
        largest = word > largest ? word : largest;
        if (a.radix) continue;
        int32_t count = 0;
        if (a.counts) {
          if (!any) base = a.counts[at];
          count = static_cast<int32_t>(static_cast<uint32_t>(a.counts[at]) - static_cast<uint32_t>(base));
        }
        before = any && before > count ? before : count;
        for (int s = 0; s < kSteps; ++s) {
          count += static_cast<int32_t>(word >> s & 1);
          most[s] = any && most[s] > count ? most[s] : count;
        }
        any = true;
      }
    }
    unsigned spikes = 0;
    for (int s = 0; s < kSteps; ++s) {
      spikes |= static_cast<unsigned>(most[s] > before) << s;
      before = most[s];
    }
    a.out[i] = static_cast<uint8_t>(a.radix ? largest : spikes);
  }
}

unsigned blocks_for(int64_t neurons) {
  const int64_t blocks = (neurons - 1) / kThreads + 1;
  return static_cast<unsigned>(blocks < kMostBlocks ? blocks : kMostBlocks);
}

}  // namespace

cudaError_t launch_max_pool_spikes(const CudaMaxPoolArgs& args, cudaStream_t stream) {
  const ConvGeometry& g = args.geometry;
  const int64_t neurons = g.pixels_in() * g.in_channels, pooled = g.pixels_out() * g.in_channels;
  if (pooled == 0) return cudaSuccess;
  const int32_t* initial = args.count;
  for (int64_t p = 0; p < args.planes; p += kPoolPlanes) {
    const int64_t planes = args.planes - p < kPoolPlanes ? args.planes - p : kPoolPlanes;
    const bool ends = p + planes == args.planes;
    if (args.scratch) {
      const PlaneCounts counts = {args.bits + p * neurons,         initial, args.scratch,
                                  ends ? args.out_count : nullptr, planes,  neurons};
      TANDEM_LAUNCH(plane_counts_kernel, blocks_for(neurons), kThreads, 0, stream, counts);
      initial = args.scratch + planes * neurons;
    }
    const MaxPool pool = {g, args.bits + p * neurons, args.scratch, args.out + p * pooled, planes, args.radix};
    const unsigned grid = blocks_for(planes * pooled);
    if (planes * pooled < int64_t{1} << 32) {
      TANDEM_LAUNCH((max_pool_kernel<uint32_t>), grid, kThreads, 0, stream, pool);
    } else {
      TANDEM_LAUNCH((max_pool_kernel<int64_t>), grid, kThreads, 0, stream, pool);
    }
  }
  return cudaGetLastError();
}

}  // namespace tandem
