// The tensor-core engine of floating-point weights, each a sum of bf16 terms. A neuron belongs to one thread for all
// time steps: currents, states and spikes of a step stay in registers. See docs/cuda.md.
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core/bit_planes.h"
#include "cuda/device.cuh"
#include "neuron/epilogue.cuh"
#include "ops/product/packing.cuh"
#include "ops/product/pixel.cuh"
#include "ops/product/spiking_product.cuh"
#include "ops/product/warp.cuh"

namespace tandem {

namespace {

constexpr int kTileWarps = 4;    // of a block, one below the other
constexpr int kTilePixels = 16;  // of a warp: the rows of a fragment
constexpr int kColumn = 8;       // output channels of a fragment
constexpr int kStages = 3;       // steps whose weights are in shared memory or on their way there

// A float32 as the sum of bf16 numbers, in the upper halves of words: each the nearest to what is left, the even one of
// two. Differences are exact.
template <int kTerms>
__device__ __forceinline__ void split(float x, unsigned (&terms)[kTerms]) {
  unsigned word;
  memcpy(&word, &x, sizeof(word));
  const unsigned size = word & 0x7fffffffu;
  // What would be rounded to infinity is cut off instead, as are its other terms: no sum of some of them overflows.
  const bool rounds = size < 0x7f7f8000u, finite = size < 0x7f800000u;
  // Of a NaN's bits, the upper ones may all be zero: it would be an infinity.
  if (size > 0x7f800000u) word |= 0x400000u;
  for (int i = 0; i < kTerms; ++i) {
    terms[i] = (rounds ? word + 0x7fffu + (word >> 16 & 1) : word) & 0xffff0000u;
    // An infinity has no rest; its own difference would be NaN.
    x = finite ? x - float_of_word(terms[i]) : 0.0f;
    memcpy(&word, &x, sizeof(word));
  }
}

// Of an output pixel: row and column of its first tap, and the offset of that input pixel's channels in the present
// plane, even where it is outside of the image.
struct alignas(16) Window {
  int64_t origin;
  int top, left;
};

// Two bf16 of what two bytes stand for: exact, since that has at most 8 significant bits.
__device__ __forceinline__ unsigned count_pair(unsigned low, unsigned high, bool values) {
  const auto a = static_cast<float>(number_of(low, values)), b = static_cast<float>(number_of(high, values));
  unsigned x, y;
  memcpy(&x, &a, sizeof(x));
  memcpy(&y, &b, sizeof(y));
  return x >> 16 | (y & 0xffff0000u);
}

// Where a thread's neurons are: the first one's pixel, and its channel in the group.
struct Tile {
  int64_t group, channel, pixel;
  int thread;

