// Pack, unpack, copy and digest of strided regions on the GPU: one launch for a whole table.
// A block takes one tile of one region (see tile.h), found by the table's list of tiles.
#include <cuda_runtime.h>

#include "tile.h"

namespace megarl {
namespace {

using Sum = unsigned long long;

// One of src and dst may be null: the flat buffer stands for it; without kWrite there is no dst.
template <class P, bool kWrite, bool kDigest>
__global__ void __launch_bounds__(kThreads, 4)
    move_tiles(const Region* src, const Region* dst, const int64_t* region_of_tile, void* flat,
               Sum* digests) {
  __shared__ Region a, b;
  const int64_t region = region_of_tile[blockIdx.x];
  if (threadIdx.x == 0) a = src != nullptr ? src[region] : line_of(dst[region], flat);
  if (kWrite && threadIdx.x == 32) b = dst != nullptr ? dst[region] : line_of(src[region], flat);
  __syncthreads();
  Sum sum = tile_share<P, kWrite, kDigest>(a, b, blockIdx.x, static_cast<int>(threadIdx.x));
  if constexpr (kDigest) {
    __shared__ Sum of_warp[kThreads / 32];
    for (int lane = 16; lane > 0; lane /= 2) sum += __shfl_down_sync(0xffffffffu, sum, lane);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (int warp = 1; warp < kThreads / 32; ++warp) sum += of_warp[warp];
    atomicAdd(&digests[region], sum);
  }
}

template <class P, bool kWrite, bool kDigest>
cudaError_t launch(const Region* src, const Region* dst, const int64_t* region_of_tile, int64_t n,
                   int64_t tiles, void* flat, void* digests, int device, void* stream) {
  // The thread that calls may have no device yet, or another.
  if (cudaError_t error = cudaSetDevice(device)) return error;
  cudaStream_t on = static_cast<cudaStream_t>(stream);
  if (kDigest) {
    if (cudaError_t error = cudaMemsetAsync(digests, 0, n * sizeof(Sum), on)) return error;
  }
  move_tiles<P, kWrite, kDigest><<<static_cast<unsigned>(tiles), kThreads, 0, on>>>(
      src, dst, region_of_tile, flat, static_cast<Sum*>(digests));
  return cudaGetLastError();
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

// All but `bad` lies in device memory and was checked by the caller. src, dst: tables, one of them
// null for the flat buffer. digests: n uint64 as the destination's type, or null.
MEGARL_API int megarl_cuda_move(const Region* src, const Region* dst,
                                const int64_t* region_of_tile, int64_t n, int64_t tiles,
                                void* flat, int src_dtype, int dst_dtype, void* digests,
                                int device, void* stream, int64_t* bad) {
  return dispatch(src_dtype, dst_dtype, [&](auto pair) {
    using P = decltype(pair);
    const auto go = digests == nullptr ? launch<P, true, false> : launch<P, true, true>;
    return finish(go(src, dst, region_of_tile, n, tiles, flat, digests, device, stream), bad);
  });
}

// out: n uint64 in device memory.
MEGARL_API int megarl_cuda_digest(const Region* table, const int64_t* region_of_tile, int64_t n,
                                  int64_t tiles, int src_dtype, int as_dtype, void* out,
                                  int device, void* stream, int64_t* bad) {
  return dispatch(src_dtype, as_dtype, [&](auto pair) {
    using P = decltype(pair);
    const auto go = launch<P, false, true>;
    return finish(
        go(table, nullptr, region_of_tile, n, tiles, nullptr, out, device, stream), bad);
  });
}
