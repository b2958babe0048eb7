// Deals copies of a box out to givers; equal to megarl/layout/deal.py.
#pragma once
#include <vector>

#include "box.h"

namespace megarl {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// give(group, member, giver, box) for every share.
template <typename Give>
void deal(const Box& box, const std::vector<int64_t>& group_sizes, int64_t givers, int64_t turn,
          int64_t grain, Give give) {
  int dim = 0;
  while (dim < kDims && box.size(dim) <= 1) ++dim;
  if (dim == kDims) dim = 0;
  const int64_t rows = box.size(dim);
  const int64_t units = std::max<int64_t>(1, std::min(rows, box.numel() / grain));
  const int64_t line = static_cast<int64_t>(group_sizes.size()) * units;
  std::vector<int64_t> cuts;
  for (size_t group = 0; group < group_sizes.size(); ++group) {
    const int64_t first = static_cast<int64_t>(group) * units, size = group_sizes[group];
    cuts.assign({0, units});
    // Only givers whose part of the line meets this group's.
    for (int64_t g = first * givers / line; g <= ceil_div((first + units) * givers, line); ++g) {
      const int64_t cut = ceil_div(g * line, givers) - first;
      if (cut > 0 && cut < units) cuts.push_back(cut);
    }
    for (int64_t m = 1; m < size; ++m) cuts.push_back(ceil_div(m * units, size));
    std::sort(cuts.begin(), cuts.end());
    cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());
    for (size_t c = 0; c + 1 < cuts.size(); ++c) {
      Box share = box;
      share.lo[dim] = box.lo[dim] + cuts[c] * rows / units;
      share.hi[dim] = box.lo[dim] + cuts[c + 1] * rows / units;
      give(static_cast<int64_t>(group), (cuts[c] * size / units + turn) % size,
           ((first + cuts[c]) * givers / line + turn) % givers, share);
    }
  }
}

}  // namespace megarl