  __device__ __forceinline__ Tile(const ConvGeometry& g, unsigned thread_, unsigned block, int width)
      : thread(static_cast<int>(thread_)) {
    const auto tiles =
        static_cast<unsigned>((g.pixels_out() + kTileWarps * kTilePixels - 1) / (kTileWarps * kTilePixels));
    const auto slices = static_cast<unsigned>((g.group_out() + width - 1) / width);
    const int lane = thread % kWarp;
    group = block / tiles / slices;
    channel = static_cast<int64_t>(block / tiles % slices) * width + 2 * (lane % 4);
    pixel = (static_cast<int64_t>(block % tiles) * kTileWarps + thread / kWarp) * kTilePixels + lane / 4;
  }
};

// What a product reads of weights that are packed as terms.
struct Terms {
  const uint4* words;
  int step_words;  // from step to step
};

// A block: 64 output pixels x kColumns * 8 output channels; a warp: 16 of the pixels, all 8 time steps of a plane.
//
// Step after step, 16 input channels of a tap: a lane reads the 4 bytes of its 4 input channels once for each of its 2
// pixels, a step ahead, and expands them to the A fragment of every time step. The weights' B fragments, which serve
// all of them, come to shared memory three steps ahead, and to registers as soon as those of the step before are done
// with. Which channel a fragment calls k is free as long as A and B agree: k = 2q, 2q + 1, 2q + 8, 2q + 9 are the
// channels 4q to 4q + 3, so that a lane's bytes lie side by side.
//
// Silent pixels are multiplied, too: where spikes are so few that the 16 pixels of a warp often have none, the gather
// engine is faster.
//
// In CUTLASS's words: the block's 64 pixels x 16 or 32 channels are the threadblock tile, for all 8 time steps at once;
// a warp's 16 pixels x 16 or 32 channels the warp tile; mma.m16n8k16 the instruction shape; 16 input channels of a tap
// the K of the threadblock tile; kStages the pipeline stages; `fragment` and `w` the fragments of A and B, `sums` the
// accumulators; the neurons the epilogue.
//
// Pixels are A, 16 to a fragment, and output channels B. A weight has up to three terms of 16 bits, so its fragments
// are what the engine reads most, and this way each serves 16 pixels. In the integer engine, weights are A: see there.
//
// Launch bounds: two blocks of 128 threads share the 65,536 registers of a multiprocessor, so that a thread may have
// the 255 that an instruction can name. 128 of them are the sums of 8 steps and 32 channels.
template <int kColumns, bool kCounts, int kTerms, class Model>
__global__ void __launch_bounds__(kTileWarps* kWarp, 2)
    tensor_core_kernel(const CudaProductArgs<float, float> a, const Terms weight, const Model model) {
  constexpr int kSums = kCounts ? 1 : static_cast<int>(kStepsPerPlane);
  constexpr int kWidth = kColumns * kColumn, kTiles = kWidth / kTermTile, kThreads = kTileWarps * kWarp;
  constexpr int kStepWords = kTerms * kTiles * kTermWords;
  constexpr int kNeurons = 4 * kColumns;  // of a thread
  __shared__ __align__(16) uint4 staged[kStages * kStepWords];
  // States and sum from plane to plane; a thread reads but what it wrote.
  __shared__ float carried[kCounts ? 1 : Model::kStates + 1][kCounts ? 1 : kNeurons][kThreads];
  __shared__ Window windows[kTileWarps * kTilePixels];
  const ConvGeometry& g = a.geometry;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
  const int q = lane % 4, r = lane / 4;
  const int64_t pixels = g.pixels_out(), outputs = g.group_out();
  const auto tiles = static_cast<unsigned>((pixels + kTileWarps * kTilePixels - 1) / (kTileWarps * kTilePixels));
  const auto slices = static_cast<unsigned>((outputs + kWidth - 1) / kWidth);
  const int channels = static_cast<int>(g.group_in());
  const int steps = static_cast<int>(g.taps()) * ((channels + kTermInputs - 1) / kTermInputs);
  const bool aligned = channels % 4 == 0 && reinterpret_cast<uintptr_t>(a.bits) % 4 == 0;

  const int64_t first = static_cast<int64_t>(blockIdx.x % tiles) * kTileWarps * kTilePixels;  // pixel of the block
  if (thread < kTileWarps * kTilePixels) {
    const Pixel pixel = pixel_at(g, first + thread);
    const int64_t origin = (pixel.image + pixel.top * g.width + pixel.side) * g.in_channels;
    const int beyond = INT32_MIN / 2;  // sees nothing
    windows[thread] = {origin + blockIdx.x / tiles / slices * g.group_in(),
                       first + thread < pixels ? static_cast<int>(pixel.top) : beyond, static_cast<int>(pixel.side)};
  }
  __syncthreads();

  const int planes = kCounts ? 1 : static_cast<int>(a.planes);
  for (int plane = 0; plane < planes; ++plane) {
    float sums[kSums][kColumns][4] = {};

    const auto of_block = static_cast<int64_t>(anew(blockIdx.x) / tiles) * steps * weight.step_words;
    const uint4* from = weight.words + of_block;
    // Reads nothing beyond the last step. What is fetched behind it, from a slot that got no weights, is not
    // multiplied.
    const auto stage = [&](int slot, bool exists) {
      if (exists) {
#pragma unroll 1
        for (int i = thread; i < kStepWords; i += kThreads) cp_async_16(staged + slot + i, from + i, true);
      }
      cp_async_commit();
      from += weight.step_words;
    };
    uint4 w[kTerms][kTiles];
    const auto fetch = [&](int slot, int tile) {
#pragma unroll
      for (int m = 0; m < kTerms; ++m) w[m][tile] = staged[slot + (m * kTiles + tile) * kTermWords + lane];
    };

    // Where the next spikes are: the tap, from the first one; the step's first channel; of the lane's pixels, the
    // offsets of its first channel, and how many more there are, none outside of the image.
    int down = 0, right = 0, c = 0, left[2];
    int64_t at[2];
    unsigned x[2];
    const auto locate = [&] {
      const int64_t moved = (static_cast<int64_t>(down) * g.width + right) * g.in_channels;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const Window window = windows[warp * kTilePixels + r + 8 * i];
        const bool inside = static_cast<unsigned>(window.top + down) < static_cast<unsigned>(g.height) &&
                            static_cast<unsigned>(window.left + right) < static_cast<unsigned>(g.width);
        at[i] = window.origin + moved + 4 * q;
        left[i] = inside ? channels - 4 * q : 0;
      }
    };
    const auto load = [&](int64_t of_digit) {
      if (aligned) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          x[i] = c < left[i] ? *reinterpret_cast<const unsigned*>(a.bits + (at[i] + of_digit + c)) : 0;
        }
      } else {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          x[i] = 0;
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            if (c + k < left[i]) x[i] |= static_cast<unsigned>(a.bits[at[i] + of_digit + c + k]) << 8 * k;
          }
        }
      }
    };
    // Past the last tap nobody looks at what is loaded: any pixel of the image will do, or none. So `load` never reads
    // outside of the planes: the four bytes of a lane that is inside belong to its pixel, as channels are a multiple of
    // 4 or read one by one.
    const auto advance = [&] {
      c += kTermInputs;
      if (c < channels) return;
      c = 0;
      right += static_cast<int>(g.dilation_w);
      if (right == static_cast<int>(g.kernel_w) * static_cast<int>(g.dilation_w)) {
        right = 0;
        down += static_cast<int>(g.dilation_h);
      }
      locate();
    };

