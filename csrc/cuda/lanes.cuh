// Neighbouring elements that a thread moves at once.
#pragma once

#include "cuda/device.cuh"

namespace tandem {

// What one access moves, two accesses for four doubles.
template <class T, int kLanes>
struct alignas(sizeof(T) * kLanes < 16 ? sizeof(T) * kLanes : 16) Lanes {
  T x[kLanes];
};

template <int kLanes, class T>
__device__ __forceinline__ Lanes<T, kLanes> load_lanes(const T* from) {
  return *reinterpret_cast<const Lanes<T, kLanes>*>(from);
}

template <int kLanes, class T>
__device__ __forceinline__ void store_lanes(T* to, const Lanes<T, kLanes>& lanes) {
  *reinterpret_cast<Lanes<T, kLanes>*>(to) = lanes;
}

}  // namespace tandem
