// The harness's mma_m16n8k16_bf16 against the tables of the PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating
// point type": every element of A and of B on its own, in every lane.
#include <cstdio>
#include <vector>

#include "cuda/device.cuh"

namespace {

struct Place {
  int row, column;
};

// groupID and threadID_in_group are the manual's names.
__host__ __device__ Place place_in_a(int lane, int i) {
  const int groupID = lane >> 2, threadID_in_group = lane % 4;
  const bool upper = i == 0 || i == 1 || i == 4 || i == 5;
  return {upper ? groupID : groupID + 8, i < 4 ? threadID_in_group * 2 + (i & 1) : threadID_in_group * 2 + (i & 1) + 8};
}

__host__ __device__ Place place_in_b(int lane, int i) {
  const int groupID = lane >> 2, threadID_in_group = lane % 4;
  return {i < 2 ? threadID_in_group * 2 + (i & 1) : threadID_in_group * 2 + (i & 1) + 8, groupID};
}

__host__ __device__ Place place_in_c(int lane, int i) {
  const int groupID = lane >> 2, threadID_in_group = lane % 4;
  return {i < 2 ? groupID : groupID + 8, threadID_in_group * 2 + (i & 1)};
}

constexpr int kRows = 16, kDepth = 16, kColumns = 8, kLanes = 32;
constexpr int kInA = 8, kInB = 4, kInC = 4;  // elements of a lane
constexpr int kCases = kLanes * (kInA + kInB);

// Exact in bf16, all different, none of them 0 or 1.
__host__ __device__ float filler(int row, int column) { return static_cast<float>(2 + row * 8 + column % 8); }

// Case n < 256 has a 1 in element n % 8 of lane n / 8 of A, the others in B; the other matrix is full, as is C.
__host__ __device__ bool one_is_in_a(int n) { return n < kLanes * kInA; }

__host__ __device__ float a_of(int n, int lane, int i) {
  if (one_is_in_a(n)) return lane == n / kInA && i == n % kInA ? 1.0f : 0.0f;
  const Place at = place_in_a(lane, i);
  return filler(at.row, at.column) * (at.column < 8 ? 1.0f : -1.0f);
}

__host__ __device__ float b_of(int n, int lane, int i) {
  if (!one_is_in_a(n)) return lane == (n - kLanes * kInA) / kInB && i == n % kInB ? 1.0f : 0.0f;
  const Place at = place_in_b(lane, i);
  return filler(at.row, at.column);
}

__host__ __device__ float c_of(int row, int column) { return static_cast<float>(1000 * (row * kColumns + column)); }

__host__ __device__ uint32_t pair(float low, float high) {
  uint32_t x, y;
  memcpy(&x, &low, sizeof(x));
  memcpy(&y, &high, sizeof(y));
  return x >> 16 | (y & 0xffff0000u);
}

__global__ void product_kernel(float* out) {
  const auto n = static_cast<int>(blockIdx.x), lane = static_cast<int>(threadIdx.x);
  uint32_t a[kInA / 2], b[kInB / 2];
  float d[kInC];
  for (int i = 0; i < kInA / 2; ++i) a[i] = pair(a_of(n, lane, 2 * i), a_of(n, lane, 2 * i + 1));
  for (int i = 0; i < kInB / 2; ++i) b[i] = pair(b_of(n, lane, 2 * i), b_of(n, lane, 2 * i + 1));
  for (int i = 0; i < kInC; ++i) d[i] = c_of(place_in_c(lane, i).row, place_in_c(lane, i).column);
  tandem::mma_m16n8k16_bf16(d, a, b);
  for (int i = 0; i < kInC; ++i) out[(n * kLanes + lane) * kInC + i] = d[i];
}

}  // namespace

int main() {
  std::vector<float> out(static_cast<size_t>(kCases) * kLanes * kInC);
  TANDEM_LAUNCH(product_kernel, kCases, kLanes, 0, nullptr, out.data());
  int wrong = 0;
  for (int n = 0; n < kCases; ++n) {
    const int of_b = n - kLanes * kInA;
    const Place one = one_is_in_a(n) ? place_in_a(n / kInA, n % kInA) : place_in_b(of_b / kInB, of_b % kInB);
    for (int lane = 0; lane < kLanes; ++lane) {
      for (int i = 0; i < kInC; ++i) {
        const Place at = place_in_c(lane, i);
        float expected = c_of(at.row, at.column);
        if (one_is_in_a(n) && at.row == one.row) expected += filler(one.column, at.column);
        if (!one_is_in_a(n) && at.column == one.column) {
          expected += filler(at.row, one.row) * (one.row < 8 ? 1.0f : -1.0f);
        }
        const float got = out[static_cast<size_t>((n * kLanes + lane) * kInC + i)];
        if (got != expected && wrong++ < 10) {
          printf("one in %s at (%d, %d), d%d of lane %d: got %g, expected %g\n", one_is_in_a(n) ? "A" : "B", one.row,
                 one.column, i, lane, static_cast<double>(got), static_cast<double>(expected));
        }
      }
    }
  }
  // Every element of a matrix belongs to exactly one lane.
  int owners_a[kRows][kDepth] = {}, owners_b[kDepth][kColumns] = {}, owners_c[kRows][kColumns] = {};
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int i = 0; i < kInA; ++i) ++owners_a[place_in_a(lane, i).row][place_in_a(lane, i).column];
    for (int i = 0; i < kInB; ++i) ++owners_b[place_in_b(lane, i).row][place_in_b(lane, i).column];
    for (int i = 0; i < kInC; ++i) ++owners_c[place_in_c(lane, i).row][place_in_c(lane, i).column];
  }
  for (const auto& row : owners_a) {
    for (const int owners : row) wrong += owners != 1;
  }
  for (const auto& row : owners_b) {
    for (const int owners : row) wrong += owners != 1;
  }
  for (const auto& row : owners_c) {
    for (const int owners : row) wrong += owners != 1;
  }
  printf("%d products, %d wrong\n", kCases, wrong);
  return wrong != 0;
}
