// The integer engine: from activations and weights to the sums of a warp. See integer_product.cu.
#pragma once

#include <climits>
#include <cstdint>
#include <type_traits>

#include "core/bit_planes.h"
#include "cuda/device.cuh"
#include "neuron/epilogue.cuh"
#include "ops/product/integer_product.cuh"

namespace tandem {

constexpr int kLanes = 32;
constexpr unsigned kWholeWarp = 0xffffffffu;
constexpr int kWarps = 4;  // of a block
constexpr int kBlockThreads = kWarps * kLanes;
constexpr int kFragmentPixels = 8;   // pixels of a fragment
constexpr int kCountColumns = 4;     // fragments of pixels of a warp that multiplies counts
constexpr int64_t kPlanesPart = 31;  // planes whose ones fit a byte

// How a lane walks over the inputs: chunk after chunk of a tap, tap after tap. All in 32 bits.
struct Walk {
  int height, width, out_height, out_width;
  int stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w, kernel_w;
  int pixels_in, pixels_out, pixel_bytes;
  int chunks, steps, pitch;
  // A lane goes on by `ahead` chunks: `whole` of them are all of some taps, which takes it `down` and `right` by so
  // many pixels; the rest is less than a tap. span: from a row of taps' first to where the next one would be.
  int ahead, whole, down, right, span;
};

struct Product {
  Walk walk;
  const uint8_t* input;  // [planes, or parts of them, pixels_in, pixel_bytes]: planes, or counts
  const uint4* weight;
  const uint8_t* zeros;
  int parts;  // of counts; each is multiplied and added up
  int64_t out_channels, outputs, blocks, tiles, time_steps;
  const float* unit;  // [O] of weights that were floats
  const float* scale;
  const float* bias;
  State<const float> initial;
  uint8_t* out_bits;
  float* sum;
  State<float> state;
  Joined<float> joined;
};

// Tiles of warpgroups (warpgroup_product.cu): 64 pixels and, for T > 4, 32 rows of digits, else 64.
constexpr int kWarpgroupPixels = 64;
constexpr int64_t warpgroup_rows(int64_t time_steps) { return time_steps <= 4 ? 64 : 32; }
template <int kDigits>
cudaError_t launch_warpgroup_tiles(const Product& a, const Neuron& neuron, unsigned grid, cudaStream_t stream);

namespace {

// A warp: kTiles tiles of 16 output channels, kColumns fragments of 8 pixels, kSteps time steps (1 for counts).
template <int kDigits_, int kTiles_, int kColumns_, int kSteps_>
struct Shape {
  static constexpr int kDigits = kDigits_, kTiles = kTiles_, kColumns = kColumns_, kSteps = kSteps_;
  static constexpr int kRows = kDigits * kTiles;  // tiles of rows
  using Sums = int[kDigits][kTiles][kColumns][kSteps][4];
};

// ---- Activations: straight from global memory to the registers that mma takes

// Of an output pixel: row and column of its first tap, and the number of that input pixel, counted through all planes.
struct alignas(16) Corner {
  int top, left, origin;
};

template <int kColumns>
using Corners = Corner[kColumns][kBlockThreads];  // in shared memory, each thread its own: registers are scarce

template <int kColumns>
__device__ __forceinline__ void find_corners(const Walk& g, int pixel, Corners<kColumns>& corners) {
#pragma unroll
  for (int i = 0; i < kColumns; ++i) {
    const int m = pixel + kFragmentPixels * i, oh = m / g.out_width % g.out_height, n = m / g.out_width / g.out_height;
    const int top = oh * g.stride_h - g.padding_h, left = m % g.out_width * g.stride_w - g.padding_w;
    const Corner beyond{INT_MIN / 2, 0, 0};  // sees nothing
    corners[i][threadIdx.x] = m < g.pixels_out ? Corner{top, left, (n * g.height + top) * g.width + left} : beyond;
  }
}

template <int kColumns>
struct Reader {
  const uint4* at[kColumns];  // the channels that the present tap sees
  int chunk, down, right;     // of the tap; the tap, from the corner

  __device__ __forceinline__ void start(const Walk& g, int first_chunk) {
    const int tap = first_chunk / g.chunks;
    chunk = first_chunk % g.chunks;
    down = tap / g.kernel_w * g.dilation_h;
    right = tap % g.kernel_w * g.dilation_w;
  }

