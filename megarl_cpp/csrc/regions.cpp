// Pack, unpack, copy and digest of strided regions on the CPU. Where `digests` is not null, it
// receives each region's digest as the destination's type, taken from the source on the way.
#include <cstring>
#include <new>

#include "cursor.h"
#include "parallel.h"
#include "stream.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define MEGARL_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define MEGARL_CLONES
#endif

namespace megarl {
namespace {

using CopyRun = void (*)(const char*, int64_t, char*, int64_t, int64_t);
using DigestRun = uint64_t (*)(const char*, int64_t, int64_t, uint64_t);

template <class T>
void move_run(const char* from, int64_t from_stride, char* to, int64_t to_stride, int64_t n) {
  if (from_stride == 1 && to_stride == 1) {
    if (from != to) std::memcpy(to, from, n * sizeof(T));
    return;
  }
  const T* x = reinterpret_cast<const T*>(from);
  T* y = reinterpret_cast<T*>(to);
  for (int64_t i = 0; i < n; ++i) y[i * to_stride] = x[i * from_stride];
}

template <class T>
void stream_run(const char* from, int64_t from_stride, char* to, int64_t to_stride, int64_t n) {
  if (from_stride != 1 || to_stride != 1) return move_run<T>(from, from_stride, to, to_stride, n);
  stream_copy(to, from, n * sizeof(T));
}

MEGARL_CLONES void narrow(const uint32_t* x, uint16_t* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = bf16_of_f32(x[i]);
}

MEGARL_CLONES void widen(const uint16_t* x, uint32_t* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = static_cast<uint32_t>(x[i]) << 16;
}

void narrow_run(const char* from, int64_t from_stride, char* to, int64_t to_stride, int64_t n) {
  auto x = reinterpret_cast<const uint32_t*>(from);
  auto y = reinterpret_cast<uint16_t*>(to);
  if (from_stride == 1 && to_stride == 1) return narrow(x, y, n);
  for (int64_t i = 0; i < n; ++i) y[i * to_stride] = bf16_of_f32(x[i * from_stride]);
}

void widen_run(const char* from, int64_t from_stride, char* to, int64_t to_stride, int64_t n) {
  auto x = reinterpret_cast<const uint16_t*>(from);
  auto y = reinterpret_cast<uint32_t*>(to);
  if (from_stride == 1 && to_stride == 1) return widen(x, y, n);
  for (int64_t i = 0; i < n; ++i) y[i * to_stride] = static_cast<uint32_t>(x[i * from_stride]) << 16;
}

struct WordWeights {
  uint32_t of[kBlockWords];
  constexpr WordWeights() : of() {
    for (int64_t k = 0; k < kBlockWords; ++k) of[k] = word_weight(static_cast<uint64_t>(k));
  }
};
constexpr WordWeights kWordWeights;

// Sum over whole words inside one block, before the block's weight.
MEGARL_CLONES uint64_t sum_words(const char* x, const uint32_t* weights, int64_t n) {
  uint64_t sum = 0;
  for (int64_t k = 0; k < n; ++k) {
    uint32_t word;
    std::memcpy(&word, x + 4 * k, 4);
    sum += static_cast<uint64_t>(word) * weights[k];
  }
  return sum;
}

// What elements [i, i + n) of a region add, which lie at x without gaps.
template <class T>
uint64_t sum_contiguous(const char* x, int64_t n, uint64_t i) {
  constexpr int64_t per_word = 4 / sizeof(T);
  uint64_t total = 0;
  const auto single = [&] {
    T bits;
    std::memcpy(&bits, x, sizeof(T));
    total += digest_term<T>(bits, i);
    x += sizeof(T);
    ++i;
    --n;
  };
  while (n > 0) {
    while (n > 0 && i % per_word != 0) single();
    const int64_t k = static_cast<int64_t>(i) / per_word, in_block = k % kBlockWords;
    const int64_t words = std::min(n / per_word, kBlockWords - in_block);
    total += sum_words(x, kWordWeights.of + in_block, words) * block_weight(k / kBlockWords);
    x += 4 * words;
    i += words * per_word;
    n -= words * per_word;
    while (n > 0 && n < per_word) single();
  }
  return total;
}

template <>
uint64_t sum_contiguous<uint64_t>(const char* x, int64_t n, uint64_t i) {
  return sum_contiguous<uint32_t>(x, 2 * n, 2 * i);
}

// A run of any stride and type, brought together as type To first where it has to be.
template <class To, int64_t kFromSize, CopyRun kMove, bool kCast>
uint64_t sum_run(const char* from, int64_t stride, int64_t n, uint64_t i) {
  if (!kCast && stride == 1) return sum_contiguous<To>(from, n, i);
  constexpr int64_t kChunk = 2048;
  To chunk[kChunk];
  uint64_t total = 0;
  for (int64_t done = 0; done < n; done += kChunk) {
    const int64_t count = std::min(kChunk, n - done);
    kMove(from + done * stride * kFromSize, stride, reinterpret_cast<char*>(chunk), 1, count);
    total += sum_contiguous<To>(reinterpret_cast<const char*>(chunk), count, i + done);
  }
  return total;
}

// stream: past the caches. Casts gain nothing by it: they are bound by the arithmetic.
CopyRun copy_kernel(int src, int dst, bool stream) {
  if (src == kFloat32 && dst == kBFloat16) return narrow_run;
  if (src == kBFloat16 && dst == kFloat32) return widen_run;
  if (src != dst) return nullptr;
  switch (item_size(src)) {
    case 1: return stream ? stream_run<uint8_t> : move_run<uint8_t>;
    case 2: return stream ? stream_run<uint16_t> : move_run<uint16_t>;
    case 4: return stream ? stream_run<uint32_t> : move_run<uint32_t>;
    case 8: return stream ? stream_run<uint64_t> : move_run<uint64_t>;
    default: return nullptr;
  }
}

DigestRun digest_kernel(int src, int as) {
  if (src == kFloat32 && as == kBFloat16) return sum_run<uint16_t, 4, narrow_run, true>;
  if (src == kBFloat16 && as == kFloat32) return sum_run<uint32_t, 2, widen_run, true>;
  if (src != as) return nullptr;
  switch (item_size(src)) {
    case 1: return sum_run<uint8_t, 1, move_run<uint8_t>, false>;
    case 2: return sum_run<uint16_t, 2, move_run<uint16_t>, false>;
    case 4: return sum_run<uint32_t, 4, move_run<uint32_t>, false>;
    case 8: return sum_run<uint64_t, 8, move_run<uint64_t>, false>;
    default: return nullptr;
  }
}

Region flat_region(const Region& like, void* flat, int64_t flat_numel) {
  const int64_t n = like.numel();
  return {reinterpret_cast<int64_t>(flat), flat_numel, like.flat, {1, 1, 1, n}, {0, 0, 0, 1}, 0, 0};
}

// Copies elements [begin, end) of a region; returns the digest of what was read, if asked for.
uint64_t copy_part(const Region& from, int64_t from_size, const Region& to, int64_t to_size,
                   int64_t begin, int64_t end, CopyRun kernel, DigestRun digest) {
  constexpr int64_t kInCache = 4096;  // elements that are digested while they are still in L1
  Cursor a(from, begin), b(to, begin);
  uint64_t sum = 0;
  while (begin < end) {
    int64_t n = std::min({a.run(), b.run(), end - begin});
    if (digest != nullptr) n = std::min(n, kInCache);
    const char* source = reinterpret_cast<const char*>(from.base) + a.position() * from_size;
    kernel(source, a.stride(), reinterpret_cast<char*>(to.base) + b.position() * to_size,
           b.stride(), n);
    if (digest != nullptr) sum += digest(source, a.stride(), n, static_cast<uint64_t>(begin));
    a.advance(n);
    b.advance(n);
    begin += n;
  }
  stream_fence();
  return sum;
}

void add(uint64_t* out, uint64_t sum) {  // threads share large regions
  __atomic_fetch_add(out, sum, __ATOMIC_RELAXED);
}

enum class Flat { kNone, kSource, kDestination };

Status move(const Region* src, const Region* dst, int64_t n, void* flat, int64_t flat_bytes,
            Flat which, int src_dtype, int dst_dtype, uint64_t* digests, int threads,
            int64_t* bad) {
  const DigestRun digest = digests == nullptr ? nullptr : digest_kernel(src_dtype, dst_dtype);
  if (copy_kernel(src_dtype, dst_dtype, false) == nullptr) return kUnsupported;
  const int64_t from_size = item_size(src_dtype), to_size = item_size(dst_dtype);
  const int64_t flat_numel = flat_bytes / (which == Flat::kSource ? from_size : to_size);
  const Region* leading = which == Flat::kSource ? dst : src;
  if (Status s = check(leading, n, which == Flat::kNone ? -1 : flat_numel, bad)) return s;
  if (which == Flat::kNone) {
    if (Status s = check(dst, n, -1, bad)) return s;
    for (int64_t i = 0; i < n; ++i) {
      if (src[i].numel() != dst[i].numel()) return *bad = i, kMismatch;
    }
  }
  int64_t written = 0;
  for (int64_t i = 0; i < n; ++i) written += leading[i].numel() * to_size;
  const CopyRun kernel = copy_kernel(src_dtype, dst_dtype, written >= kStreamBytes);
  if (digests != nullptr) std::memset(digests, 0, n * sizeof(uint64_t));
  for_elements(leading, n, threads, [&](int64_t i, int64_t begin, int64_t end) {
    const Region a = which == Flat::kSource ? flat_region(dst[i], flat, flat_numel) : src[i];
    const Region b = which == Flat::kDestination ? flat_region(src[i], flat, flat_numel) : dst[i];
    const uint64_t sum = copy_part(a, from_size, b, to_size, begin, end, kernel, digest);
    if (digests != nullptr) add(&digests[i], sum + (begin == 0 ? digest_constant(a.numel()) : 0));
  });
  return kOk;
}

template <class Body>
int guarded(const Body& body) {
  try {
    return body();
  } catch (...) {  // only allocation can fail here
    return kNoMemory;
  }
}

}  // namespace
}  // namespace megarl

