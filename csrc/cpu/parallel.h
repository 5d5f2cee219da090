// Threads: torch's own pool, so that torch.set_num_threads rules here too.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>

namespace tandem {

// f(begin, end) over [0, n) in contiguous ranges of at least `grain`. What f throws arrives here: torch would put a
// message of its own in its place.
template <class F>
void parallel_ranges(int64_t n, int64_t grain, const F& f) {
  if (n <= 0) return;
  std::mutex mutex;
  std::exception_ptr thrown;
  torch::stable::parallel_for(0, n, grain, [&](int64_t begin, int64_t end) {
    try {
      f(begin, end);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex);
      thrown = std::current_exception();
    }
  });
  if (thrown) std::rethrow_exception(thrown);
}

// One call of worker(next) per thread; next() hands out the tasks 0..n-1 in order, then -1. Tasks of unequal cost
// balance themselves, and a worker keeps its scratch memory from task to task.
template <class F>
void parallel_tasks(int64_t n, const F& worker) {
  if (n <= 0) return;
  std::atomic<int64_t> counter{0};
  const auto next = [&counter, n] {
    const int64_t task = counter.fetch_add(1, std::memory_order_relaxed);
    return task < n ? task : int64_t{-1};
  };
  const int64_t workers = std::min<int64_t>(n, torch::stable::get_num_threads());
  parallel_ranges(workers, 1, [&](int64_t begin, int64_t end) {
    if (begin < end) worker(next);
  });
}

}  // namespace tandem
