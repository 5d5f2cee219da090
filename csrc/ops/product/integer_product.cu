// The integer engine: spikes or their counts times digits of whole weights on tensor cores, exact in any order. See
// docs/cuda.md.
#include <climits>
#include <cstdint>
#include <type_traits>

#include "core/bit_planes.h"
#include "cuda/device.cuh"
#include "neuron/epilogue.cuh"
#include "ops/product/integer_product.cuh"
#include "ops/product/integer_sums.cuh"
#include "ops/product/packing.cuh"

namespace tandem {

namespace {

// ---- The kernels
//
// In CUTLASS's words, of large tiles: a block's 64 rows of digits x 32 or 64 pixels are the threadblock tile, for 8 or
// 4 time steps at once; a warp's 64 rows x 8 or 16 pixels (Shape) the warp tile; mma.m16n8k32 the instruction shape; a
// step of 4 chunks, 128 inputs, the K of the threadblock tile; kStagedSteps the pipeline stages; `w` and `x` the
// fragments of A and B, `sums` the accumulators; the neurons the epilogue. In small tiles the four warps share out K:
// sliced-K.
//
// Weights are A, 16 rows to a fragment, and pixels B, 8 to a fragment. With so few pixels, a warp often finds none of
// them spike, and skips the products, and the least tile is half as large.
//
// Launch bounds: a multiprocessor has 65,536 registers. Two blocks of 128 threads may have 255 of them a thread, of
// which 128 are the sums of large tiles; three blocks 168, four blocks 128.

// A block: 4 warps side by side, of 64 rows, 8 pixels and 8 steps each, or 16 pixels and 4 steps.
template <int kDigits, int kSteps, class Model>
__global__ void __launch_bounds__(kBlockThreads, 2) integer_spiking_kernel(const Product a, const Model model) {
  using S = Shape<kDigits, kRowTiles / kDigits, 8 / kSteps, kSteps>;
  constexpr int kPixels = kFragmentPixels * S::kColumns,
                kNeurons = 4 * S::kTiles * S::kColumns;  // of a warp, of a thread
  __shared__ __align__(16) uint4 staged[kStagedSteps * kStepWords];
  __shared__ Corners<S::kColumns> corners;
  TANDEM_DYNAMIC_SHARED(float, carried);  // states and sum from plane to plane
  const Walk& g = a.walk;
  const int planes = static_cast<int>(planes_for(a.time_steps));
#pragma unroll 1
  for (int p = 0; p < planes; ++p) {
    typename S::Sums sums = {};
    {
      const Place here = place(a, threadIdx.x, blockIdx.x, S::kTiles * kTileOutputs, kWarps * kPixels);
      if (p == 0) {
        find_corners<S::kColumns>(g, here.pixel + static_cast<int>(threadIdx.x) / kLanes * kPixels + here.lane / 4,
                                  corners);
      }
      const uint4* const weight = a.weight + (here.group * a.blocks + here.block) * g.steps * kStepWords;
      sweep_staged<S>(sums, g, corners, a.input + here.group * g.pitch, a.zeros, weight, staged);
      for (int i = 0; i < S::kColumns; ++i) corners[i][threadIdx.x].origin += g.pixels_in;
    }
    const unsigned thread = anew(threadIdx.x);
    const Place here = place(a, thread, anew(blockIdx.x), S::kTiles * kTileOutputs, kWarps * kPixels);
    const int pixel = here.pixel + static_cast<int>(thread) / kLanes * kPixels + here.lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < 2 * S::kColumns; ++i) {
      const int m = pixel + i / 2 * kFragmentPixels + i % 2;
      if (m >= g.pixels_out) continue;
#pragma unroll
      for (int j = 0; j < S::kTiles; ++j) {
        const auto value = [&](int h, int s) { return value_of<S>(sums, j, i / 2, s, h * 2 + i % 2); };
        fire_pair<kSteps>(a, model, p, planes, m, here.group, here.channel + j * kTileOutputs + here.lane / 4 * 2,
                          carried + (i * S::kTiles + j) * 2 * kBlockThreads + thread, kNeurons * kBlockThreads, value);
      }
    }
  }
}

// A block: 16 channels, 8 pixels and 8 steps; its 4 warps share out the inputs. Then each has a quarter of the neurons.
template <int kDigits, class Model>
__global__ void __launch_bounds__(kBlockThreads, kDigits == 1 ? 3 : 2)
    integer_small_spiking_kernel(const Product a, const Model model) {
  constexpr int kSteps = static_cast<int>(kStepsPerPlane), kTilesOfBlock = kRowTiles / kDigits;
  using S = Shape<kDigits, 1, 1, kSteps>;
  __shared__ Corners<1> corners;
  __shared__ Whole<S> parts[kWarps][kSteps][4][kLanes];
  const Walk& g = a.walk;
  const int planes = static_cast<int>(planes_for(a.time_steps)), warp = warp_of_block();
  const Place here = place(a, threadIdx.x, blockIdx.x, kTileOutputs, kFragmentPixels);
  find_corners<1>(g, here.pixel + here.lane / 4, corners);
  const int64_t block = here.group * ((a.blocks + kTilesOfBlock - 1) / kTilesOfBlock) + here.block / kTilesOfBlock;
  const uint4* const weight = a.weight + block * g.steps * kStepWords;
  // The neuron that is this thread's after the sums have met: what register `warp` of each lane holds.
  const int m = here.pixel + here.lane % 4 * 2 + warp % 2;
  const int64_t n = here.channel + here.lane / 4 * 2 + warp / 2, channel = here.group * a.outputs + n;
  const int64_t at = static_cast<int64_t>(m) * a.out_channels + channel;
  const bool valid = m < g.pixels_out && n < a.outputs;
  DeviceNeuron<float, Model> neuron;
  neuron.start(model, valid ? a.initial : State<const float>{}, at);
  neuron.sum = 0;
#pragma unroll 1
  for (int p = 0; p < planes; ++p) {
    typename S::Sums sums = {};
    sweep_shared_out<S>(sums, g, corners, a.input + here.group * g.pitch, a.zeros, weight,
                        static_cast<int>(here.block % kTilesOfBlock));
    corners[0][threadIdx.x].origin += g.pixels_in;
#pragma unroll
    for (int t = 0; t < kSteps; ++t) {
#pragma unroll
      for (int r = 0; r < 4; ++r) parts[warp][t][r][here.lane] = value_of<S>(sums, 0, 0, t, r);
    }
    __syncthreads();
    if (valid) {
      const auto value = [&](int s) {
        using Bits = std::make_unsigned_t<Whole<S>>;
        Bits sum = 0;
#pragma unroll
        for (int from = 0; from < kWarps; ++from) sum += static_cast<Bits>(parts[from][s][warp][here.lane]);
        return static_cast<Whole<S>>(sum);
      };
      a.out_bits[static_cast<int64_t>(p) * g.pixels_out * a.out_channels + at] =
          static_cast<uint8_t>(fire<kSteps>(a, model, p, at, channel, value, neuron));
    }
    __syncthreads();  // everybody has read the parts of this plane
  }
  if (valid) neuron.store(a.state, a.sum, at);
}

__device__ __forceinline__ void store_count(const Product& a, int64_t at, int64_t channel, long long sum) {
  const float scale = a.scale ? a.scale[channel] : 1.0f, bias = a.bias ? a.bias[channel] : 0.0f;
  const float whole = in_units(sum, a.unit ? a.unit[channel] : 1.0f);
  a.sum[at] = current_of(whole, a.scale != nullptr, scale, a.bias != nullptr, bias);
}

// Counts in place of spikes: one product whatever T. A warp: 64 rows, 32 pixels.
template <int kDigits>
__global__ void __launch_bounds__(kBlockThreads, 3) integer_count_kernel(const Product a) {
  using S = Shape<kDigits, kRowTiles / kDigits, kCountColumns, 1>;
  constexpr int kPixels = kFragmentPixels * S::kColumns;
  __shared__ __align__(16) uint4 staged[kStagedSteps * kStepWords];
  __shared__ Corners<S::kColumns> corners;
  const Walk& g = a.walk;
  const Place here = place(a, threadIdx.x, blockIdx.x, S::kTiles * kTileOutputs, kWarps * kPixels);
  const int pixel = here.pixel + static_cast<int>(threadIdx.x) / kLanes * kPixels;
  find_corners<S::kColumns>(g, pixel + here.lane / 4, corners);
  const uint4* const weight = a.weight + (here.group * a.blocks + here.block) * g.steps * kStepWords;
  typename S::Sums sums = {};
#pragma unroll 1
  for (int part = 0; part < a.parts; ++part) {
    sweep_staged<S>(sums, g, corners, a.input + here.group * g.pitch, a.zeros, weight, staged);
    for (int i = 0; i < S::kColumns; ++i) corners[i][threadIdx.x].origin += g.pixels_in;
  }
#pragma unroll
  for (int i = 0; i < 2 * S::kColumns; ++i) {
    const int m = pixel + i / 2 * kFragmentPixels + here.lane % 4 * 2 + i % 2;
    if (m >= g.pixels_out) continue;
#pragma unroll
    for (int j = 0; j < 2 * S::kTiles; ++j) {
      const int64_t n = here.channel + j / 2 * kTileOutputs + here.lane / 4 * 2 + j % 2;
      const int64_t channel = here.group * a.outputs + n;
      if (n >= a.outputs) continue;
      const auto sum = value_of<S, long long>(sums, j / 2, i / 2, 0, j % 2 * 2 + i % 2);
      store_count(a, static_cast<int64_t>(m) * a.out_channels + channel, channel, sum);
    }
  }
}

// 16 channels, 8 pixels; the 4 warps of a block share out the inputs.
template <int kDigits>
__global__ void __launch_bounds__(kBlockThreads, 4) integer_small_count_kernel(const Product a) {
  constexpr int kTilesOfBlock = kRowTiles / kDigits;
  using S = Shape<kDigits, 1, 1, 1>;
  __shared__ Corners<1> corners;
  __shared__ long long parts[kWarps][4][kLanes];
  const Walk& g = a.walk;
  const int warp = warp_of_block();
  const Place here = place(a, threadIdx.x, blockIdx.x, kTileOutputs, kFragmentPixels);
  find_corners<1>(g, here.pixel + here.lane / 4, corners);
  const int64_t block = here.group * ((a.blocks + kTilesOfBlock - 1) / kTilesOfBlock) + here.block / kTilesOfBlock;
  const uint4* const weight = a.weight + block * g.steps * kStepWords;
  typename S::Sums sums = {};
#pragma unroll 1
  for (int part = 0; part < a.parts; ++part) {
    sweep_shared_out<S>(sums, g, corners, a.input + here.group * g.pitch, a.zeros, weight,
                        static_cast<int>(here.block % kTilesOfBlock));
    corners[0][threadIdx.x].origin += g.pixels_in;
  }
#pragma unroll
  for (int r = 0; r < 4; ++r) parts[warp][r][here.lane] = value_of<S, long long>(sums, 0, 0, 0, r);
  __syncthreads();
  const int m = here.pixel + here.lane % 4 * 2 + warp % 2;
  const int64_t n = here.channel + here.lane / 4 * 2 + warp / 2, channel = here.group * a.outputs + n;
  if (m >= g.pixels_out || n >= a.outputs) return;
  long long sum = 0;
#pragma unroll
  for (int from = 0; from < kWarps; ++from) sum += parts[from][warp][here.lane];
  store_count(a, static_cast<int64_t>(m) * a.out_channels + channel, channel, sum);
}

// ---- What comes before: channels filled up to whole chunks, and counts

struct Prepare {
  const uint8_t* bits;  // [planes, pixels, channels]
  uint4* out;           // [planes, or parts of them, pixels, groups, pitch bytes]
  int64_t planes, pixels, channels, group_in;
  unsigned words, groups, chunks2;  // of 16 bytes: all of them; 2 * chunks
};

// Ones in each byte of a word.
__device__ __forceinline__ unsigned ones_of_bytes(unsigned x) {
  x -= x >> 1 & 0x55555555u;
  x = (x & 0x33333333u) + (x >> 2 & 0x33333333u);
  return (x + (x >> 4)) & 0x0f0f0f0fu;
}

// A thread: 16 bytes of a group's channels, of one plane, or their counts over up to 31 planes. Values of radix spikes
// are a plane.
template <bool kCounts>
__global__ void __launch_bounds__(kBlockThreads) prepare_spikes_kernel(const Prepare a) {
  const unsigned stride = gridDim.x * kBlockThreads;
  const bool aligned = a.channels % 4 == 0 && a.group_in % 4 == 0 && reinterpret_cast<uintptr_t>(a.bits) % 4 == 0;
  for (unsigned i = blockIdx.x * kBlockThreads + threadIdx.x; i < a.words; i += stride) {
    const unsigned c = i % a.chunks2 * 16, rest = i / a.chunks2, group = rest % a.groups, at = rest / a.groups;
    const unsigned pixels = static_cast<unsigned>(a.pixels), pixel = at % pixels, part = at / pixels;
    const int64_t first = kCounts ? part * kPlanesPart : part;
    const int64_t last = kCounts ? (first + kPlanesPart < a.planes ? first + kPlanesPart : a.planes) : first + 1;
    const int left = static_cast<int>(a.group_in - c < 16 ? a.group_in - c : 16);
    unsigned words[4] = {};
    for (int64_t p = first; p < last; ++p) {
      const uint8_t* const in = a.bits + (p * a.pixels + pixel) * a.channels + group * a.group_in + c;
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        unsigned word = 0;
        if (aligned) {
          if (4 * w < left) word = *reinterpret_cast<const unsigned*>(in + 4 * w);
        } else {
#pragma unroll
          for (int b = 0; b < 4; ++b) {
            if (4 * w + b < left) word |= static_cast<unsigned>(in[4 * w + b]) << 8 * b;
          }
        }
        words[w] += kCounts ? ones_of_bytes(word) : word;
      }
    }
    a.out[i] = uint4{words[0], words[1], words[2], words[3]};
  }
}

