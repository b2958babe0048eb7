// Walks a region in box order, as runs of equal stride.
#pragma once
#include "table.h"

namespace megarl {

class Cursor {
 public:
  Cursor(const Region& region, int64_t start) : region_(region) {
    position_ = region.offset;
    for (int d = kDims - 1; d >= 0; --d) {
      index_[d] = start % region.shape[d];
      start /= region.shape[d];
      position_ += index_[d] * region.stride[d];
    }
  }
  int64_t position() const { return position_; }                         // elements from the base
  int64_t run() const { return region_.shape[kDims - 1] - index_[kDims - 1]; }
  int64_t stride() const { return region_.stride[kDims - 1]; }

  void advance(int64_t count) {  // count <= run()
    index_[kDims - 1] += count;
    position_ += count * stride();
    for (int d = kDims - 1; d > 0 && index_[d] == region_.shape[d]; --d) {
      position_ += region_.stride[d - 1] - region_.shape[d] * region_.stride[d];
      index_[d] = 0;
      ++index_[d - 1];
    }
  }

 private:
  const Region& region_;
  int64_t index_[kDims];
  int64_t position_;
};

}  // namespace megarl
