// Splits the elements of a table evenly over threads.
#pragma once
#include <algorithm>
#include <thread>
#include <vector>

#include "table.h"

namespace megarl {

// Calls work(region index, first element, last element) so that all elements are covered once.
template <class Work>
void for_elements(const Region* table, int64_t n, int threads, const Work& work) {
  std::vector<int64_t> start(n + 1, 0);
  for (int64_t i = 0; i < n; ++i) start[i + 1] = start[i] + table[i].numel();
  const int64_t total = start[n];
  auto share = [&](int64_t begin, int64_t end) {
    int64_t i = std::upper_bound(start.begin(), start.end(), begin) - start.begin() - 1;
    for (; begin < end; ++i) {
      const int64_t stop = std::min(end, start[i + 1]);
      work(i, begin - start[i], stop - start[i]);
      begin = stop;
    }
  };
  // A thread costs some ten microseconds: not worth it for less than this.
  constexpr int64_t kMinPerThread = 1 << 16;
  const int64_t count = std::clamp<int64_t>(total / kMinPerThread, 1, std::max(threads, 1));
  std::vector<std::thread> pool;
  for (int64_t t = 1; t < count; ++t) {
    try {
      pool.emplace_back(share, total * t / count, total * (t + 1) / count);
    } catch (...) {  // no more threads to be had: do their work here
      share(total * t / count, total);
      break;
    }
  }
  share(0, total / count);
  for (auto& thread : pool) thread.join();
}

}  // namespace megarl