// ---- The order of the weights

// A thread: 16 bytes.
template <class W>
__global__ void __launch_bounds__(kBlockThreads)
    pack_fragments_kernel(const CudaFragmentArgs<W> a, const FragmentLayout layout) {
  if (is_unchanged(a.watched)) return;
  constexpr int kDigits = kDigitsOf<DevicePacked<W>>, kTiles = kRowTiles / kDigits;
  const ConvGeometry& g = a.geometry;
  const auto words = static_cast<unsigned>(layout.words()), all = words + static_cast<unsigned>(layout.zeros() / 16);
  const auto steps = static_cast<unsigned>(layout.steps), blocks = static_cast<unsigned>(layout.blocks);
  const auto chunks = static_cast<unsigned>(layout.chunks), kernel_w = static_cast<unsigned>(g.kernel_w);
  auto* const out = static_cast<uint4*>(a.fragments);
  for (unsigned i = blockIdx.x * kBlockThreads + threadIdx.x; i < all; i += gridDim.x * kBlockThreads) {
    unsigned bytes[4] = {};
    if (i < words) {
      const auto in_step = static_cast<int>(i % kStepWords);
      const int lane = in_step % kLanes, row = in_step / kLanes % kRowTiles, slice = in_step / kSliceWords;
      const unsigned step = i / kStepWords % steps, block = i / kStepWords / steps, group = block / blocks;
      const unsigned chunk = step * kQuads + lane % kQuads, tap = chunk / chunks;
      const int64_t first = (block % blocks * kTiles + row % kTiles) * kTileOutputs + lane / 4 * 2;
      const int64_t from_channel = chunk % chunks * kChunk + slice * 8;
      if (tap < g.taps()) {
        const W* const at_tap = a.weight + tap / kernel_w * a.stride_h + tap % kernel_w * a.stride_w;
        for (int r = 0; r < 4; ++r) {
          const int64_t o = first + r % 2, channel = group * g.group_out() + o;
          if (o >= g.group_out()) continue;
          const float per_one = a.unit ? units_of_one(a.unit[channel]) : 1.0f;
          for (int b = 0; b < 4; ++b) {
            const int64_t c = from_channel + r / 2 * 4 + b;
            if (c >= g.group_in()) continue;
            const int32_t q = as_packed(at_tap[channel * a.stride_o + c * a.stride_c], per_one);
            bytes[r] |= (static_cast<unsigned>(q >> 8 * (kDigits - 1 - row / kTiles)) & 0xff) << 8 * b;
          }
        }
      }
    }
    out[i] = uint4{bytes[0], bytes[1], bytes[2], bytes[3]};
  }
}

