// The GPU kernels' code, run on the host: block by block, thread by thread, as regions.cu calls it.
#include "tile.h"

using namespace megarl;

extern "C" int tiles_on_host(const Region* src, const Region* dst, const int64_t* region_of_tile,
                             int64_t tiles, void* flat, int src_dtype, int dst_dtype, int write,
                             uint64_t* digests) {
  return dispatch(src_dtype, dst_dtype, [&](auto pair) {
    using P = decltype(pair);
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t region = region_of_tile[tile];
      const Region a = src != nullptr ? src[region] : line_of(dst[region], flat);
      const Region b = dst != nullptr ? dst[region] : line_of(src[region], flat);
      for (int thread = 0; thread < kThreads; ++thread) {
        if (!write) {
          digests[region] += tile_share<P, false, true>(a, b, tile, thread);
        } else if (digests != nullptr) {
          digests[region] += tile_share<P, true, true>(a, b, tile, thread);
        } else {
          tile_share<P, true, false>(a, b, tile, thread);
        }
      }
    }
    return 0;
  });
}