#pragma unroll
    for (int s = 0; s < kStages; ++s) stage(s * kStepWords, s < steps);
    locate();
    load(0);
    cp_async_wait<kStages - 1>();
    __syncthreads();
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) fetch(0, tile);
    int slot = 0;  // of the step in `staged`
    // Goes on to the next step's weights.
    const auto turn = [&](int todo) {
      cp_async_wait<kStages - 2>();
      // Everybody's copies of the next step are there, and everybody has fetched the present one.
      __syncthreads();
      stage(slot, todo > kStages);
      slot = slot == (kStages - 1) * kStepWords ? 0 : slot + kStepWords;
    };
    // For counts the planes follow one another in each step.
    const int64_t digits = kCounts ? a.planes : 1, digit_bytes = g.pixels_in() * g.in_channels;
    for (int todo = steps; todo > 0; --todo) {
      for (int64_t digit = 0; digit < digits; ++digit) {
        // Bytes 0 and 1, and 2 and 3, a halfword apart.
        const unsigned pairs[4] = {__byte_perm(x[0], 0, 0x4140), __byte_perm(x[1], 0, 0x4140),
                                   __byte_perm(x[0], 0, 0x4342), __byte_perm(x[1], 0, 0x4342)};
        const bool last = digit + 1 == digits;
        if (last) advance();
        load(last ? 0 : (digit + 1) * digit_bytes);
#pragma unroll
        for (int t = 0; t < kSums; ++t) {
          unsigned fragment[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            constexpr unsigned kOne = 0x3f80;  // 1 in bf16; 2^t of its 2^-t are a whole number
            fragment[i] = kCounts ? count_pair(pairs[i] & 0xff, pairs[i] >> 16, a.values)
                                  : (pairs[i] & 0x10001u << t) * (kOne >> t);
          }
          const bool turns = !kCounts && t + 1 == kSums;
          if (turns) turn(todo);
          // Tensor cores cut off what they align away. Their own sums are therefore of one step alone, the smallest
          // terms first; CUDA cores add these up, rounded to nearest.
#pragma unroll
          for (int tile = 0; tile < kTiles; ++tile) {
            float part[2][4] = {};
#pragma unroll
            for (int e = kTerms - 1; e >= 0; --e) {
              const uint4& both = w[e][tile];
              const unsigned b[2][2] = {{both.x, both.y}, {both.z, both.w}};
#pragma unroll
              for (int j = 0; j < 2; ++j) mma_m16n8k16_bf16(part[j], fragment, b[j]);
            }
#pragma unroll
            for (int j = 0; j < 2; ++j) {
#pragma unroll
              for (int i = 0; i < 4; ++i) sums[t][2 * tile + j][i] += part[j][i];
            }
            if (turns) fetch(slot, tile);  // the next step's
          }
        }
      }
      if constexpr (kCounts) {
        turn(todo);
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) fetch(slot, tile);
      }
    }
    if (thread < kTileWarps * kTilePixels) windows[thread].origin += g.pixels_in() * g.in_channels;
    cp_async_wait<0>();
    __syncthreads();  // nobody still reads what the next plane is staged over

    [[maybe_unused]] const int in_plane = static_cast<int>(steps_in_plane(plane, a.time_steps));
    const Tile own(g, anew(threadIdx.x), anew(blockIdx.x), kWidth);
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int64_t n = own.channel + j * kColumn + e % 2, at = own.pixel + e / 2 * 8;
        if (at >= pixels || n >= outputs) continue;
        const int64_t channel = own.group * outputs + n, place = at * g.out_channels + channel;
        const float scale = a.scale ? a.scale[channel] : 1.0f, bias = a.bias ? a.bias[channel] : 0.0f;
        const auto current = [&](int s) {
          const float x = current_of(sums[s][j][e], a.scale != nullptr, scale, a.bias != nullptr, bias);
          return kCounts ? x : add_joined(a.joined, plane, s, place, channel, x);
        };
        if constexpr (kCounts) {
          a.sum[place] = current(0);
        } else {
          DeviceNeuron<float, Model> neuron;
          if (plane == 0) {
            neuron.start(model, a.initial, place);
            neuron.sum = 0;
          } else {
#pragma unroll
            for (int v = 0; v < Model::kStates; ++v) neuron.state[v] = carried[v][4 * j + e][own.thread];
            neuron.sum = carried[Model::kStates][4 * j + e][own.thread];
          }
          a.out_bits[static_cast<int64_t>(plane) * pixels * g.out_channels + place] =
              run_plane<kStepsPerPlane>(model, in_plane, current, neuron);
#pragma unroll
          for (int v = 0; v < Model::kStates; ++v) carried[v][4 * j + e][own.thread] = neuron.state[v];
          carried[Model::kStates][4 * j + e][own.thread] = neuron.sum;
          if (plane + 1 == planes) neuron.store(a.state, a.sum, place);
        }
      }
    }
  }
}