// ---- The host's part

constexpr int64_t kMostSize = int64_t{1} << 28;

int64_t tiles_of(int64_t size, int64_t of_block) { return (size + of_block - 1) / of_block; }

int64_t pixels_of_block(int64_t time_steps, bool counts) {
  return kWarps * kFragmentPixels * (counts ? kCountColumns : time_steps <= 4 ? 2 : 1);
}

int64_t parts_of(int64_t planes, bool counts) { return counts ? (planes + kPlanesPart - 1) / kPlanesPart : planes; }

Walk walk_of(const ConvGeometry& g, const FragmentLayout& layout, int ahead) {
  const auto narrow = [](int64_t x) { return static_cast<int>(x); };
  Walk w = {};
  w.height = narrow(g.height), w.width = narrow(g.width);
  w.out_height = narrow(g.out_height), w.out_width = narrow(g.out_width);
  w.stride_h = narrow(g.stride_h), w.stride_w = narrow(g.stride_w);
  w.padding_h = narrow(g.padding_h), w.padding_w = narrow(g.padding_w);
  w.dilation_h = narrow(g.dilation_h), w.dilation_w = narrow(g.dilation_w), w.kernel_w = narrow(g.kernel_w);
  w.pixels_in = narrow(g.pixels_in()), w.pixels_out = narrow(g.pixels_out());
  w.pixel_bytes = narrow(g.groups * layout.pitch), w.pitch = narrow(layout.pitch);
  w.chunks = narrow(layout.chunks), w.steps = narrow(layout.steps);
  w.ahead = ahead;
  w.whole = ahead / w.chunks * w.chunks;
  w.down = ahead / w.chunks / w.kernel_w * w.dilation_h;
  w.right = ahead / w.chunks % w.kernel_w * w.dilation_w;
  w.span = w.kernel_w * w.dilation_w;
  return w;
}

