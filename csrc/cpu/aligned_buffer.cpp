#include "cpu/aligned_buffer.h"

#include <algorithm>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

namespace tandem {

namespace {

// Address space that is kept, at most; what was never written to takes no memory.
constexpr size_t kKeptBytes = size_t{128} << 20;
constexpr size_t kSmallest = size_t{1} << 14;  // below this malloc is as good
constexpr std::align_val_t kAlignment{64};

// Up to the next eighth of a power of two, so that calls of similar size share.
size_t rounded(size_t bytes) {
  size_t size = kSmallest;
  while (size < bytes) size *= 2;
  const size_t eighth = size / 16;
  return (bytes + eighth - 1) / eighth * eighth;
}

bool is_kept(size_t bytes) { return bytes > kSmallest && bytes <= kKeptBytes; }

struct Block {
  void* memory;
  size_t size;
  const void* thread;  // which gave it back
};

// Something of its own for each thread, to tell it by.
const void* this_thread() {
  thread_local const char own = 0;
  return &own;
}

struct Store {
  std::mutex mutex;
  std::vector<Block> blocks;
  size_t bytes = 0;
};

// Never destroyed: threads may still be at work when the process ends.
Store& store() {
  static auto* const the_store = new Store;
  return *the_store;
}

}  // namespace

namespace {

void* take(size_t bytes) {
  if (!is_kept(bytes)) return ::operator new(bytes, kAlignment);
  const size_t size = rounded(bytes);
  Store& s = store();
  {
    const std::lock_guard<std::mutex> lock(s.mutex);
    // The latest one: it is the likeliest to be in a cache. Of this thread, for what threads exchange has to come from
    // the other's cache.
    const auto latest = [&](const void* thread) {
      return std::find_if(s.blocks.rbegin(), s.blocks.rend(), [=](const Block& block) {
        return block.size == size && (thread == nullptr || block.thread == thread);
      });
    };
    auto found = latest(this_thread());
    if (found == s.blocks.rend()) found = latest(nullptr);
    if (found != s.blocks.rend()) {
      void* const memory = found->memory;
      s.bytes -= size;
      s.blocks.erase(std::next(found).base());
      return memory;
    }
  }
  return ::operator new(size, kAlignment);
}

}  // namespace

void* take_scratch(const char* op, int64_t count, size_t size) {
  const auto bytes = static_cast<unsigned __int128>(count) * size;
  try {
    if (bytes > PTRDIFF_MAX) throw std::bad_alloc();
    return take(static_cast<size_t>(bytes));
  } catch (const std::bad_alloc&) {
    throw std::runtime_error(std::string(op) + ": cannot allocate " + std::to_string(count) + " times " +
                             std::to_string(size) + " bytes of scratch memory");
  }
}

void give_scratch_back(void* memory, size_t bytes) {
  if (is_kept(bytes)) {
    const size_t size = rounded(bytes);
    Store& s = store();
    const std::lock_guard<std::mutex> lock(s.mutex);
    // Room is made by what has not been used for longest.
    while (!s.blocks.empty() && s.bytes + size > kKeptBytes) {
      ::operator delete(s.blocks.front().memory, kAlignment);
      s.bytes -= s.blocks.front().size;
      s.blocks.erase(s.blocks.begin());
    }
    s.blocks.push_back({memory, size, this_thread()});
    s.bytes += size;
    return;
  }
  ::operator delete(memory, kAlignment);
}

}  // namespace tandem
