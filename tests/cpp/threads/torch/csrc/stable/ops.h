// Found before torch's header of this name, by builds for ThreadSanitizer: parallel_for on std::thread. torch's own is
// OpenMP's, whose run-time library is not instrumented, so that every two ranges would be reported, or none. All else
// is torch's.
#pragma once

#define parallel_for parallel_for_of_torch
#include_next <torch/csrc/stable/ops.h>
#undef parallel_for

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <thread>
#include <vector>

namespace torch::stable {

// f(begin, end) over [begin, end) in the ranges of at::parallel_for, each in a thread of its own. f does not throw. The
// grain counts as 1: it only says what a thread is worth, and the tests' cases are small.
//
// With TANDEM_PLANTED_RACE in the environment, every range but the first begins one too early.
template <class F>
void parallel_for(int64_t begin, int64_t end, int64_t, const F& f) {
  thread_local bool inside = false;  // of another one's f, where torch does not divide either
  const int64_t n = end - begin, threads = inside ? 1 : std::min<int64_t>(n, get_num_threads());
  if (threads <= 1) {
    if (n > 0) f(begin, end);
    return;
  }
  const int64_t chunk = (n + threads - 1) / threads, early = std::getenv("TANDEM_PLANTED_RACE") ? 1 : 0;
  std::vector<std::thread> others;
  const auto run = [&](int64_t first, int64_t last) {
    inside = true;
    f(first, last);
    inside = false;
  };
  for (int64_t i = begin + chunk; i < end; i += chunk) others.emplace_back(run, i - early, std::min(end, i + chunk));
  run(begin, begin + chunk);
  for (std::thread& thread : others) thread.join();
}

}  // namespace torch::stable
