// Threads: torch's own pool, so that torch.set_num_threads rules here too.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <vector>

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

// One call of worker(next) per thread; next() hands out the tasks outer * inner_tasks + inner, then -1. A worker begins
// with its share of the inner indices, for one outer index after the other, and goes on with what the others have not
// begun. So tasks of unequal cost balance themselves, a worker keeps its scratch memory from task to task, and what
// belongs to an inner index stays in one core's cache from stage to stage and from call to call: lines that another
// core has written last take two to three times as long to write.
template <class F>
void parallel_tasks(int64_t outer_tasks, int64_t inner_tasks, const F& worker) {
  const int64_t all = outer_tasks * inner_tasks;
  if (all <= 0) return;
  struct alignas(64) Counter {
    std::atomic<int64_t> next{0};
  };
  const int64_t workers = std::min<int64_t>(all, torch::stable::get_num_threads());
  std::vector<Counter> counters(static_cast<size_t>(workers));
  parallel_ranges(workers, 1, [&](int64_t begin, int64_t end) {
    if (begin == end) return;
    int64_t share = begin, left = workers;
    worker([&]() -> int64_t {
      for (; left > 0; --left, share = (share + 1) % workers) {
        const int64_t first = share * inner_tasks / workers, n = (share + 1) * inner_tasks / workers - first;
        const int64_t i = n == 0 ? 0 : counters[share].next.fetch_add(1, std::memory_order_relaxed);
        if (i < n * outer_tasks) return i / n * inner_tasks + first + i % n;
      }
      return -1;
    });
  });
}

}  // namespace tandem