  __device__ __forceinline__ void locate(const Walk& g, const Corners<kColumns>& corners, const uint8_t* input,
                                         const uint8_t* zeros) {
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      const Corner corner = corners[i][threadIdx.x];
      const bool inside = static_cast<unsigned>(corner.top + down) < static_cast<unsigned>(g.height) &&
                          static_cast<unsigned>(corner.left + right) < static_cast<unsigned>(g.width);
      const int pixel = corner.origin + down * g.width + right;
      at[i] = reinterpret_cast<const uint4*>(inside ? input + static_cast<int64_t>(pixel) * g.pixel_bytes : zeros);
    }
  }

  // Past the last tap the weights are 0: any pixel will do.
  __device__ __forceinline__ void advance(const Walk& g, const Corners<kColumns>& corners, const uint8_t* input,
                                          const uint8_t* zeros) {
    chunk += g.ahead;
    if (chunk >= g.chunks) {
      chunk -= g.whole;
      down += g.down;
      right += g.right;
      if (chunk >= g.chunks) {
        chunk -= g.chunks;
        right += g.dilation_w;
      }
      if (right >= g.span) {
        right -= g.span;
        down += g.dilation_h;
      }
      locate(g, corners, input, zeros);
    }
  }

  // Half of a chunk of each pixel: two slices. Always 16 bytes that exist: where channels do not fill chunks,
  // prepare_spikes_kernel has filled them up, and what is outside of the image reads `zeros`, of the same pitch.
  __device__ __forceinline__ void load(uint4 (&x)[kColumns], int half) const {
#pragma unroll
    for (int i = 0; i < kColumns; ++i) x[i] = at[i][static_cast<unsigned>(2 * chunk) + half];
  }
};

template <int kColumns>
__device__ __forceinline__ bool any_spike(const uint4 (&x)[kColumns]) {
  unsigned all = 0;
#pragma unroll
  for (int i = 0; i < kColumns; ++i) all |= x[i].x | x[i].y | x[i].z | x[i].w;
  return __any_sync(kWholeWarp, all != 0) != 0;
}

// ---- The product

// One slice. w: of every tile of rows; x: half 0 or 1 of 16 bytes of each pixel.
template <class S>
__device__ __forceinline__ void multiply(typename S::Sums& sums, const uint4 (&w)[S::kRows],
                                         const uint4 (&x)[S::kColumns], int half) {
#pragma unroll
  for (int i = 0; i < S::kColumns; ++i) {
    const unsigned x0 = half == 0 ? x[i].x : x[i].z, x1 = half == 0 ? x[i].y : x[i].w;
#pragma unroll
    for (int t = 0; t < S::kSteps; ++t) {
      // A spike at step t counts 2^t, which value_of undoes. Counts are taken as they are.
      const unsigned mask = S::kSteps == 1 ? ~0u : 0x01010101u << t;
#pragma unroll
      for (int row = 0; row < S::kRows; ++row) {
        auto& d = sums[row / S::kTiles][row % S::kTiles][i][t];
        if (row < S::kTiles) {
          mma_m16n8k32<true>(d, w[row], x0 & mask, x1 & mask);
        } else {
          mma_m16n8k32<false>(d, w[row], x0 & mask, x1 & mask);
        }
      }
    }
  }
}

// All inputs of a block of 64 rows, whose warps share the weights: these come to shared memory three steps ahead,
// activations one step ahead. weight: the block's first; staged: kStagedSteps * kStepWords.
template <class S>
__device__ __forceinline__ void sweep_staged(typename S::Sums& sums, const Walk& g, const Corners<S::kColumns>& corners,
                                             const uint8_t* input, const uint8_t* zeros, const uint4* weight,
                                             uint4* staged) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kLanes;
  const uint4* from = weight + thread;
  // The last three calls read beyond the block's last step: the next block's weights, or the zeros that the layout has
  // behind the last block for this (FragmentLayout::zeros). Nobody multiplies by what they bring.
  const auto stage = [&](uint4* to) {
#pragma unroll
    for (int i = 0; i < kStepWords; i += kBlockThreads) cp_async_16(to + i + thread, from + i, true);
    cp_async_commit();
    from += kStepWords;
  };
  const auto fetch = [&](uint4(&w)[S::kRows], const uint4* step, int slice) {
#pragma unroll
    for (int row = 0; row < S::kRows; ++row) w[row] = step[slice * kSliceWords + row * kLanes + lane];
  };
  uint4 w[2][S::kRows], x[2][S::kColumns];
#pragma unroll
  for (int s = 0; s < kStagedSteps; ++s) stage(staged + s * kStepWords);
  Reader<S::kColumns> in;
  in.start(g, lane % kQuads);
  in.locate(g, corners, input, zeros);
  in.load(x[0], 0);
  in.load(x[1], 1);
  cp_async_wait<kStagedSteps - 1>();
  __syncthreads();
  int at = 0;  // of the step in `staged`
  fetch(w[0], staged, 0);
  for (int left = g.steps; left > 0; --left) {
    in.advance(g, corners, input, zeros);
    fetch(w[1], staged + at, 1);
    const bool first = any_spike(x[0]);
    if (first) multiply<S>(sums, w[0], x[0], 0);
    fetch(w[0], staged + at, 2);
    if (first) multiply<S>(sums, w[1], x[0], 1);
    in.load(x[0], 0);  // the next step's
    fetch(w[1], staged + at, 3);
    const bool second = any_spike(x[1]);
    if (second) multiply<S>(sums, w[0], x[1], 0);
    cp_async_wait<kStagedSteps - 2>();
    __syncthreads();  // everybody's copies of the next step are there, and everybody has read the present one
    stage(staged + at);
    at = at == (kStagedSteps - 1) * kStepWords ? 0 : at + kStepWords;
    fetch(w[0], staged + at, 0);  // the next step's
    if (second) multiply<S>(sums, w[1], x[1], 1);
    in.load(x[1], 1);  // the next step's
  }
  cp_async_wait<0>();
  __syncthreads();  // nobody still reads what the next plane is staged over
}

