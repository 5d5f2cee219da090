// Large memory in pages of 2 MiB: a sweep over many megabytes of weights otherwise waits for their addresses.
#pragma once

#include <cstddef>

namespace tandem {

// Asks the system to back the whole huge pages inside this memory by such; before the memory is first written to. A
// hint: where the system has none, or refuses, nothing changes.
void prefer_huge_pages(void* memory, size_t bytes) noexcept;

}  // namespace tandem
