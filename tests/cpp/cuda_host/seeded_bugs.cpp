// Kernels with one bug each, for tests of what finds it, and kernels without, in which nothing may be found.
//
// seeded_bugs <name> runs one; without a name, lists them all. Exits with 1 where a result is wrong.
#include <cstdio>
#include <cstring>
#include <vector>

#include "cuda/warpgroup.cuh"

namespace {

constexpr unsigned kThreads = 64, kAllLanes = 0xffffffffu;
constexpr unsigned kFloatsInCopy = 4;

using tandem::cp_async_16;
using tandem::cp_async_commit;
using tandem::cp_async_wait;

// ---- Kernels without a bug

template <unsigned kWarps>
__global__ void __launch_bounds__(kWarps* warpSize)
    sum_kernel(const float* in, float* out, unsigned* positive, unsigned n) {
  __shared__ float parts[kWarps];
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float value = i < n ? in[i] : 0.0f;
  const unsigned votes = __ballot_sync(kAllLanes, value > 0.0f);
  if (lane == 0) positive[i / 32] = votes;
  for (unsigned delta = 16; delta > 0; delta /= 2) value += __shfl_down_sync(kAllLanes, value, delta);
  if (lane == 0) parts[warp] = value;
  __syncthreads();
  if (warp != 0) return;
  value = lane < kWarps ? parts[lane] : 0.0f;
  for (int delta = 16; delta > 0; delta /= 2) value += __shfl_xor_sync(kAllLanes, value, delta);
  if (lane == 0) out[blockIdx.x] = value;
}

bool sums() {
  constexpr unsigned kWarps = 4, kBlocks = 5, n = kBlocks * kWarps * 32 - 7;
  std::vector<float> in(n), out(kBlocks), expected(kBlocks);
  std::vector<unsigned> positive(kBlocks * kWarps), expected_positive(kBlocks * kWarps);
  for (unsigned i = 0; i < n; ++i) {
    in[i] = static_cast<float>(i * 37 % 101) - 50.0f;
    expected[i / (kWarps * 32)] += in[i];
    expected_positive[i / 32] |= static_cast<unsigned>(in[i] > 0.0f) << i % 32;
  }
  TANDEM_LAUNCH(sum_kernel<kWarps>, kBlocks, kWarps * 32, 0, nullptr, in.data(), out.data(), positive.data(), n);
  return out == expected && positive == expected_positive;
}

constexpr unsigned kBins = 7;

template <class T>
__global__ void histogram_kernel(const unsigned* in, T* out, unsigned n) {
  __shared__ T bins[kBins];
  if (threadIdx.x < kBins) bins[threadIdx.x] = 0;
  __syncthreads();
  for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
    atomicAdd(&bins[in[i]], 1);
  }
  __syncthreads();
  if (threadIdx.x < kBins) atomicAdd(&out[threadIdx.x], bins[threadIdx.x]);
}

template <class T>
bool histogram() {
  std::vector<unsigned> in(1000);
  std::vector<T> out(kBins), expected(kBins);
  for (unsigned i = 0; i < in.size(); ++i) {
    in[i] = i * i % kBins;
    expected[in[i]] += 1;
  }
  TANDEM_LAUNCH(histogram_kernel<T>, 3, 96, 0, nullptr, in.data(), out.data(), 1000u);
  return out == expected;
}

__global__ void warp_kernel(int* out) {
  __shared__ int values[kThreads];
  const auto thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  values[thread] = thread;
  __syncwarp();
  int* const row = out + thread * 10;
  row[0] = values[thread ^ 1];
  row[1] = __shfl_sync(kAllLanes, thread, 5, 8);
  row[2] = __shfl_up_sync(kAllLanes, thread, 3);
  row[3] = __shfl_down_sync(kAllLanes, thread, 3, 16);
  row[4] = __any_sync(kAllLanes, lane == 7 && thread > 31);
  row[5] = __all_sync(kAllLanes, thread < 40);
  // Each half on its own.
  row[6] = static_cast<int>(__ballot_sync(lane < 16 ? 0xffffu : 0xffff0000u, lane % 3 == 0));
  row[7] = __popc(static_cast<unsigned>(thread));
  row[8] = __ffs(thread);
  row[9] = __clz(thread);
}

