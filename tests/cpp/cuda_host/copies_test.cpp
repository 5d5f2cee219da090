// Copies to shared memory that go on while a block computes, on the host.
#include <cstdio>
#include <vector>

#include "cuda/device.cuh"

namespace {

constexpr unsigned kThreads = 64, kFloatsInCopy = 4;

using tandem::cp_async_16;
using tandem::cp_async_commit;
using tandem::cp_async_wait;

// Three copies under way, each read by another thread than the one that asked for it; the last one is not valid.
__global__ void pipeline_kernel(const float* in, float* out, unsigned steps) {
  constexpr unsigned kStages = 4, kStage = kThreads * kFloatsInCopy;
  TANDEM_DYNAMIC_SHARED(float, staged);
  const auto stage = [&](unsigned step) {
    if (step < steps) {
      const unsigned at = threadIdx.x * kFloatsInCopy;
      cp_async_16(staged + step % kStages * kStage + at, in + step * kStage + at, step + 1 < steps);
    }
    cp_async_commit();
  };
  for (unsigned step = 0; step + 1 < kStages; ++step) stage(step);
  for (unsigned step = 0; step < steps; ++step) {
    cp_async_wait<kStages - 2>();
    __syncthreads();
    stage(step + kStages - 1);
    for (unsigned i = 0; i < kFloatsInCopy; ++i) {
      const unsigned at = i * kThreads + threadIdx.x;
      out[step * kStage + at] = staged[step % kStages * kStage + at];
    }
  }
  cp_async_wait<0>();
}

bool pipeline() {
  constexpr unsigned kSteps = 9, kStage = kThreads * kFloatsInCopy;
  std::vector<float4> in(kSteps * kThreads);  // for their alignment
  std::vector<float> out(kSteps * kStage), expected(out.size());
  auto* const numbers = reinterpret_cast<float*>(in.data());
  for (unsigned i = 0; i < out.size(); ++i) {
    numbers[i] = static_cast<float>(i + 1);
    expected[i] = i < (kSteps - 1) * kStage ? numbers[i] : 0.0f;
  }
  TANDEM_LAUNCH(pipeline_kernel, 1, kThreads, 4 * kStage * sizeof(float), nullptr, numbers, out.data(), kSteps);
  return out == expected;
}

}  // namespace

int main() {
  const bool right = pipeline();
  std::printf("%s\n", right ? "right" : "wrong result");
  return right ? 0 : 1;
}
