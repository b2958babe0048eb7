// What one thread does with a tile of a region: all of the GPU kernels but the launch and the sums
// over threads. It compiles for the host too, where tests run it thread by thread.
#pragma once
#include <cstring>

#include "walk.h"

namespace megarl {

constexpr int kThreads = 256;

// A supported pair of element types, as a tag.
template <class T, class F, bool kC>
struct Pair {
  using To = T;
  using From = F;
  static constexpr bool kCast = kC;
  // Elements that are moved at once: 16 bytes of the narrower type.
  static constexpr int kUnit = 16 / (sizeof(T) < sizeof(F) ? sizeof(T) : sizeof(F));
};

template <class Body>
int dispatch(int src, int dst, const Body& body) {
  if (src == kFloat32 && dst == kBFloat16) return body(Pair<uint16_t, uint32_t, true>{});
  if (src == kBFloat16 && dst == kFloat32) return body(Pair<uint32_t, uint16_t, true>{});
  if (src != dst) return kUnsupported;
  switch (item_size(src)) {
    case 1: return body(Pair<uint8_t, uint8_t, false>{});
    case 2: return body(Pair<uint16_t, uint16_t, false>{});
    case 4: return body(Pair<uint32_t, uint32_t, false>{});
    case 8: return body(Pair<uint64_t, uint64_t, false>{});
    default: return kUnsupported;
  }
}

template <class T, int kN>
struct alignas(kN == 1 ? alignof(T) : 16) Unit {
  T at[kN];
};

// One element, or whole 16-byte words. The hints keep what is read and written once out of the
// way of what the caches hold.
template <class T, int kN>
MEGARL_HD inline void load(Unit<T, kN>& x, const T* from) {
#ifdef __CUDA_ARCH__
  if constexpr (kN == 1) {
    x.at[0] = __ldcs(from);
  } else {
#pragma unroll
    for (int k = 0; k < sizeof(x) / 16; ++k) {
      reinterpret_cast<uint4*>(&x)[k] = __ldcs(reinterpret_cast<const uint4*>(from) + k);
    }
  }
#else
  std::memcpy(&x, from, sizeof(x));
#endif
}

template <class T, int kN>
MEGARL_HD inline void store(T* to, const Unit<T, kN>& x) {
#ifdef __CUDA_ARCH__
  if constexpr (kN == 1) {
    __stcs(to, x.at[0]);
  } else {
#pragma unroll
    for (int k = 0; k < sizeof(x) / 16; ++k) {
      __stcs(reinterpret_cast<uint4*>(to) + k, reinterpret_cast<const uint4*>(&x)[k]);
    }
  }
#else
  std::memcpy(to, &x, sizeof(x));
#endif
}

// What a unit adds to the digest; its elements start at `element` of the region.
template <class T, int kN>
MEGARL_HD inline uint64_t unit_digest(const Unit<T, kN>& x, int64_t element) {
  if constexpr (kN == 1) {
    return digest_term<T>(x.at[0], static_cast<uint64_t>(element));
  } else {  // whole words of one block, since units are aligned in the region
    constexpr int kWords = sizeof(x) / 4;
    uint32_t word[kWords];
    std::memcpy(word, &x, sizeof(x));
    const uint64_t first = static_cast<uint64_t>(element) * sizeof(T) / 4;
    uint64_t sum = 0;
#pragma unroll
    for (int k = 0; k < kWords; ++k) {
      sum += static_cast<uint64_t>(word[k]) * word_weight((first + k) % kBlockWords);
    }
    return sum * block_weight(first / kBlockWords);
  }
}

// Elements [begin, end) of a region, this thread's share of them in units of kUnit.
template <class P, int kUnit, bool kWrite, bool kDigest>
MEGARL_HD uint64_t sweep(const Region& a, const Region& b, int64_t begin, int64_t end, int thread) {
  using From = typename P::From;
  using To = typename P::To;
  // That many units of a thread are under way before it waits for the first of them; with more,
  // the digests' weights would not fit the registers that four blocks of a processor leave.
  constexpr int kBatch = kDigest || kUnit * sizeof(From) > 16 ? 2 : 4;
  constexpr int64_t kStep = kThreads * kUnit;
  const From* from = reinterpret_cast<const From*>(a.base);
  To* to = reinterpret_cast<To*>(b.base);
  const int64_t start = begin + thread * kUnit;
  Walk in(a, start, kStep), out(b, start, kStep);
  uint64_t sum = 0;
  for (int64_t e = start; e < end; e += kBatch * kStep) {
    Unit<From, kUnit> x[kBatch];
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      if (e + k * kStep < end) load(x[k], from + in.position());
      in.advance();
    }
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      if (e + k * kStep >= end) break;
      Unit<To, kUnit> y;
#pragma unroll
      for (int j = 0; j < kUnit; ++j) y.at[j] = convert<To, From, P::kCast>(x[k].at[j]);
      if constexpr (kDigest) sum += unit_digest(y, e + k * kStep);
      if constexpr (kWrite) {
        store(to + out.position(), y);
        out.advance();
      }
    }
  }
  return sum;
}

// Whether units stay whole and 16-byte aligned all over the region.
MEGARL_HD inline bool aligned(const Region& r, int64_t unit, int64_t size) {
  bool ok = r.stride[kDims - 1] == 1 && r.shape[kDims - 1] % unit == 0;
  ok = ok && (r.base + r.offset * size) % 16 == 0;
  for (int d = 0; d < kDims - 1; ++d) {
    ok = ok && (r.shape[d] == 1 || r.stride[d] * size % 16 == 0);
  }
  return ok;
}

// A tile of a region from a to b (kWrite), and what this thread adds to its digest (kDigest).
template <class P, bool kWrite, bool kDigest>
MEGARL_HD uint64_t tile_share(const Region& a, const Region& b, int64_t tile, int thread) {
  const int64_t begin = (tile - a.first_tile) * kTile;
  const int64_t end = begin + kTile < a.numel() ? begin + kTile : a.numel();
  uint64_t sum = 0;
  if (aligned(a, P::kUnit, sizeof(typename P::From)) &&
      (!kWrite || aligned(b, P::kUnit, sizeof(typename P::To)))) {
    sum = sweep<P, P::kUnit, kWrite, kDigest>(a, b, begin, end, thread);
  } else {
    sum = sweep<P, 1, kWrite, kDigest>(a, b, begin, end, thread);
  }
  return kDigest && begin == 0 && thread == 0 ? sum + digest_constant(a.numel()) : sum;
}

// The region as a row of the flat buffer.
MEGARL_HD inline Region line_of(const Region& r, void* flat) {
  return {reinterpret_cast<int64_t>(flat), 0, r.flat, {1, 1, 1, r.numel()}, {0, 0, 0, 1}, 0,
          r.first_tile};
}

}  // namespace megarl