// The number of the warp, which the compiler then knows to be the same for all lanes.
__device__ __forceinline__ int warp_of_block() {
  return __shfl_sync(kWholeWarp, static_cast<int>(threadIdx.x) / kLanes, 0);
}

// Every fourth step of one tile of channels, for the warp's pixels. weight: the block's first; first_row: of the tile's
// rows, kRowTiles / kDigits apart. Weights are fetched a step ahead, but for four digits, which leave no registers.
template <class S>
__device__ __forceinline__ void sweep_shared_out(typename S::Sums& sums, const Walk& g,
                                                 const Corners<S::kColumns>& corners, const uint8_t* input,
                                                 const uint8_t* zeros, const uint4* weight, int first_row) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes, warp = warp_of_block();
  if (warp >= g.steps) return;
  const uint4* from = weight + static_cast<int64_t>(warp) * kStepWords + first_row * kLanes + lane;
  const auto fetch = [&](uint4(&w)[kSlices][S::kRows]) {
#pragma unroll
    for (int slice = 0; slice < kSlices; ++slice) {
#pragma unroll
      for (int row = 0; row < S::kRows; ++row)
        w[slice][row] = from[slice * kSliceWords + row * (kRowTiles / S::kDigits) * kLanes];
    }
  };
  Reader<S::kColumns> in;
  in.start(g, warp * kQuads + lane % kQuads);
  in.locate(g, corners, input, zeros);
  constexpr bool kAhead = S::kDigits < 4;
  uint4 w[kAhead ? 2 : 1][kSlices][S::kRows], x[2][2][S::kColumns];
  const auto load = [&](uint4(&y)[2][S::kColumns]) {
    in.load(y[0], 0);
    in.load(y[1], 1);
  };
  const auto step = [&](const uint4(&v)[kSlices][S::kRows], const uint4(&y)[2][S::kColumns]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (!any_spike(y[half])) continue;
      multiply<S>(sums, v[2 * half], y[half], 0);
      multiply<S>(sums, v[2 * half + 1], y[half], 1);
    }
  };
  const auto go_on = [&] {
    from += kWarps * kStepWords;
    in.advance(g, corners, input, zeros);
  };
  load(x[0]);
  if constexpr (kAhead) {
    fetch(w[0]);
    // Two steps a turn, so that what is fetched ahead need not be moved.
    for (int at = warp; at < g.steps; at += 2 * kWarps) {
      const bool more = at + kWarps < g.steps, beyond = at + 2 * kWarps < g.steps;
      go_on();
      if (more) {
        fetch(w[1]);
        load(x[1]);
      }
      step(w[0], x[0]);
      go_on();
      if (beyond) {
        fetch(w[0]);
        load(x[0]);
      }
      if (more) step(w[1], x[1]);
    }
  } else {
    for (int at = warp; at < g.steps; at += kWarps) {
      fetch(w[0]);
      go_on();
      if (at + kWarps < g.steps) load(x[1]);
      step(w[0], x[0]);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int i = 0; i < S::kColumns; ++i) x[0][half][i] = x[1][half][i];
      }
    }
  }
}

// ---- Sums

