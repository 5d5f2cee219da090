// The integrate-and-fire step: its only definition, for scalars and for SIMD vectors, on the host and on the device.
#pragma once

#if defined(__CUDACC__)
#define TANDEM_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define TANDEM_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace tandem {

// How a given current spreads over time: the same at every step, at the first one alone, or one for each step.
// Numbered as in the schemas.
enum class CurrentMode { kConstant, kImpulse, kSeries };

// A leak of 1, which is cheaper not to multiply by.
struct NoLeak {};
template <class V>
TANDEM_HOST_DEVICE V operator*(NoLeak, V u) {
  return u;
}

// u[t] = leak * u[t-1] - threshold * s[t-1] + x[t], with s[t-1] = (u[t-1] >= threshold): the potential alone carries
// the state from step to step. Returns u[t]; the neuron spikes at t where u[t] >= threshold. A NaN never spikes.
// The order of the operations is part of the contract: it makes every path round alike. L: V, or NoLeak.
template <class V, class L>
TANDEM_HOST_DEVICE V membrane_update(V u, V x, V threshold, L leak) {
  const V held = leak * u;
#if defined(__AVX512F__)
  // The same value, for a - 0 is a; one masked subtraction instead of a masked copy and a subtraction.
  return (u >= threshold ? held - threshold : held) + x;
#else
  return (held - (u >= threshold ? threshold : V{})) + x;
#endif
}

template <class T>
struct NeuronParameters {
  T threshold, leak;
};

}  // namespace tandem