template <int kColumns, int kTerms>
cudaError_t launch_tensor_cores(const CudaProductArgs<float, float>& args, const Terms& weight, cudaStream_t stream) {
  const ConvGeometry& g = args.geometry;
  const int64_t tiles = (g.pixels_out() + kTileWarps * kTilePixels - 1) / (kTileWarps * kTilePixels);
  const int64_t slices = (g.group_out() + kColumns * kColumn - 1) / (kColumns * kColumn);
  const auto grid = static_cast<unsigned>(tiles * slices * g.groups);
  if (args.out_bits == nullptr) {
    using Model = Silent<float>;
    TANDEM_LAUNCH((tensor_core_kernel<kColumns, true, kTerms, Model>), grid, kTileWarps * kWarp, 0, stream, args,
                  weight, Model{});
    return cudaGetLastError();
  }
  visit_model<Scalar<float>>(args.neuron, [&](const auto& model) {
    using Model = std::decay_t<decltype(model)>;
    TANDEM_LAUNCH((tensor_core_kernel<kColumns, false, kTerms, Model>), grid, kTileWarps * kWarp, 0, stream, args,
                  weight, model);
  });
  return cudaGetLastError();
}

// A thread: all terms of 8 weights.
template <class W>
__global__ void __launch_bounds__(kPackThreads) pack_terms_kernel(const CudaTermArgs<W> a, const TermLayout layout) {
  if (is_unchanged(a.watched)) return;
  constexpr int kStored = kStoredTerms<W>;
  const ConvGeometry& g = a.geometry;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kPackThreads, all = layout.words() / kStored;
  // Tiles of 512 bytes a term are numbered in 32 bits, in which it is cheap to divide.
  const auto depth = static_cast<unsigned>((g.group_in() + kTermInputs - 1) / kTermInputs);
  const auto steps = static_cast<unsigned>(layout.steps), blocks = static_cast<unsigned>(layout.blocks);
  const auto tiles = static_cast<unsigned>(layout.tiles), kernel_w = static_cast<unsigned>(g.kernel_w);
  const int word = layout.tiles * kTermWords;  // from a term to the next one
  auto* const out = static_cast<uint4*>(a.fragments);
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kPackThreads + threadIdx.x; i < all; i += stride) {
    const auto lane = static_cast<unsigned>(i % kTermWords), number = static_cast<unsigned>(i / kTermWords);
    const unsigned tile = number & (tiles - 1), of_steps = number / tiles;  // 1 or 2 tiles
    const unsigned step = of_steps % steps, block = of_steps / steps, tap = step / depth;
    const int64_t first = (int64_t{block % blocks} * tiles + tile) * kTermTile + lane / 4;
    const int64_t c = int64_t{step % depth} * kTermInputs + lane % 4 * 4;
    const W* const at_tap = a.weight + tap / kernel_w * a.stride_h + tap % kernel_w * a.stride_w;
    unsigned halves[kStored][4] = {};  // of the 16 bytes of each term
    for (int n = 0; n < 2; ++n) {
      for (int k = 0; k < 4; ++k) {
        const int64_t o = first + n * kColumn;
        if (o >= g.group_out() || c + k >= g.group_in()) continue;
        const float x = at_tap[(block / blocks * g.group_out() + o) * a.stride_o + (c + k) * a.stride_c];
        unsigned terms[kStored];
        split(x, terms);
        for (int e = 0; e < kStored; ++e) halves[e][2 * n + k / 2] |= k % 2 == 0 ? terms[e] >> 16 : terms[e];
      }
    }
    uint4* const to = out + int64_t{of_steps} * layout.step_words() + tile * kTermWords + lane;
    for (int e = 0; e < kStored; ++e) to[e * word] = uint4{halves[e][0], halves[e][1], halves[e][2], halves[e][3]};
  }
}

}  // namespace

