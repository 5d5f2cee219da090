// The integer engine's tiles of warpgroups, for spikes on compute capability 9.0: pixels are A, from registers, and
// weights B, from shared memory, so that one instruction (wgmma) has 64 pixels and up to 32 rows of digits.
//
// In CUTLASS's words: a block is one warpgroup, its 64 pixels x 32 rows of digits (64 for T <= 4), for 8 (4) time steps
// at once, are the threadblock tile; wgmma.m64n32k32 the instruction shape, or for several digits one of less than 32
// rows for the digits with a sign and one for the rest; a step of 4 chunks, 128 inputs, the K of the threadblock tile;
// two buffers the pipeline stages.
//
// Launch bounds: 128 registers are sums, 32 the spikes of a slice at all time steps, which must stay until the products
// are done. There are two blocks on a multiprocessor, so that one may multiply while the other one waits or fires.
#include <cstdint>

#include "cuda/warpgroup.cuh"
#include "ops/product/integer_sums.cuh"

namespace tandem {

namespace {

constexpr int kProductRows = 32, kProductDepth = 32;  // of B

// kParts times 32 rows: the digits of 32 / kDigits channels each, all top digits first.
template <int kDigits_, int kSteps_>
struct WarpgroupShape {
  static constexpr int kDigits = kDigits_, kSteps = kSteps_;
  static constexpr int kParts = static_cast<int>(warpgroup_rows(kSteps)) / kProductRows;
  static constexpr int kChannels = kProductRows / kDigits;
  static constexpr int kPartBytes = kProductRows * kProductDepth;  // of a slice
  static constexpr int kStepBytes = kSlices * kParts * kPartBytes;
  static constexpr int kChannelsOfThread = kChannels / 4, kNeurons = 2 * kParts * kChannelsOfThread;
  using Sums = int[kParts][kSteps][16];
};

// In shared memory, bytes from 16 bytes of depth to the next ones, and from 8 rows to the next ones.
constexpr int kByDepth = 128, kByRows = 256;

// A thread's share of the weights, on the way from packed fragments to B. A fragment's 16 bytes are 4 adjacent inputs
// of two rows, g and g + 8 of its tile, in both halves of the depth, and go to four places. B's rows are a tile's, but
// for four digits, whose parts are half of each tile: there, rows g and g + 8 are two adjacent channels.
template <class S>
struct Carrier {
  static constexpr int kUnits = kSliceWords / 2;  // of 16 bytes: a part of a slice
  static constexpr int kRun = kUnits / S::kDigits, kOfThread = kSlices * S::kParts / 2;
  const uint4* from;
  uint8_t* to;  // in the first buffer
  uint4 carried[kOfThread];
  bool swaps;

  __device__ __forceinline__ Carrier(const uint4* weight, int first_part, uint8_t* staged) {
    const int thread = static_cast<int>(threadIdx.x), unit = thread % kUnits, half = thread / kUnits;
    const int part = S::kParts == 2 ? half : 0, slice = S::kParts == 2 ? 0 : half;
    const int lane = unit % (kRun < 32 ? kRun : 32), tile = unit / (kRun < 32 ? kRun : 32);
    const int rows = S::kDigits == 4 ? tile * kByRows + lane / 4 * 32 : tile * 2 * kByRows + lane / 4 * 16;
    from = weight + slice * kSliceWords + unit / kRun * 2 * kRun + (first_part + part) * kRun + unit % kRun;
    to = staged + (slice * S::kParts + part) * S::kPartBytes + rows + lane % 4 * 4;
    // Half of a warp's lanes write row g first and half of them row g + 8: all 32 banks in each store.
    swaps = S::kDigits == 4 && tile % 2 == 1;
  }

  __device__ __forceinline__ void load() {
#pragma unroll
    for (int i = 0; i < kOfThread; ++i) carried[i] = from[i * 2 / S::kParts * kSliceWords];
    from += kStepWords;
  }