bool warps() {
  std::vector<int> out(kThreads * 10), expected;
  for (int thread = 0; thread < static_cast<int>(kThreads); ++thread) {
    const int lane = thread % 32;
    unsigned thirds = 0;
    for (int i = lane / 16 * 16; i < lane / 16 * 16 + 16; ++i) thirds |= static_cast<unsigned>(i % 3 == 0) << i;
    int ones = 0, lowest = 0, zeros = 32;
    for (int bit = 31; bit >= 0; --bit) {
      if ((thread >> bit & 1) == 0) continue;
      ++ones;
      lowest = bit + 1;
      if (ones == 1) zeros = 31 - bit;
    }
    const int row[] = {thread ^ 1,
                       thread / 8 * 8 + 5,
                       lane < 3 ? thread : thread - 3,
                       lane % 16 > 12 ? thread : thread + 3,
                       thread > 31,
                       thread < 32,
                       static_cast<int>(thirds),
                       ones,
                       lowest,
                       zeros};
    expected.insert(expected.end(), std::begin(row), std::end(row));
  }
  TANDEM_LAUNCH(warp_kernel, 1, kThreads, 0, nullptr, out.data());
  return out == expected;
}

// What every thread takes itself for.
__global__ void index_kernel(unsigned* out) {
  const unsigned in_grid = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned in_block = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const unsigned i = in_grid * blockDim.x * blockDim.y * blockDim.z + in_block;
  out[i] = i + 1;
}

bool indices() {
  const dim3 grid(3, 2, 4), threads(5, 3, 2);
  std::vector<unsigned> out(24 * 30), expected(24 * 30);
  for (unsigned i = 0; i < expected.size(); ++i) expected[i] = i + 1;
  TANDEM_LAUNCH(index_kernel, grid, threads, 0, nullptr, out.data());
  return out == expected;
}

bool good() {
  return indices() && sums() && histogram<int>() && histogram<unsigned>() && histogram<unsigned long long>() &&
         histogram<float>() && warps();
}

// ---- Kernels with a bug

// Each writes kThreads floats; right results are the thread's number, unless said otherwise.
template <class Kernel>
bool numbers_from(Kernel kernel, unsigned blocks = 1, size_t shared_bytes = 0) {
  std::vector<float> out(kThreads);
  TANDEM_LAUNCH(kernel, blocks, kThreads, shared_bytes, nullptr, out.data());
  for (unsigned i = 0; i < kThreads; ++i) {
    if (out[i] != static_cast<float>(i)) return false;
  }
  return true;
}

__global__ void missing_barrier_kernel(float* out) {
  __shared__ float values[kThreads];
  const unsigned i = threadIdx.x;
  values[i] = static_cast<float>(kThreads - 1 - i);
  out[i] = values[kThreads - 1 - i];
}

__global__ void write_after_read_kernel(float* out) {
  __shared__ float values[kThreads];
  const unsigned i = threadIdx.x;
  values[i] = static_cast<float>(kThreads - 1 - i);
  __syncthreads();
  const float mirrored = values[kThreads - 1 - i];
  values[i] = mirrored;  // others have still to read it
  __syncthreads();
  out[i] = values[i];
}

__global__ void lost_update_kernel(float* out) {
  __shared__ unsigned count;
  if (threadIdx.x == 0) count = 0;
  __syncthreads();
  count += 1;  // not atomic
  __syncthreads();
  out[threadIdx.x] = static_cast<float>(threadIdx.x + count - kThreads);
}