// What a sum of whole weights may need: 64 bits for four digits.
template <class S>
using Whole = std::conditional_t<S::kDigits == 4, long long, int>;

// The sum at step t, the digits met: exact modulo 2^32 or 2^64, into which it fits.
template <class S, class Sum = Whole<S>>
__device__ __forceinline__ Sum value_of(const typename S::Sums& sums, int tile, int column, int t, int r) {
  using Bits = std::make_unsigned_t<Sum>;
  auto sum = static_cast<Bits>(sums[0][tile][column][t][r] >> t);
#pragma unroll
  for (int digit = 1; digit < S::kDigits; ++digit) {
    sum = sum * 256 + (static_cast<unsigned>(sums[digit][tile][column][t][r]) >> t);
  }
  return static_cast<Sum>(sum);
}

struct Place {
  int64_t group, block;
  int64_t channel;  // the block's first in the group
  int pixel;        // the block's first
  int lane;
};

// Blocks: the pixels change first, then the rows, the groups last. channels: of a block; pixels: of a block.
__device__ __forceinline__ Place place(const Product& a, unsigned thread, unsigned block, int channels, int pixels) {
  const auto tiles = static_cast<unsigned>(a.tiles), blocks = static_cast<unsigned>(a.blocks);
  Place out;
  out.lane = static_cast<int>(thread % kLanes);
  out.block = block / tiles % blocks;
  out.group = block / tiles / blocks;
  out.channel = out.block * channels;
  out.pixel = static_cast<int>(block % tiles) * pixels;
  return out;
}

// The steps of a plane for one neuron: returns its spikes. value(s): the sum of step s.
template <int kSteps, class Model, class Value>
__device__ __forceinline__ unsigned fire(const Product& a, const Model& model, int plane, int64_t at, int64_t channel,
                                         const Value& value, DeviceNeuron<float, Model>& neuron) {
  const float scale = a.scale ? a.scale[channel] : 1.0f, bias = a.bias ? a.bias[channel] : 0.0f;
  const float unit = a.unit ? a.unit[channel] : 1.0f;
  const auto current = [&](int s) {
    const float sum = in_units(value(s), unit);
    const float x = current_of(sum, a.scale != nullptr, scale, a.bias != nullptr, bias);
    return add_joined(a.joined, plane, s, at, channel, x);
  };
  return run_plane<kSteps>(model, static_cast<int>(steps_in_plane(plane, a.time_steps)), current, neuron);
}

// A plane of a pixel's neurons, of two adjacent channels of a group, n and n + 1. value(of, s): the sum of one of them
// at step s. kept: where sums and states of the first wait from plane to plane, `apart` from one to the next; the
// second neuron's are kBlockThreads further on.
template <int kSteps, class Model, class Value>
__device__ __forceinline__ void fire_pair(const Product& a, const Model& model, int plane, int planes, int pixel,
                                          int64_t group, int64_t n, float* kept, int apart, const Value& value) {
  const int64_t channel = group * a.outputs + n, at = static_cast<int64_t>(pixel) * a.out_channels + channel;
  uint8_t* const to = a.out_bits + static_cast<int64_t>(plane) * a.walk.pixels_out * a.out_channels + at;
  const bool together =
      a.outputs % 2 == 0 && a.out_channels % 2 == 0 && reinterpret_cast<uintptr_t>(a.out_bits) % 2 == 0;
  unsigned spikes[2] = {};
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    if (n + h >= a.outputs) continue;
    DeviceNeuron<float, Model> neuron;
    float* const own = kept + h * kBlockThreads;
    if (plane == 0) {
      neuron.start(model, a.initial, at + h);
      neuron.sum = 0;
    } else {
#pragma unroll
      for (int v = 0; v < Model::kStates; ++v) neuron.state[v] = own[(v + 1) * apart];
      neuron.sum = *own;
    }
    spikes[h] = fire<kSteps>(a, model, plane, at + h, channel + h, [&](int s) { return value(h, s); }, neuron);
    if (plane + 1 < planes) {
#pragma unroll
      for (int v = 0; v < Model::kStates; ++v) own[(v + 1) * apart] = neuron.state[v];
      *own = neuron.sum;
    } else {
      neuron.store(a.state, a.sum, at + h);
    }
    if (!together) to[h] = static_cast<uint8_t>(spikes[h]);
  }
  if (together && n < a.outputs) {
    *reinterpret_cast<uint16_t*>(to) = static_cast<uint16_t>(spikes[0] | spikes[1] << 8);
  }
}

}  // namespace

}  // namespace tandem