template <int kDigits, int kSteps>
cudaError_t launch_large(const Product& a, const Neuron& neuron, unsigned grid, cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  visit_model<Scalar<float>>(neuron, [&](const auto& model) {
    using Model = std::decay_t<decltype(model)>;
    constexpr int kNeurons = 4 * (kRowTiles / kDigits) * (8 / kSteps);  // of a thread
    const size_t floats = a.time_steps > kStepsPerPlane ? size_t{kNeurons} * (Model::kStates + 1) * kBlockThreads : 0;
    if (floats != 0) {
      error = TANDEM_ALLOW_SHARED((integer_spiking_kernel<kDigits, kSteps, Model>), floats * sizeof(float));
      if (error != cudaSuccess) return;
    }
    TANDEM_LAUNCH((integer_spiking_kernel<kDigits, kSteps, Model>), grid, kBlockThreads, floats * sizeof(float), stream,
                  a, model);
  });
  return error == cudaSuccess ? cudaGetLastError() : error;
}

template <int kDigits>
cudaError_t launch_digits(const Product& a, const Neuron& neuron, bool counts, Tiles tiles, cudaStream_t stream) {
  const auto grid = static_cast<unsigned>(a.tiles * a.blocks * (a.out_channels / a.outputs));
  const bool small = tiles == Tiles::kSmall;
#if defined(TANDEM_WARPGROUPS)
  if (tiles == Tiles::kWarpgroup) return launch_warpgroup_tiles<kDigits>(a, neuron, grid, stream);
#endif
  if (counts && small) {
    TANDEM_LAUNCH((integer_small_count_kernel<kDigits>), grid, kBlockThreads, 0, stream, a);
  } else if (counts) {
    TANDEM_LAUNCH((integer_count_kernel<kDigits>), grid, kBlockThreads, 0, stream, a);
  } else if (small) {
    visit_model<Scalar<float>>(neuron, [&](const auto& model) {
      using Model = std::decay_t<decltype(model)>;
      TANDEM_LAUNCH((integer_small_spiking_kernel<kDigits, Model>), grid, kBlockThreads, 0, stream, a, model);
    });
  } else if (a.time_steps <= 4) {
    return launch_large<kDigits, 4>(a, neuron, grid, stream);
  } else {
    return launch_large<kDigits, 8>(a, neuron, grid, stream);
  }
  return cudaGetLastError();
}

}  // namespace