__global__ void warp_race_kernel(float* out) {
  __shared__ float values[kThreads];
  const unsigned i = threadIdx.x;
  values[i] = static_cast<float>(i ^ 1);
  out[i] = values[i ^ 1];  // the same warp, but without __syncwarp()
}

__global__ void divergent_barrier_kernel(float* out) {
  if (threadIdx.x < 32) {
    out[threadIdx.x] = 0;
    __syncthreads();
  } else {
    __syncthreads();
    out[threadIdx.x] = 0;
  }
}

__global__ void deadlock_kernel(float* out) {
  if (threadIdx.x % 2 == 0) {
    __syncthreads();
  } else {
    __syncwarp();  // waits for the even lanes as well
  }
  out[threadIdx.x] = 0;
}

__global__ void wrong_mask_kernel(float* out) {
  auto value = static_cast<float>(threadIdx.x);
  if (threadIdx.x % 32 < 16) value = __shfl_sync(kAllLanes, value, static_cast<int>(threadIdx.x % 32));
  out[threadIdx.x] = value;
}

__global__ void foreign_lane_kernel(float* out) {
  auto value = static_cast<float>(threadIdx.x);
  if (threadIdx.x % 32 < 16) value = __shfl_down_sync(0xffffu, value, 8);  // lanes 8 to 15 read from 16 to 23
  out[threadIdx.x] = value;
}

// Where the compiler does not see the array's size.
__attribute__((noinline)) void write_at(float* array, unsigned i) { array[i] = static_cast<float>(i); }

__global__ void shared_index_kernel(float* out) {
  __shared__ float values[kThreads - 1];
  values[threadIdx.x] = static_cast<float>(threadIdx.x);
  out[threadIdx.x] = values[threadIdx.x];
}

__global__ void shared_pointer_kernel(float* out) {
  __shared__ float values[kThreads - 1];
  write_at(values, threadIdx.x);
  out[threadIdx.x] = static_cast<float>(threadIdx.x);
}

template <unsigned kSize>
__global__ void shared_in_template_kernel(float* out) {
  __shared__ float values[kSize];
  write_at(values, threadIdx.x);
  out[threadIdx.x] = static_cast<float>(threadIdx.x);
}

__global__ void dynamic_shared_kernel(float* out) {
  TANDEM_DYNAMIC_SHARED(float, values);  // one too few
  write_at(values, threadIdx.x);
  out[threadIdx.x] = static_cast<float>(threadIdx.x);
}

__global__ void global_kernel(float* out) {
  write_at(out, threadIdx.x);
  if (threadIdx.x == kThreads - 1) write_at(out, kThreads);
}

__global__ void uninitialised_kernel(float* out) {
  __shared__ float values[kThreads];
  if (threadIdx.x > 0) values[threadIdx.x] = static_cast<float>(threadIdx.x);
  __syncthreads();
  out[threadIdx.x] = values[threadIdx.x];
}

template <unsigned kSize>
__global__ void uninitialised_in_template_kernel(float* out) {
  __shared__ float values[kSize];
  if (threadIdx.x > 0) values[threadIdx.x] = static_cast<float>(threadIdx.x);
  __syncthreads();
  out[threadIdx.x] = values[threadIdx.x];
}

__global__ void uninitialised_dynamic_kernel(float* out) {
  TANDEM_DYNAMIC_SHARED(float, values);
  if (threadIdx.x > 0) values[threadIdx.x] = static_cast<float>(threadIdx.x);
  __syncthreads();
  out[threadIdx.x] = values[threadIdx.x];
}

__global__ void race_between_blocks_kernel(float* out) {
  const float step = static_cast<float>(threadIdx.x) / static_cast<float>(gridDim.x);
  __syncthreads();  // orders the threads of a block, and no more
  out[threadIdx.x] += step;
}

