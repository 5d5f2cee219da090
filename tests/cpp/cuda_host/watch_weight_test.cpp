// What the device knows of weights, run on the host: it notices every change, and says nothing where there is none.
#include "ops/product/watch_weight.cu"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <random>
#include <set>
#include <vector>

namespace {

using namespace tandem;

int failures = 0;
std::mt19937 generator(7);

void check(bool right, const char* what, int64_t bytes, int64_t offset) {
  if (right) return;
  ++failures;
  std::printf("FAIL %s: %lld bytes from %lld on\n", what, static_cast<long long>(bytes),
              static_cast<long long>(offset));
}

int64_t random_below(int64_t n) { return std::uniform_int_distribution<int64_t>(0, n - 1)(generator); }

// Memory of a weight, without a byte to spare behind it: a sanitizer sees the first one too many.
struct Watched {
  Watched(int64_t bytes_, int64_t offset)
      : bytes(bytes_), storage(static_cast<size_t>(offset + bytes_)), memory(storage.data() + offset) {
    for (uint8_t& byte : storage) byte = static_cast<uint8_t>(random_below(256));
  }
  // Parts that have changed since the last call.
  int64_t changed() {
    if (launch_watch_weight({memory, bytes, state.data()}, nullptr) != cudaSuccess) ++failures;
    int64_t parts = 0;
    for (int i = 0; i < kWatchBlocks; ++i) parts += state[static_cast<size_t>(kWatchBlocks + i)] != 0;
    return parts;
  }
  int64_t bytes;
  std::vector<uint8_t> storage;
  uint8_t* memory;
  std::vector<uint64_t> state = std::vector<uint64_t>(static_cast<size_t>(kWatchWords));
};

void run(int64_t bytes, int64_t offset) {
  Watched watched(bytes, offset);
  check(watched.changed() > 0, "nothing was packed before", bytes, offset);
  check(watched.changed() == 0, "unchanged", bytes, offset);
  for (const int64_t at : {int64_t{0}, random_below(bytes), bytes - 1}) {
    watched.memory[at] = static_cast<uint8_t>(watched.memory[at] ^ 1 << random_below(8));
    check(watched.changed() == 1, "a bit", bytes, offset);
  }
  // There and back, as weights are swapped for their average, is a change each time.
  std::vector<uint8_t> kept(watched.memory, watched.memory + bytes);
  const std::vector<uint64_t> before = watched.state;
  for (int64_t i = 0; i < bytes; ++i) watched.memory[i] = static_cast<uint8_t>(~watched.memory[i]);
  check(watched.changed() > 0, "there", bytes, offset);
  std::memcpy(watched.memory, kept.data(), kept.size());
  check(watched.changed() > 0, "back", bytes, offset);
  check(std::equal(before.begin(), before.begin() + kWatchBlocks, watched.state.begin()), "same fingerprints", bytes,
        offset);
  // Words that change places.
  if (bytes % 8 == 0 && offset % 8 == 0 && bytes >= 16) {
    const int64_t a = 0, b = random_below(bytes / 8 - 1) + 1;
    if (std::memcmp(watched.memory + 8 * a, watched.memory + 8 * b, 8) != 0) {
      std::swap_ranges(watched.memory + 8 * a, watched.memory + 8 * a + 8, watched.memory + 8 * b);
      check(watched.changed() > 0, "swapped words", bytes, offset);
    }
  }
}

// Weights of zeros, of one value, and of one number at any place, which are alike in most bits: as one part.
void regular() {
  constexpr uint64_t kWords = 512;
  std::vector<uint64_t> words(kWords);
  std::set<uint64_t> seen;
  size_t made = 0;
  const auto note = [&] {
    uint64_t sum = 0;
    for (uint64_t i = 0; i < kWords; ++i) sum += mixed(words[i], i);
    seen.insert(sum);
    ++made;
  };
  for (uint64_t value = 0; value < 256; ++value) {
    std::fill(words.begin(), words.end(), value * 0x0101010101010101u);
    note();
  }
  std::fill(words.begin(), words.end(), 0);
  for (uint64_t& word : words) {
    for (int bit = 0; bit < 64; ++bit) {
      word = uint64_t{1} << bit;
      note();
    }
    word = 0;
  }
  check(seen.size() == made, "regular weights", 8 * kWords, 0);
}

}  // namespace

int main() {
  run(3, 0);
  run(999, 1);
  run(1002, 4);                                                 // halfwords
  run(8 * 999, 4);                                              // words of 32 bits
  run(int64_t{8} * kWatchBlocks * kWatchThreads + 8 * 777, 0);  // some threads twice
  regular();
  std::printf("watch_weight_test: %d failures\n", failures);
  return failures != 0;
}
