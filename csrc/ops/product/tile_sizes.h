// Sizes that kernels of products share. Torch-free.
#pragma once

#include <cstdint>

namespace tandem {

// Output pixels in a tile, at most.
constexpr int64_t kTileRows = 128;
// Bytes past its end that writing a list may touch: what different threads write lies as far apart.
constexpr int64_t kListSlack = 64;

}  // namespace tandem