// Copies numbers to shared memory from `in`; out = what arrived.
template <bool kWaits, unsigned kInFlight>
__global__ void copy_kernel(const float* in, float* out, unsigned offset) {
  TANDEM_DYNAMIC_SHARED(float, values);
  if (threadIdx.x < kThreads / kFloatsInCopy) {
    cp_async_16(values + threadIdx.x * kFloatsInCopy, in + threadIdx.x * kFloatsInCopy + offset, true);
  }
  cp_async_commit();
  if (kWaits) cp_async_wait<kInFlight>();
  __syncthreads();
  out[threadIdx.x] = values[threadIdx.x];
  cp_async_wait<0>();
}

template <bool kWaits, unsigned kInFlight>
bool copies(unsigned offset) {
  std::vector<float4> in(kThreads / kFloatsInCopy + 1);  // for their alignment
  auto* const numbers = reinterpret_cast<float*>(in.data());
  for (unsigned i = 0; i < kThreads; ++i) numbers[i] = static_cast<float>(i);
  return numbers_from([=](float* out) { copy_kernel<kWaits, kInFlight>(numbers, out, offset); }, 1,
                      kThreads * sizeof(float));
}

// A copy over what others have still to read, though all wait for it before they go on.
__global__ void copy_too_early_kernel(const float* in, float* out) {
  TANDEM_DYNAMIC_SHARED(float, values);
  values[threadIdx.x] = static_cast<float>(threadIdx.x);
  __syncthreads();
  if (threadIdx.x < kThreads / kFloatsInCopy) cp_async_16(values + threadIdx.x * kFloatsInCopy, in, true);
  cp_async_commit();
  out[threadIdx.x] = values[threadIdx.x];
  cp_async_wait<0>();
}

bool copy_too_early() {
  const std::vector<float4> in(1);
  const auto* const zeros = reinterpret_cast<const float*>(in.data());
  return numbers_from([=](float* out) { copy_too_early_kernel(zeros, out); }, 1, kThreads * sizeof(float));
}

// A product of a warpgroup: D[m][n] = m + n.
enum class Bug { kNone, kCopy, kMatrix, kUnfenced, kNoWait, kTooFew, kSomeWarps, kRegisters, kOverwritten };

template <Bug kBug>
__global__ void product_kernel(const unsigned* in, int* out) {
  __shared__ __align__(16) unsigned b[64];  // 8 rows
  constexpr bool kFenced = kBug != Bug::kCopy && kBug != Bug::kMatrix;
  const unsigned thread = threadIdx.x, row = thread / 32 * 16 + thread % 32 / 4;
  if (kBug == Bug::kMatrix) {
    if (thread < 64) tandem::store_to_matrix(b + thread, in[thread]);
  } else {
    if (thread < 16) cp_async_16(b + 4 * thread, in + 4 * thread, true);
    cp_async_commit();
    cp_async_wait<0>();
  }
  if (kFenced) tandem::fence_shared_matrices();
  __syncthreads();
  unsigned a[4] = {};
  for (unsigned i = 0; i < 16; ++i) {
    a[i / 4] |= (row + i / 4 % 2 * 8 + thread % 4 * 4 + i % 4 + i / 8 * 16) << 8 * (i % 4);
  }
  int d[16] = {};
  if (kBug != Bug::kUnfenced) tandem::warpgroup_fence();
  if (kBug != Bug::kSomeWarps || thread < 96)
    tandem::wgmma_m64k32<0, 8, true>(d, a, tandem::shared_matrix(b, 128, 256));
  tandem::warpgroup_commit();
  __syncthreads();
  if (kBug == Bug::kRegisters) a[1] = tandem::anew(a[1] + 1);
  if (kBug == Bug::kOverwritten && thread == 127) b[5] = 9;
  if (kBug != Bug::kNoWait) tandem::warpgroup_wait<kBug == Bug::kTooFew ? 1 : 0>();
  for (int i = 0; i < 4; ++i) out[thread * 4 + i] = tandem::anew(d[i]);
  tandem::warpgroup_wait<0>();
}

