// One thread's way through a region on the GPU: every `step`-th element in box order. It divides
// once, where it starts; after that places come by adding, digit by digit with a carry.
#pragma once
#include "table.h"

namespace megarl {

class Walk {
 public:
  // A region of several rows has fewer than 2^32 elements: the caller saw to that.
  MEGARL_HD Walk(const Region& region, int64_t element, int64_t step)
      : region_(region), position_(region.offset), delta_(0) {
    if (one_row()) {
      position_ += element * region.stride[kDims - 1];
      delta_ = step * region.stride[kDims - 1];
      return;
    }
    uint32_t at = static_cast<uint32_t>(element), by = static_cast<uint32_t>(step);
#pragma unroll
    for (int d = kDims - 1; d > 0; --d) {
      const uint32_t size = static_cast<uint32_t>(region.shape[d]);
      index_[d - 1] = step_[d - 1] = 0;
      if (size == 1) continue;
      index_[d - 1] = at % size;
      step_[d - 1] = by % size;
      at /= size;
      by /= size;
      position_ += static_cast<int64_t>(index_[d - 1]) * region.stride[d];
      delta_ += static_cast<int64_t>(step_[d - 1]) * region.stride[d];
    }
    position_ += static_cast<int64_t>(at) * region.stride[0];
    delta_ += static_cast<int64_t>(by) * region.stride[0];
  }

  MEGARL_HD int64_t position() const { return position_; }  // elements from the base

  MEGARL_HD void advance() {
    position_ += delta_;
    if (one_row()) return;
    uint32_t carry = 0;
#pragma unroll
    for (int d = kDims - 1; d > 0; --d) {
      const uint32_t size = static_cast<uint32_t>(region_.shape[d]);
      index_[d - 1] += step_[d - 1] + carry;
      carry = index_[d - 1] >= size;
      if (carry) {
        index_[d - 1] -= size;
        position_ += region_.stride[d - 1] - region_.shape[d] * region_.stride[d];
      }
    }
  }

 private:
  MEGARL_HD bool one_row() const {
    return region_.shape[0] == 1 && region_.shape[1] == 1 && region_.shape[2] == 1;
  }

  const Region& region_;
  int64_t position_, delta_;
  uint32_t index_[kDims - 1], step_[kDims - 1];
};

}  // namespace megarl
