// The harness's mma_m16n8k32 against the tables of the PTX ISA, "Matrix Fragments for mma.m16n8k32": every element of A
// and of B on its own, in every lane, with a sign and without.
#include <cstdio>
#include <vector>

#include "cuda/device.cuh"

namespace {

struct Place {
  int row, column;
};

// groupID and threadID_in_group are the manual's names; i: the number of an element of a lane.
__host__ __device__ Place place_in_a(int lane, int i) {
  const int groupID = lane >> 2, threadID_in_group = lane % 4;
  const bool upper = i < 4 || (i >= 8 && i < 12);
  return {upper ? groupID : groupID + 8, threadID_in_group * 4 + (i & 3) + (i < 8 ? 0 : 16)};
}

__host__ __device__ Place place_in_b(int lane, int i) {
  const int groupID = lane >> 2, threadID_in_group = lane % 4;
  return {threadID_in_group * 4 + (i & 3) + (i < 4 ? 0 : 16), groupID};
}

__host__ __device__ Place place_in_c(int lane, int i) {
  const int groupID = lane >> 2, threadID_in_group = lane % 4;
  return {i < 2 ? groupID : groupID + 8, threadID_in_group * 2 + (i & 1)};
}

constexpr int kRows = 16, kDepth = 32, kColumns = 8, kLanes = 32;
constexpr int kInA = 16, kInB = 8, kInC = 4;  // elements of a lane
constexpr int kCases = kLanes * (kInA + kInB);

// Different along every row and every column, half of them beyond 127.
__host__ __device__ uint8_t filler_of_a(int row, int k) { return static_cast<uint8_t>(37 * row + 5 * k + 1); }
__host__ __device__ uint8_t filler_of_b(int k, int column) { return static_cast<uint8_t>(8 * k + column); }
__host__ __device__ int value(uint8_t byte, bool with_sign) { return with_sign && byte >= 128 ? byte - 256 : byte; }

// Case n < 512 has a 1 in element n % 16 of lane n / 16 of A, the others in B; the other matrix is full, as is C.
__host__ __device__ bool one_is_in_a(int n) { return n < kLanes * kInA; }

__host__ __device__ uint8_t a_of(int n, int lane, int i) {
  if (one_is_in_a(n)) return lane == n / kInA && i == n % kInA;
  const Place at = place_in_a(lane, i);
  return filler_of_a(at.row, at.column);
}

__host__ __device__ uint8_t b_of(int n, int lane, int i) {
  if (!one_is_in_a(n)) return lane == (n - kLanes * kInA) / kInB && i == n % kInB;
  const Place at = place_in_b(lane, i);
  return filler_of_b(at.row, at.column);
}

__host__ __device__ int c_of(int row, int column) { return 1000 * (row * kColumns + column) - 70000; }

template <bool kSigned>
__global__ void product_kernel(int* out) {
  const auto n = static_cast<int>(blockIdx.x), lane = static_cast<int>(threadIdx.x);
  uint32_t a[kInA / 4] = {}, b[kInB / 4] = {};
  int d[kInC];
  for (int i = 0; i < kInA; ++i) a[i / 4] |= static_cast<uint32_t>(a_of(n, lane, i)) << 8 * (i % 4);
  for (int i = 0; i < kInB; ++i) b[i / 4] |= static_cast<uint32_t>(b_of(n, lane, i)) << 8 * (i % 4);
  for (int i = 0; i < kInC; ++i) d[i] = c_of(place_in_c(lane, i).row, place_in_c(lane, i).column);
  tandem::mma_m16n8k32<kSigned>(d, uint4{a[0], a[1], a[2], a[3]}, b[0], b[1]);
  for (int i = 0; i < kInC; ++i) out[(n * kLanes + lane) * kInC + i] = d[i];
}

template <bool kSigned>
int check() {
  std::vector<int> out(static_cast<size_t>(kCases) * kLanes * kInC);
  TANDEM_LAUNCH(product_kernel<kSigned>, kCases, kLanes, 0, nullptr, out.data());
  int wrong = 0;
  for (int n = 0; n < kCases; ++n) {
    const int of_b = n - kLanes * kInA;
    const Place one = one_is_in_a(n) ? place_in_a(n / kInA, n % kInA) : place_in_b(of_b / kInB, of_b % kInB);
    for (int lane = 0; lane < kLanes; ++lane) {
      for (int i = 0; i < kInC; ++i) {
        const Place at = place_in_c(lane, i);
        int expected = c_of(at.row, at.column);
        if (one_is_in_a(n) && at.row == one.row) expected += filler_of_b(one.column, at.column);
        if (!one_is_in_a(n) && at.column == one.column) expected += value(filler_of_a(at.row, one.row), kSigned);
        const int got = out[static_cast<size_t>((n * kLanes + lane) * kInC + i)];
        if (got != expected && wrong++ < 10) {
          printf("one in %s at (%d, %d), d%d of lane %d: got %d, expected %d\n", one_is_in_a(n) ? "A" : "B", one.row,
                 one.column, i, lane, got, expected);
        }
      }
    }
  }
  return wrong;
}

// Sums wrap around: PTX ISA, mma without .satfinite.
template <bool kSigned>
__global__ void largest_kernel(int* out) {
  int d[kInC] = {INT32_MAX, INT32_MIN, 0, -1};
  const uint32_t all = ~0u;
  tandem::mma_m16n8k32<kSigned>(d, uint4{all, all, all, all}, all, all);
  for (int i = 0; i < kInC; ++i) out[threadIdx.x * kInC + i] = d[i];
}

template <bool kSigned>
int check_wrapping() {
  std::vector<int> out(kLanes * kInC);
  TANDEM_LAUNCH(largest_kernel<kSigned>, 1, kLanes, 0, nullptr, out.data());
  const auto added = static_cast<uint32_t>(kDepth * 255 * value(255, kSigned));
  const uint32_t before[kInC] = {INT32_MAX, static_cast<uint32_t>(INT32_MIN), 0, ~0u};
  int wrong = 0;
  for (int i = 0; i < kLanes * kInC; ++i)
    wrong += static_cast<uint32_t>(out[static_cast<size_t>(i)]) != before[i % kInC] + added;
  return wrong;
}

}  // namespace

int main() {
  int wrong = check<true>() + check<false>() + check_wrapping<true>() + check_wrapping<false>();
  // Every element of a matrix belongs to exactly one lane.
  int owners_a[kRows][kDepth] = {}, owners_b[kDepth][kColumns] = {};
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int i = 0; i < kInA; ++i) ++owners_a[place_in_a(lane, i).row][place_in_a(lane, i).column];
    for (int i = 0; i < kInB; ++i) ++owners_b[place_in_b(lane, i).row][place_in_b(lane, i).column];
  }
  for (const auto& row : owners_a) {
    for (const int owners : row) wrong += owners != 1;
  }
  for (const auto& row : owners_b) {
    for (const int owners : row) wrong += owners != 1;
  }
  printf("%d products, %d wrong\n", 2 * kCases, wrong);
  return wrong != 0;
}