template <Bug kBug>
bool product() {
  std::vector<uint4> in(16);  // for their alignment
  std::vector<int> out(512), expected(512);
  auto* const bytes = reinterpret_cast<uint8_t*>(in.data());
  for (int row = 0; row < 8; ++row) bytes[row * 16 + row] = 1;
  for (int i = 0; i < 512; ++i) {
    const int thread = i / 4, lane = thread % 32;
    expected[i] = thread / 32 * 16 + lane / 4 + i / 2 % 2 * 8 + lane % 4 * 2 + i % 2;
  }
  TANDEM_LAUNCH(product_kernel<kBug>, 1, 128, 0, nullptr, reinterpret_cast<unsigned*>(in.data()), out.data());
  return out == expected;
}

__global__ void trap_kernel(float* out) {
  if (threadIdx.x == 3) __trap();
  out[threadIdx.x] = static_cast<float>(threadIdx.x);
}

struct Case {
  const char* name;
  bool (*run)();
};

const Case kCases[] = {
    {"good", good},
    {"missing_barrier", [] { return numbers_from(missing_barrier_kernel); }},
    {"write_after_read", [] { return numbers_from(write_after_read_kernel); }},
    {"lost_update", [] { return numbers_from(lost_update_kernel); }},
    {"warp_race", [] { return numbers_from(warp_race_kernel); }},
    {"divergent_barrier", [] { return numbers_from(divergent_barrier_kernel); }},
    {"deadlock", [] { return numbers_from(deadlock_kernel); }},
    {"wrong_mask", [] { return numbers_from(wrong_mask_kernel); }},
    {"foreign_lane", [] { return numbers_from(foreign_lane_kernel); }},
    {"shared_index", [] { return numbers_from(shared_index_kernel); }},
    {"shared_pointer", [] { return numbers_from(shared_pointer_kernel); }},
    {"shared_in_template", [] { return numbers_from(shared_in_template_kernel<kThreads - 1>); }},
    {"dynamic_shared", [] { return numbers_from(dynamic_shared_kernel, 1, (kThreads - 1) * sizeof(float)); }},
    {"global", [] { return numbers_from(global_kernel); }},
    {"uninitialised", [] { return numbers_from(uninitialised_kernel); }},
    {"uninitialised_in_template", [] { return numbers_from(uninitialised_in_template_kernel<kThreads>); }},
    {"uninitialised_dynamic", [] { return numbers_from(uninitialised_dynamic_kernel, 1, kThreads * sizeof(float)); }},
    {"race_between_blocks", [] { return numbers_from(race_between_blocks_kernel, 2); }},
    {"copies", [] { return copies<true, 0>(0); }},
    {"copy_without_wait", [] { return copies<false, 0>(0); }},
    {"copy_waits_for_too_few", [] { return copies<true, 1>(0); }},
    {"copy_too_early", copy_too_early},
    {"copy_misaligned", [] { return copies<true, 0>(1); }},
    {"product", product<Bug::kNone>},
    {"product_of_unfenced_copy", product<Bug::kCopy>},
    {"product_of_unfenced_matrix", product<Bug::kMatrix>},
    {"product_unfenced", product<Bug::kUnfenced>},
    {"product_without_wait", product<Bug::kNoWait>},
    {"product_waits_for_too_few", product<Bug::kTooFew>},
    {"product_of_some_warps", product<Bug::kSomeWarps>},
    {"product_of_registers_written", product<Bug::kRegisters>},
    {"product_overwritten", product<Bug::kOverwritten>},
    {"trap", [] { return numbers_from(trap_kernel); }},
};

}  // namespace

int main(int argc, char** argv) {
  for (const Case& test : kCases) {
    if (argc < 2) {
      printf("%s\n", test.name);
    } else if (strcmp(argv[1], test.name) == 0) {
      const bool right = test.run();
      printf("%s: %s\n", test.name, right ? "right" : "wrong result");
      return right ? 0 : 1;
    }
  }
  if (argc < 2) return 0;
  fprintf(stderr, "no kernel is called %s\n", argv[1]);
  return 2;
}
