// The region table that CPU and CUDA code share: one row of int64 per region of up to four dims,
// leading dims padded with size 1. Sizes are in elements, so one table serves every dtype.
#pragma once
#include <cstdint>

#include "api.h"

#ifdef __CUDACC__
#define MEGARL_HD __host__ __device__
#else
#define MEGARL_HD
#endif

namespace megarl {

constexpr int kDims = 4;
constexpr int64_t kTile = 8192;  // elements that one CUDA block moves

struct Region {
  int64_t base;        // address of the buffer
  int64_t base_numel;  // its length
  int64_t offset;      // of the first element
  int64_t shape[kDims];
  int64_t stride[kDims];
  int64_t flat;        // position of the region in the contiguous buffer
  int64_t first_tile;  // tiles of all regions before this one

  MEGARL_HD int64_t numel() const { return shape[0] * shape[1] * shape[2] * shape[3]; }
};
static_assert(sizeof(Region) == 13 * sizeof(int64_t), "a region is a row of the int64 table");

// bfloat16 as bits: round to nearest even; every NaN becomes the quiet one, never infinity.
MEGARL_HD inline uint16_t bf16_of_f32(uint32_t bits) {
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

template <class To, class From, bool kCast>
MEGARL_HD inline To convert(From value) {
  if constexpr (!kCast) {
    return static_cast<To>(value);
  } else if constexpr (sizeof(To) < sizeof(From)) {
    return static_cast<To>(bf16_of_f32(static_cast<uint32_t>(value)));
  } else {
    return static_cast<To>(value) << 16;  // bfloat16 is the upper half of a float32
  }
}

// Digest of a region: sum over i of (bits[i] + 1) * weight(i) mod 2^64. Weights are odd, so one
// changed element always changes the sum; they follow no pattern, so that several changes cancel
// only by chance. A sum may be taken in any order and in parts, on any device.
MEGARL_HD inline uint64_t weight(uint64_t i) {
  uint64_t z = (i + 1) * 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 32)) * 0xd6e8feb86659fd93ull;
  return (z ^ (z >> 29)) | 1ull;
}

template <class T>
MEGARL_HD inline uint64_t digest_term(T bits, uint64_t i) {
  if constexpr (sizeof(T) == 8) {
    // In halves: an odd weight leaves bit 63 where it is, and two flips of it would cancel.
    return ((bits & 0xffffffffull) + 1) * weight(i) + (bits >> 32) * weight(~i);
  } else {
    return (static_cast<uint64_t>(bits) + 1) * weight(i);
  }
}

inline int64_t item_size(int dtype) {
  constexpr int64_t sizes[] = {4, 2, 1, 2, 4, 8};
  return dtype >= 0 && dtype < 6 ? sizes[dtype] : 0;
}

// Every region inside its base, and [flat, flat + numel) inside flat_numel unless that is < 0.
inline Status check(const Region* table, int64_t n, int64_t flat_numel, int64_t* bad) {
  for (int64_t i = 0; i < n; ++i) {
    const Region& r = table[i];
    __int128 last = r.offset, numel = 1;
    bool ok = r.offset >= 0 && r.flat >= 0;
    for (int d = 0; d < kDims; ++d) {
      ok = ok && r.shape[d] > 0 && r.stride[d] >= 0;
      last += static_cast<__int128>(r.shape[d] - 1) * r.stride[d];
      numel *= r.shape[d];
      ok = ok && numel < (static_cast<__int128>(1) << 62);
    }
    ok = ok && last < r.base_numel && (flat_numel < 0 || r.flat + numel <= flat_numel);
    if (!ok) {
      *bad = i;
      return kOutOfBounds;
    }
  }
  return kOk;
}

}  // namespace megarl