bool fits_tensor_cores(const ConvGeometry& g) {
  // Each below 2^28, so that sums of some fit 32 bits.
  constexpr int64_t kMostSize = int64_t{1} << 28;
  for (const int64_t size : {g.height, g.width, g.padding_h, g.padding_w, g.kernel_h * g.dilation_h,
                             g.kernel_w * g.dilation_w, g.stride_h * g.out_height, g.stride_w * g.out_width}) {
    if (size >= kMostSize) return false;
  }
  constexpr int64_t kPixels = kTileWarps * kTilePixels;
  const TermLayout layout = term_layout(g, 1);
  const int64_t blocks = (g.pixels_out() + kPixels - 1) / kPixels * layout.blocks * g.groups;
  return g.features() <= INT32_MAX - kTermInputs && blocks <= INT32_MAX;
}

cudaError_t launch_tensor_core_product(const CudaProductArgs<float, float>& args, const void* fragments, int stored,
                                       int terms, cudaStream_t stream) {
  if (args.geometry.pixels_out() == 0) return cudaSuccess;
  if (terms < 1 || terms > stored || args.planes > INT32_MAX || !fits_tensor_cores(args.geometry)) {
    return cudaErrorInvalidValue;
  }
  const TermLayout layout = term_layout(args.geometry, stored);
  const Terms weight = {static_cast<const uint4*>(fragments), layout.step_words()};
  const bool narrow = layout.tiles == 1;
  switch (terms) {
    case 1:
      return narrow ? launch_tensor_cores<2, 1>(args, weight, stream) : launch_tensor_cores<4, 1>(args, weight, stream);
    case 2:
      return narrow ? launch_tensor_cores<2, 2>(args, weight, stream) : launch_tensor_cores<4, 2>(args, weight, stream);
    default:
      return narrow ? launch_tensor_cores<2, 3>(args, weight, stream) : launch_tensor_cores<4, 3>(args, weight, stream);
  }
}

template <class W>
cudaError_t launch_pack_terms(const CudaTermArgs<W>& args, cudaStream_t stream) {
  const TermLayout layout = term_layout(args.geometry, kStoredTerms<W>);
  const int64_t tasks = layout.words() / kStoredTerms<W>;
  const unsigned grid = packing_grid((tasks + kPackThreads - 1) / kPackThreads);
  TANDEM_LAUNCH((pack_terms_kernel<W>), grid, kPackThreads, 0, stream, args, layout);
  return cudaGetLastError();
}

template cudaError_t launch_pack_terms(const CudaTermArgs<float>&, cudaStream_t);
template cudaError_t launch_pack_terms(const CudaTermArgs<Float16>&, cudaStream_t);
template cudaError_t launch_pack_terms(const CudaTermArgs<BFloat16>&, cudaStream_t);

}  // namespace tandem
