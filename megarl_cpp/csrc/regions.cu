// Pack, unpack, copy and digest of strided regions on the GPU: one launch for a whole table.
// A block takes one tile of one region; where both ends allow it, threads move 16 bytes at a time.
#include <cuda_runtime.h>

#include "table.h"

namespace megarl {
namespace {

constexpr int kThreads = 256;

__device__ int64_t region_of(const Region* table, int64_t n, int64_t tile) {
  int64_t lo = 0, hi = n - 1;  // the last region that starts at or before the tile
  while (lo < hi) {
    const int64_t mid = (lo + hi + 1) / 2;
    if (table[mid].first_tile <= tile) lo = mid; else hi = mid - 1;
  }
  return lo;
}

__device__ int64_t place(const Region& r, int64_t element) {
  int64_t position = r.offset;
  if (r.shape[0] * r.shape[1] == 1 && r.shape[2] == 1) return position + element * r.stride[3];
  // 32-bit division is several times cheaper, and nearly every region is that small.
  if (r.numel() <= 0xffffffffll) {
    uint32_t e = static_cast<uint32_t>(element);
#pragma unroll
    for (int d = kDims - 1; d > 0; --d) {
      if (r.shape[d] == 1) continue;
      const uint32_t size = static_cast<uint32_t>(r.shape[d]), q = e / size;
      position += static_cast<int64_t>(e - q * size) * r.stride[d];
      e = q;
    }
    return position + static_cast<int64_t>(e) * r.stride[0];
  }
  for (int d = kDims - 1; d >= 0; --d) {
    position += (element % r.shape[d]) * r.stride[d];
    element /= r.shape[d];
  }
  return position;
}

// Whether units of `unit` elements stay whole and 16-byte aligned all over the region.
__device__ bool aligned(const Region& r, int64_t unit, int64_t size) {
  bool ok = r.stride[3] == 1 && r.shape[3] % unit == 0 && (r.base + r.offset * size) % 16 == 0;
  for (int d = 0; d < kDims - 1; ++d) {
    ok = ok && (r.shape[d] == 1 || r.stride[d] * size % 16 == 0);
  }
  return ok;
}

template <class To, class From, bool kCast>
__global__ void __launch_bounds__(kThreads)
    move_tiles(const Region* src, const Region* dst, char* flat, int64_t n) {
  constexpr int64_t kUnit = 16 / (sizeof(To) < sizeof(From) ? sizeof(To) : sizeof(From));
  __shared__ Region a, b;
  const Region* leading = src != nullptr ? src : dst;
  if (threadIdx.x == 0) {
    const int64_t i = region_of(leading, n, blockIdx.x);
    const Region& r = leading[i];
    const Region line = {reinterpret_cast<int64_t>(flat), 0, r.flat, {1, 1, 1, r.numel()},
                         {0, 0, 0, 1}, 0, 0};
    a = src != nullptr ? src[i] : line;
    b = dst != nullptr ? dst[i] : line;
    a.first_tile = r.first_tile;
  }
  __syncthreads();
  const From* from = reinterpret_cast<const From*>(a.base);
  To* to = reinterpret_cast<To*>(b.base);
  const int64_t begin = (blockIdx.x - a.first_tile) * kTile;
  const int64_t end = min(begin + kTile, a.numel());
  if (aligned(a, kUnit, sizeof(From)) && aligned(b, kUnit, sizeof(To))) {
#pragma unroll 2
    for (int64_t e = begin + threadIdx.x * kUnit; e < end; e += kThreads * kUnit) {
      alignas(16) From x[kUnit];
      alignas(16) To y[kUnit];
      const int4* in = reinterpret_cast<const int4*>(from + place(a, e));
#pragma unroll
      for (int k = 0; k < sizeof(x) / 16; ++k) reinterpret_cast<int4*>(x)[k] = in[k];
#pragma unroll
      for (int k = 0; k < kUnit; ++k) y[k] = convert<To, From, kCast>(x[k]);
      int4* out = reinterpret_cast<int4*>(to + place(b, e));
#pragma unroll
      for (int k = 0; k < sizeof(y) / 16; ++k) out[k] = reinterpret_cast<int4*>(y)[k];
    }
    return;
  }
  for (int64_t e = begin + threadIdx.x; e < end; e += kThreads) {
    to[place(b, e)] = convert<To, From, kCast>(from[place(a, e)]);
  }
}

template <class To, class From, bool kCast>
__global__ void __launch_bounds__(kThreads)
    digest_tiles(const Region* table, unsigned long long* out, int64_t n) {
  __shared__ Region r;
  __shared__ int64_t region;
  if (threadIdx.x == 0) {
    region = region_of(table, n, blockIdx.x);
    r = table[region];
  }
  __syncthreads();
  const From* from = reinterpret_cast<const From*>(r.base);
  const int64_t begin = (blockIdx.x - r.first_tile) * kTile;
  const int64_t end = min(begin + kTile, r.numel());
  unsigned long long sum = begin == 0 && threadIdx.x == 0 ? digest_constant(r.numel()) : 0;
  for (int64_t e = begin + threadIdx.x; e < end; e += kThreads) {
    const To bits = convert<To, From, kCast>(from[place(r, e)]);
    sum += digest_term<To>(bits, static_cast<uint64_t>(e));
  }
  for (int lane = 16; lane > 0; lane /= 2) sum += __shfl_down_sync(0xffffffffu, sum, lane);
  if (threadIdx.x % 32 == 0) atomicAdd(&out[region], sum);
}

template <class T, class F, bool kC>
struct Pair {  // a supported pair of element types, as a tag
  using To = T;
  using From = F;
  static constexpr bool kCast = kC;
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

int finish(cudaError_t error, int64_t* bad) {
  *bad = error;
  return error == cudaSuccess ? kOk : kDevice;
}

}  // namespace
}  // namespace megarl

using namespace megarl;

// The number of usable devices; 0 without a driver.
MEGARL_API int megarl_cuda_devices() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

// src, dst: tables in device memory, checked by the caller; one of them null: the flat buffer.
MEGARL_API int megarl_cuda_move(const Region* src, const Region* dst, int64_t n, int64_t tiles,
                                void* flat, int src_dtype, int dst_dtype, void* stream,
                                int64_t* bad) {
  return dispatch(src_dtype, dst_dtype, [&](auto pair) {
    using P = decltype(pair);
    move_tiles<typename P::To, typename P::From, P::kCast>
        <<<static_cast<unsigned>(tiles), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
            src, dst, static_cast<char*>(flat), n);
    return finish(cudaGetLastError(), bad);
  });
}

// out: n zeroed uint64 in device memory.
MEGARL_API int megarl_cuda_digest(const Region* table, int64_t n, int64_t tiles, int src_dtype,
                                  int as_dtype, void* out, void* stream, int64_t* bad) {
  return dispatch(src_dtype, as_dtype, [&](auto pair) {
    using P = decltype(pair);
    digest_tiles<typename P::To, typename P::From, P::kCast>
        <<<static_cast<unsigned>(tiles), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
            table, static_cast<unsigned long long*>(out), n);
    return finish(cudaGetLastError(), bad);
  });
}
