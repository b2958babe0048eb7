// The C interface of megarl_cpp: raw pointers and int64 tables in, a status out. No exceptions
// cross it, and nothing here knows about models, ranks of a job or torch.
#pragma once
#include <cstdint>

#define MEGARL_API extern "C" __attribute__((visibility("default")))

namespace megarl {

enum Status : int {
  kOk = 0,
  kOutOfBounds = 1,   // a region leaves its base or the flat buffer; *bad is its row
  kUnsupported = 2,   // no kernel for this pair of dtypes
  kMismatch = 3,      // regions that belong together differ in size; *bad is the row
  kNoMemory = 4,
  kUncovered = 5,     // a destination box that no source covers
  kDevice = 6,        // CUDA failed; *bad is the cudaError
};

// Element types; casts exist between float32 and bfloat16, all others are moved bit for bit.
enum DType : int { kFloat32 = 0, kBFloat16 = 1, kBits8 = 2, kBits16 = 3, kBits32 = 4, kBits64 = 5 };

}  // namespace megarl
