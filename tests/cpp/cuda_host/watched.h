// Kernels that pack weights which the device watches.
#pragma once

#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "ops/product/watch_weight.cuh"

namespace tandem {

// Whether they write nothing if no part of the weights has changed, and everything if any one has. args: what has
// filled `packed` with so many bytes; launch(args).
template <class Args, class Launch>
bool packs_if_changed(Args args, const Launch& launch, void* packed, int64_t bytes, std::mt19937& generator) {
  const auto size = static_cast<size_t>(bytes);
  std::vector<unsigned char> want(size), other(size, 0xa5);
  std::memcpy(want.data(), packed, size);
  std::memcpy(packed, other.data(), size);
  const auto part = std::uniform_int_distribution<size_t>(0, kWatchBlocks - 1)(generator);
  std::vector<uint64_t> state(static_cast<size_t>(kWatchWords));
  for (size_t i = 0; i < kWatchBlocks; ++i) state[i] = i + 1;
  args.watched = state.data();
  if (launch(args) != cudaSuccess || std::memcmp(packed, other.data(), size) != 0) return false;
  state[kWatchBlocks + part] = 1;
  return launch(args) == cudaSuccess && std::memcmp(packed, want.data(), size) == 0;
}

}  // namespace tandem
