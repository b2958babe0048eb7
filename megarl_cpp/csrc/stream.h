// Copies past the caches, for what is written once and read much later, or by somebody else.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace megarl {

// What one call must write for it: less may still lie in a cache when it is read next.
constexpr int64_t kStreamBytes = int64_t{32} << 20;
// Shorter runs spend more on their ends, and on lines that two runs share, than they save.
constexpr int64_t kStreamRun = 1024;

inline void stream_copy(char* to, const char* from, int64_t n) {
#if defined(__SSE2__)
  const int64_t head = -reinterpret_cast<intptr_t>(to) & 63;
  if (n >= kStreamRun) {
    std::memcpy(to, from, head);
    to += head;
    from += head;
    n -= head;
    for (; n >= 64; n -= 64, from += 64, to += 64) {
      const __m128i* x = reinterpret_cast<const __m128i*>(from);
      __m128i* y = reinterpret_cast<__m128i*>(to);
      const __m128i a = _mm_loadu_si128(x), b = _mm_loadu_si128(x + 1);
      const __m128i c = _mm_loadu_si128(x + 2), d = _mm_loadu_si128(x + 3);
      _mm_stream_si128(y, a);
      _mm_stream_si128(y + 1, b);
      _mm_stream_si128(y + 2, c);
      _mm_stream_si128(y + 3, d);
    }
  }
#endif
  std::memcpy(to, from, n);
}

// Before anybody else may look at what was streamed.
inline void stream_fence() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

}  // namespace megarl
