// Boxes of up to four dims, equal in every decision to megarl/layout/box.py.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "table.h"

namespace megarl {

struct Box {  // missing dims are [0, 1)
  int64_t lo[kDims], hi[kDims];

  int64_t size(int d) const { return hi[d] - lo[d]; }
  int64_t numel() const {
    int64_t n = 1;
    for (int d = 0; d < kDims; ++d) n *= size(d);
    return n;
  }
  bool intersect(const Box& other, Box* out) const {
    for (int d = 0; d < kDims; ++d) {
      out->lo[d] = std::max(lo[d], other.lo[d]);
      out->hi[d] = std::min(hi[d], other.hi[d]);
      if (out->lo[d] >= out->hi[d]) return false;
    }
    return true;
  }
  bool contains(const Box& other) const {
    for (int d = 0; d < kDims; ++d) {
      if (lo[d] > other.lo[d] || hi[d] < other.hi[d]) return false;
    }
    return true;
  }
  int compare(const Box& other) const {
    for (int d = 0; d < kDims; ++d) {
      if (lo[d] != other.lo[d]) return lo[d] < other.lo[d] ? -1 : 1;
    }
    for (int d = 0; d < kDims; ++d) {
      if (hi[d] != other.hi[d]) return hi[d] < other.hi[d] ? -1 : 1;
    }
    return 0;
  }
  bool operator<(const Box& other) const { return compare(other) < 0; }
};

// Appends the disjoint boxes that make up what `other` leaves of `box`.
inline void subtract(const Box& box, const Box& other, std::vector<Box>* out) {
  Box overlap, rest = box;
  if (!box.intersect(other, &overlap)) return out->push_back(box);
  for (int d = 0; d < kDims; ++d) {
    if (rest.lo[d] < overlap.lo[d]) {
      out->push_back(rest);
      out->back().hi[d] = overlap.lo[d];
    }
    if (overlap.hi[d] < rest.hi[d]) {
      out->push_back(rest);
      out->back().lo[d] = overlap.hi[d];
    }
    rest.lo[d] = overlap.lo[d];
    rest.hi[d] = overlap.hi[d];
  }
}

}  // namespace megarl