  // at: the buffer, in bytes from the first.
  __device__ __forceinline__ void store(int at) const {
    constexpr int kNext = S::kDigits == 4 ? 16 : kByRows;  // from row g to g + 8
    const int first = swaps ? kNext : 0, second = kNext - first;
#pragma unroll
    for (int i = 0; i < kOfThread; ++i) {
      const uint4 w = swaps ? uint4{carried[i].y, carried[i].x, carried[i].w, carried[i].z} : carried[i];
      uint8_t* const rows = to + at + i * 2 * S::kPartBytes;
      const auto put = [&](int offset, unsigned word) {
        store_to_matrix(reinterpret_cast<unsigned*>(rows + offset), word);
      };
      put(first, w.x), put(second, w.y), put(first + kByDepth, w.z), put(second + kByDepth, w.w);
    }
  }
};

// One slice. x0, x1: of the pixels lane / 4 and lane / 4 + 8 of the warp's 16, the bytes of both halves of the depth.
template <class S>
__device__ __forceinline__ void multiply_slice(typename S::Sums& sums, uint2 x0, uint2 x1, SharedMatrix weight) {
  constexpr int kTop = S::kChannels, kRest = kProductRows - kTop;
  unsigned a[S::kSteps][4];
#pragma unroll
  for (int t = 0; t < S::kSteps; ++t) {
    // A spike at step t counts 2^t, which sum_of undoes.
    const unsigned mask = 0x01010101u << t;
    a[t][0] = anew(x0.x & mask), a[t][1] = anew(x1.x & mask);
    a[t][2] = anew(x0.y & mask), a[t][3] = anew(x1.y & mask);
  }
  warpgroup_fence();
#pragma unroll
  for (int part = 0; part < S::kParts; ++part) {
    const SharedMatrix top = weight.ahead(static_cast<unsigned>(part * S::kPartBytes));
#pragma unroll
    for (int t = 0; t < S::kSteps; ++t) {
      wgmma_m64k32<0, kTop, true>(sums[part][t], a[t], top);
      if constexpr (kRest > 0) {
        wgmma_m64k32<kTop / 2, kRest, false>(sums[part][t], a[t], top.ahead(kTop / 8 * kByRows));
      }
    }
  }
  warpgroup_commit();
  warpgroup_wait<0>();
#pragma unroll
  for (int part = 0; part < S::kParts; ++part) {
#pragma unroll
    for (int t = 0; t < S::kSteps; ++t) {
#pragma unroll
      for (int& sum : sums[part][t]) sum = anew(sum);
    }
  }
}

// All inputs of a block's pixels and rows. Weights come to registers two steps ahead and to shared memory one step
// ahead, activations to registers one step ahead.
template <class S>
__device__ __forceinline__ void sweep_warpgroup(typename S::Sums& sums, const Walk& g, const Corners<2>& corners,
                                                const uint8_t* input, const uint8_t* zeros, const uint4* weight,
                                                int first_part, uint8_t* staged) {
  Carrier<S> carrier(weight, first_part, staged);
  // The last calls read beyond the block's last step: the next block's weights, or the zeros that the layout has behind
  // the last block for this (FragmentLayout::zeros). Nobody multiplies by what they bring.
  carrier.load();
  carrier.store(0);
  carrier.load();
  Reader<2> in;
  in.start(g, static_cast<int>(threadIdx.x) % kQuads);
  in.locate(g, corners, input, zeros);
  uint4 x[2][2];
  in.load(x[0], 0);
  in.load(x[1], 1);
  const SharedMatrix weights = shared_matrix(staged, kByDepth, kByRows);
  int at = 0;
  for (int left = g.steps; left > 0; --left) {
    fence_shared_matrices();
    __syncthreads();  // everybody's weights of this step are there, and nobody multiplies by the step before
    carrier.store(S::kStepBytes - at);
    carrier.load();
    in.advance(g, corners, input, zeros);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint4 &x0 = x[half][0], &x1 = x[half][1];
      const SharedMatrix w = weights.ahead(static_cast<unsigned>(at + 2 * half * S::kParts * S::kPartBytes));
      multiply_slice<S>(sums, uint2{x0.x, x0.y}, uint2{x1.x, x1.y}, w);
      multiply_slice<S>(sums, uint2{x0.z, x0.w}, uint2{x1.z, x1.w}, w.ahead(S::kParts * S::kPartBytes));
      in.load(x[half], half);  // the next step's
    }
    at = S::kStepBytes - at;
  }
  __syncthreads();  // nobody still multiplies by what the next plane is stored over
}

// Of the channels that are a thread's, number c of a part, in the part.
template <class S>
__device__ __forceinline__ int channel_of(int lane, int c) {
  if constexpr (S::kDigits == 4) return lane % 4 * 2 + c;
  return c / 4 * kTileOutputs + lane % 4 * 4 + c % 4;
}

// The sum of such a channel at step t, for the first pixel of a thread or the second, the digits met: exact modulo 2^32
// or 2^64, into which it fits.
template <class S>
__device__ __forceinline__ Whole<S> sum_of(const typename S::Sums& sums, int part, int c, int second, int t) {
  using Bits = std::make_unsigned_t<Whole<S>>;
  // Registers of D: 4 for each 8 rows, of which a thread has two of both pixels. Row 2 * (g % 8) + g / 8 of a tile.
  const int first = S::kDigits == 4 ? c : (c / 4 * 2 + c % 2) * 4 + c % 4 / 2;
  const auto of_digit = [&](int digit) { return sums[part][t][16 / S::kDigits * digit + first + 2 * second]; };
  auto sum = static_cast<Bits>(of_digit(0) >> t);
#pragma unroll
  for (int digit = 1; digit < S::kDigits; ++digit) sum = sum * 256 + (static_cast<unsigned>(of_digit(digit)) >> t);
  return static_cast<Whole<S>>(sum);
}

template <int kDigits, int kSteps, class Model>
__global__ void __launch_bounds__(kBlockThreads, 2) warpgroup_spiking_kernel(const Product a, const Model model) {
  using S = WarpgroupShape<kDigits, kSteps>;
  constexpr int kPartsOfBlock = kRowTiles * kTileOutputs / kProductRows;  // of packed rows
  __shared__ __align__(16) uint8_t staged[2 * S::kStepBytes];
  __shared__ Corners<2> corners;
  TANDEM_DYNAMIC_SHARED(float, carried);  // states and sum from plane to plane
  const Walk& g = a.walk;
  const int planes = static_cast<int>(planes_for(a.time_steps));
  const auto here_of = [&](unsigned thread, unsigned block) {
    Place here = place(a, thread, block, S::kParts * S::kChannels, kWarpgroupPixels);
    here.pixel += static_cast<int>(thread) / kLanes * 16 + here.lane / 4;
    return here;
  };
#pragma unroll 1
  for (int p = 0; p < planes; ++p) {
    typename S::Sums sums = {};
    {
      const Place here = here_of(threadIdx.x, blockIdx.x);
      if (p == 0) find_corners<2>(g, here.pixel, corners);
      const int64_t blocks = (a.blocks * S::kParts + kPartsOfBlock - 1) / kPartsOfBlock;
      const int64_t part = here.block * S::kParts;
      const int64_t block = here.group * blocks + part / kPartsOfBlock;
      sweep_warpgroup<S>(sums, g, corners, a.input + here.group * g.pitch, a.zeros,
                         a.weight + block * g.steps * kStepWords, static_cast<int>(part % kPartsOfBlock), staged);
      for (int i = 0; i < 2; ++i) corners[i][threadIdx.x].origin += g.pixels_in;
    }
    const unsigned thread = anew(threadIdx.x);
    const Place here = here_of(thread, anew(blockIdx.x));
#pragma unroll
    for (int second = 0; second < 2; ++second) {
      const int m = here.pixel + 8 * second;
      if (m >= g.pixels_out) continue;
#pragma unroll
      for (int i = 0; i < S::kNeurons / 2; i += 2) {
        const int part = i / S::kChannelsOfThread, c = i % S::kChannelsOfThread;
        const auto value = [&](int h, int s) { return sum_of<S>(sums, part, c + h, second, s); };
        fire_pair<kSteps>(
            a, model, p, planes, m, here.group, here.channel + part * S::kChannels + channel_of<S>(here.lane, c),
            carried + (second * S::kNeurons / 2 + i) * kBlockThreads + thread, S::kNeurons * kBlockThreads, value);
      }
    }
  }
}

template <int kDigits, int kSteps>
cudaError_t launch_steps(const Product& a, const Neuron& neuron, unsigned grid, cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  visit_model<Scalar<float>>(neuron, [&](const auto& model) {
    using Model = std::decay_t<decltype(model)>;
    constexpr int kNeurons = WarpgroupShape<kDigits, kSteps>::kNeurons;
    const size_t floats = a.time_steps > kStepsPerPlane ? size_t{kNeurons} * (Model::kStates + 1) * kBlockThreads : 0;
    if (floats != 0) {
      error = TANDEM_ALLOW_SHARED((warpgroup_spiking_kernel<kDigits, kSteps, Model>), floats * sizeof(float));
      if (error != cudaSuccess) return;
    }
    TANDEM_LAUNCH((warpgroup_spiking_kernel<kDigits, kSteps, Model>), grid, kBlockThreads, floats * sizeof(float),
                  stream, a, model);
  });
  return error == cudaSuccess ? cudaGetLastError() : error;
}

}  // namespace

template <int kDigits>
cudaError_t launch_warpgroup_tiles(const Product& a, const Neuron& neuron, unsigned grid, cudaStream_t stream) {
  return a.time_steps <= 4 ? launch_steps<kDigits, 4>(a, neuron, grid, stream)
                           : launch_steps<kDigits, 8>(a, neuron, grid, stream);
}

template cudaError_t launch_warpgroup_tiles<1>(const Product&, const Neuron&, unsigned, cudaStream_t);
template cudaError_t launch_warpgroup_tiles<2>(const Product&, const Neuron&, unsigned, cudaStream_t);
template cudaError_t launch_warpgroup_tiles<4>(const Product&, const Neuron&, unsigned, cudaStream_t);

}  // namespace tandem
