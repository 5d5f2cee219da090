// Products of warpgroups against the tables of the PTX ISA, "Matrix Fragments for wgmma.mma_async.m64nNk32" and
// "Asynchronous Warpgroup Level Matrix Shared Memory Layout" (K-major, no swizzle): every element of A in every thread
// and every byte of B on its own, with a sign and without, for every number of rows.
#include <cstdio>
#include <vector>

#include "cuda/warpgroup.cuh"

namespace {

struct Place {
  int row, column;
};

constexpr int kThreads = 128, kPixels = 64, kDepth = 32, kInA = 16;

// i: the number of an element of a thread.
__host__ __device__ Place place_in_a(int thread, int i) {
  const int warp = thread / 32, group = thread % 32 / 4;
  return {16 * warp + group + 8 * (i / 4 % 2), thread % 4 * 4 + i % 4 + 16 * (i / 8)};
}
__host__ __device__ Place place_in_d(int thread, int i) {
  const int warp = thread / 32, group = thread % 32 / 4;
  return {16 * warp + group + 8 * (i / 2 % 2), i / 4 * 8 + thread % 4 * 2 + i % 2};
}
// Core matrices of 8 rows by 16 bytes; by_depth, by_rows: from one to the next.
__host__ __device__ int place_in_b(int row, int k, int by_depth, int by_rows) {
  return k / 16 * by_depth + row / 8 * by_rows + row % 8 * 16 + k % 16;
}

// Different along every row and every column, half of them beyond 127.
__host__ __device__ uint8_t filler_of_a(int row, int k) { return static_cast<uint8_t>(37 * row + 5 * k + 1); }
__host__ __device__ uint8_t filler_of_b(int row, int k) { return static_cast<uint8_t>(29 * row + 7 * k + 128); }
__host__ __device__ int before(int thread, int i) { return 1000 * (thread * 16 + i) - 70000; }

// Case n < 2048 has a 1 in element n % 16 of thread n / 16 of A, zeros elsewhere; then cases have a 1 in a byte of B;
// the other matrix is full.
constexpr int kCasesOfA = kThreads * kInA;

// b: `words` for each case, as they lie in shared memory.
template <int kFirst, int kRows, bool kSigned>
__global__ void product_kernel(const unsigned* b, int* out, unsigned words, unsigned by_depth, unsigned by_rows) {
  TANDEM_DYNAMIC_SHARED(unsigned, staged);
  const int n = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  for (unsigned i = threadIdx.x; i < words; i += kThreads) {
    tandem::store_to_matrix(staged + i, b[blockIdx.x * words + i]);
  }
  tandem::fence_shared_matrices();
  __syncthreads();
  unsigned a[4] = {};
  for (int i = 0; i < kInA; ++i) {
    const Place at = place_in_a(thread, i);
    const unsigned byte = n >= kCasesOfA ? filler_of_a(at.row, at.column) : thread == n / kInA && i == n % kInA;
    a[i / 4] |= byte << 8 * (i % 4);
  }
  int d[16];
  for (int i = 0; i < 16; ++i) d[i] = before(thread, i);
  tandem::warpgroup_fence();
  tandem::wgmma_m64k32<kFirst, kRows, kSigned>(d, a, tandem::shared_matrix(staged, by_depth, by_rows));
  tandem::warpgroup_commit();
  tandem::warpgroup_wait<0>();
  for (int i = 0; i < 16; ++i) out[(n * kThreads + thread) * 16 + i] = tandem::anew(d[i]);
}

template <int kFirst, int kRows, bool kSigned>
int check(int by_depth, int by_rows) {
  constexpr int kCases = kCasesOfA + kRows * kDepth;
  const auto value = [](uint8_t byte) { return kSigned && byte >= 128 ? byte - 256 : byte; };
  const int bytes = place_in_b(kRows - 1, kDepth - 1, by_depth, by_rows) + 1;
  std::vector<uint4> b(static_cast<size_t>(kCases * bytes / 16));
  auto* const b_bytes = reinterpret_cast<uint8_t*>(b.data());
  for (int n = 0; n < kCases; ++n) {
    for (int i = 0; i < kRows * kDepth; ++i) {
      const int row = i / kDepth, k = i % kDepth;
      b_bytes[n * bytes + place_in_b(row, k, by_depth, by_rows)] =
          n < kCasesOfA ? filler_of_b(row, k) : static_cast<uint8_t>(i == n - kCasesOfA);
    }
  }
  std::vector<int> out(size_t{kCases} * kThreads * 16);
  TANDEM_LAUNCH((product_kernel<kFirst, kRows, kSigned>), kCases, kThreads, static_cast<size_t>(bytes), nullptr,
                reinterpret_cast<const unsigned*>(b.data()), out.data(), static_cast<unsigned>(bytes / 4),
                static_cast<unsigned>(by_depth), static_cast<unsigned>(by_rows));
  int wrong = 0;
  for (int at_out = 0; at_out < kCases * kThreads * 16; ++at_out) {
    const int n = at_out / (kThreads * 16), of_b = n - kCasesOfA, thread = at_out / 16 % kThreads, i = at_out % 16;
    int expected = before(thread, i);
    if (i >= kFirst && i < kFirst + kRows / 2) {
      const Place at = place_in_d(thread, i - kFirst), one = place_in_a(n / kInA, n % kInA);
      if (of_b < 0 && at.row == one.row) expected += value(filler_of_b(at.column, one.column));
      if (of_b >= 0 && at.column == of_b / kDepth) expected += filler_of_a(at.row, of_b % kDepth);
    }
    const int got = out[static_cast<size_t>(at_out)];
    if (got != expected && wrong++ < 10) {
      std::printf("case %d, d%d of thread %d: got %d, expected %d\n", n, i, thread, got, expected);
    }
  }
  return wrong;
}

}  // namespace

int main() {
  int wrong = check<0, 32, true>(128, 256) + check<0, 16, true>(128, 256) + check<8, 16, false>(512, 128);
  wrong += check<0, 8, true>(256, 16) + check<4, 24, false>(128, 272);
  // Every element of A and D belongs to exactly one thread.
  int owners_a[kPixels][kDepth] = {}, owners_d[kPixels][32] = {};
  for (int thread = 0; thread < kThreads; ++thread) {
    for (int i = 0; i < kInA; ++i) {
      ++owners_a[place_in_a(thread, i).row][place_in_a(thread, i).column];
      ++owners_d[place_in_d(thread, i).row][place_in_d(thread, i).column];
    }
  }
  for (const auto& row : owners_a) {
    for (const int owners : row) wrong += owners != 1;
  }
  for (const auto& row : owners_d) {
    for (const int owners : row) wrong += owners != 1;
  }
  std::printf("%d wrong\n", wrong);
  return wrong != 0;
}