bool fits_integer_engine(const ConvGeometry& g, int digits, int64_t planes, int64_t largest) {
  const FragmentLayout layout = fragment_layout(g, digits);
  // A digit is at most 128 with a sign and 255 without. A spike of step 7 counts 2^7.
  constexpr int64_t kMostOnes = int64_t{1} << 24;
  if (g.features() > kMostOnes / (largest != 0 ? largest : 128)) return false;
  // Walks end so many taps beyond the last one.
  constexpr int64_t kTapsBeyond = 4 * kWarps * kQuads;
  const int64_t reach_h = (g.kernel_h + kTapsBeyond) * g.dilation_h,
                reach_w = (g.kernel_w + kTapsBeyond) * g.dilation_w;
  // Each below 2^28, so that products of two are far from the ends of 64 bits, and sums of some fit 32.
  for (const int64_t size : {g.height, g.width, g.padding_h, g.padding_w, g.kernel_h, g.kernel_w, reach_h, reach_w,
                             g.stride_h * g.out_height, g.stride_w * g.out_width, g.pixels_out(), planes, layout.steps,
                             g.groups * layout.pitch}) {
    if (size >= kMostSize) return false;
  }
  // Numbers of pixels, of all planes and around the image; blocks of small tiles; words of prepared spikes.
  const int64_t around = (reach_h + g.padding_h + g.height) * (g.width + 1);
  if (g.pixels_in() >= kMostSize || around >= 2 * kMostSize) return false;
  if ((planes + 1) * g.pixels_in() >= 2 * kMostSize) return false;
  const int64_t small_tiles =
      (g.group_out() + kTileOutputs - 1) / kTileOutputs * tiles_of(g.pixels_out(), kFragmentPixels);
  if (small_tiles > INT_MAX / g.groups) return false;
  return parts_of(planes, largest != 0) * g.pixels_in() <= INT_MAX / (g.groups * layout.pitch / 16);
}

