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
  int64_t first_tile;  // CUDA tiles of all regions before this one

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

// Digest of a region: its elements in box order as 32-bit words (two of two bytes make one; eight
// bytes make two), sum over k of word[k] * word_weight(k % 4096) * block_weight(k / 4096) mod 2^64,
// and a constant of its length. A weight of 32 bits times a word fits 64, so that one changed word,
// two words of a block that changed places, or two flipped bits of a block always show; across
// blocks changes cancel by chance only, 2^-32 at worst. The sum is linear: it may be taken in any
// order and in any parts, on any device.
constexpr int64_t kBlockWords = 4096;

MEGARL_HD constexpr uint64_t scramble(uint64_t z) {
  z = (z + 1) * 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 32)) * 0xd6e8feb86659fd93ull;
  return z ^ (z >> 29);
}

MEGARL_HD constexpr uint32_t word_weight(uint64_t k) {
  return static_cast<uint32_t>(scramble(k) >> 32) | 1u;
}

MEGARL_HD constexpr uint64_t block_weight(uint64_t block) { return scramble(~block) | 1ull; }

MEGARL_HD inline uint64_t digest_constant(int64_t numel) {
  return scramble(static_cast<uint64_t>(numel) ^ 0x5555555555555555ull);
}

// What one element adds.
template <class T>
MEGARL_HD inline uint64_t digest_term(T bits, uint64_t i) {
  const auto word = [](uint64_t value, uint64_t k) {
    return value * word_weight(k % kBlockWords) * block_weight(k / kBlockWords);
  };
  if constexpr (sizeof(T) == 8) {
    return word(bits & 0xffffffffull, 2 * i) + word(bits >> 32, 2 * i + 1);
  } else {
    constexpr uint64_t per_word = 4 / sizeof(T);
    return word(static_cast<uint64_t>(bits) << (8 * sizeof(T) * (i % per_word)), i / per_word);
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