using namespace megarl;

MEGARL_API int megarl_pack(const Region* table, int64_t n, void* flat, int64_t flat_bytes,
                           int src_dtype, int dst_dtype, uint64_t* digests, int threads,
                           int64_t* bad) {
  return guarded([&] {
    return move(table, nullptr, n, flat, flat_bytes, Flat::kDestination, src_dtype, dst_dtype,
                digests, threads, bad);
  });
}

MEGARL_API int megarl_unpack(const Region* table, int64_t n, void* flat, int64_t flat_bytes,
                             int src_dtype, int dst_dtype, int threads, int64_t* bad) {
  return guarded([&] {
    return move(nullptr, table, n, flat, flat_bytes, Flat::kSource, src_dtype, dst_dtype, nullptr,
                threads, bad);
  });
}

MEGARL_API int megarl_copy(const Region* src, const Region* dst, int64_t n, int src_dtype,
                           int dst_dtype, uint64_t* digests, int threads, int64_t* bad) {
  return guarded([&] {
    return move(src, dst, n, nullptr, 0, Flat::kNone, src_dtype, dst_dtype, digests, threads, bad);
  });
}

MEGARL_API int megarl_digest(const Region* table, int64_t n, int src_dtype, int as_dtype,
                             uint64_t* out, int threads, int64_t* bad) {
  return guarded([&]() -> int {
    const DigestRun kernel = digest_kernel(src_dtype, as_dtype);
    if (kernel == nullptr) return kUnsupported;
    if (Status s = check(table, n, -1, bad)) return s;
    std::memset(out, 0, n * sizeof(uint64_t));
    const int64_t size = item_size(src_dtype);
    for_elements(table, n, threads, [&](int64_t i, int64_t begin, int64_t end) {
      Cursor cursor(table[i], begin);
      uint64_t sum = begin == 0 ? digest_constant(table[i].numel()) : 0;
      while (begin < end) {
        const int64_t count = std::min(cursor.run(), end - begin);
        sum += kernel(reinterpret_cast<const char*>(table[i].base) + cursor.position() * size,
                      cursor.stride(), count, static_cast<uint64_t>(begin));
        cursor.advance(count);
        begin += count;
      }
      add(&out[i], sum);
    });
    return kOk;
  });
}