int64_t prepared_bytes(const ConvGeometry& g, const uint8_t* bits, int64_t planes, bool counts) {
  const int64_t chunks = (g.group_in() + kChunk - 1) / kChunk;
  if (!counts && g.group_in() % kChunk == 0 && reinterpret_cast<uintptr_t>(bits) % 16 == 0) return 0;
  return parts_of(planes, counts) * g.pixels_in() * g.groups * chunks * kChunk;
}

bool has_warpgroup_tiles() {
#if defined(TANDEM_WARPGROUPS)
  return true;
#else
  return false;
#endif
}

int64_t large_blocks(const ConvGeometry& g, int digits, int64_t time_steps, bool counts) {
  return tiles_of(g.pixels_out(), pixels_of_block(time_steps, counts)) * fragment_layout(g, digits).blocks * g.groups;
}

template <class E>
cudaError_t launch_integer_product(const CudaProductArgs<E, float>& args, const void* fragments, uint8_t* prepared,
                                   Tiles tiles, cudaStream_t stream) {
  constexpr int kDigits = kDigitsOf<E>;
  const ConvGeometry& g = args.geometry;
  const bool counts = args.out_bits == nullptr, counted = counts && !args.values;
  if (g.pixels_out() == 0) return cudaSuccess;
  if (!fits_integer_engine(g, kDigits, args.planes, args.largest)) return cudaErrorInvalidValue;
  const FragmentLayout layout = fragment_layout(g, kDigits);
  Product a = {};
  const bool small = tiles == Tiles::kSmall;
  a.walk = walk_of(g, layout, small ? kWarps * kQuads : kQuads);
  a.input = args.bits;
  a.weight = static_cast<const uint4*>(fragments);
  a.zeros = static_cast<const uint8_t*>(fragments) + layout.words() * 16;
  a.parts = static_cast<int>(parts_of(args.planes, counts));
  a.out_channels = g.out_channels, a.outputs = g.group_out(), a.time_steps = args.time_steps;
  a.blocks = small ? tiles_of(g.group_out(), kTileOutputs) : layout.blocks;
  a.tiles = tiles_of(g.pixels_out(), small ? kFragmentPixels : pixels_of_block(args.time_steps, counts));
  if (tiles == Tiles::kWarpgroup) {
    if (counts || !has_warpgroup_tiles()) return cudaErrorInvalidValue;
    a.blocks = tiles_of(g.group_out(), warpgroup_rows(args.time_steps) / kDigits);
    a.tiles = tiles_of(g.pixels_out(), kWarpgroupPixels);
  }
  a.unit = args.unit, a.scale = args.scale, a.bias = args.bias, a.initial = args.initial, a.out_bits = args.out_bits;
  a.sum = args.sum, a.state = args.state, a.joined = args.joined;
  const int64_t bytes = prepared_bytes(g, args.bits, args.planes, counted);
  if (bytes != 0) {
    Prepare prepare = {};
    prepare.bits = args.bits, prepare.out = reinterpret_cast<uint4*>(prepared);
    prepare.planes = args.planes, prepare.pixels = g.pixels_in(), prepare.channels = g.in_channels;
    prepare.group_in = g.group_in(), prepare.words = static_cast<unsigned>(bytes / 16);
    prepare.groups = static_cast<unsigned>(g.groups), prepare.chunks2 = static_cast<unsigned>(2 * layout.chunks);
    const int64_t blocks = (bytes / 16 + kBlockThreads - 1) / kBlockThreads;
    const auto grid = static_cast<unsigned>(blocks < 1 << 16 ? blocks : 1 << 16);
    if (counted) {
      TANDEM_LAUNCH((prepare_spikes_kernel<true>), grid, kBlockThreads, 0, stream, prepare);
    } else {
      TANDEM_LAUNCH((prepare_spikes_kernel<false>), grid, kBlockThreads, 0, stream, prepare);
    }
    a.input = prepared;
  }
  return launch_digits<kDigits>(a, args.neuron, counts, tiles, stream);
}

template <class W>
cudaError_t launch_pack_fragments(const CudaFragmentArgs<W>& args, cudaStream_t stream) {
  const FragmentLayout layout = fragment_layout(args.geometry, kDigitsOf<DevicePacked<W>>);
  if (layout.bytes() / 16 > INT_MAX) return cudaErrorInvalidValue;  // 32 GiB
  const unsigned grid = packing_grid((layout.bytes() / 16 + kBlockThreads - 1) / kBlockThreads);
  TANDEM_LAUNCH((pack_fragments_kernel<W>), grid, kBlockThreads, 0, stream, args, layout);
  return cudaGetLastError();
}

template cudaError_t launch_integer_product(const CudaProductArgs<int8_t, float>&, const void*, uint8_t*, Tiles,
                                            cudaStream_t);
template cudaError_t launch_integer_product(const CudaProductArgs<int16_t, float>&, const void*, uint8_t*, Tiles,
                                            cudaStream_t);
template cudaError_t launch_integer_product(const CudaProductArgs<int32_t, float>&, const void*, uint8_t*, Tiles,
                                            cudaStream_t);
template cudaError_t launch_pack_fragments(const CudaFragmentArgs<int8_t>&, cudaStream_t);
template cudaError_t launch_pack_fragments(const CudaFragmentArgs<int16_t>&, cudaStream_t);
template cudaError_t launch_pack_fragments(const CudaFragmentArgs<float>&, cudaStream_t);
template cudaError_t launch_pack_fragments(const CudaFragmentArgs<Float16>&, cudaStream_t);
template cudaError_t launch_pack_fragments(const CudaFragmentArgs<BFloat16>&, cudaStream_t);

}  // namespace tandem
