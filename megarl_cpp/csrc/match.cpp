// The planner's decisions, element for element those of megarl/layout/match.py, on int64 tables.
#include <algorithm>
#include <map>
#include <numeric>
#include <vector>

#include "table.h"

namespace megarl {
namespace {

struct Box {  // four dims; missing ones are [0, 1)
  int64_t lo[kDims], hi[kDims];

  int64_t numel() const {
    int64_t n = 1;
    for (int d = 0; d < kDims; ++d) n *= hi[d] - lo[d];
    return n;
  }
  bool intersect(const Box& other, Box* out) const {
    for (int d = 0; d < kDims; ++d) {
      out->lo[d] = std::max(lo[d], other.lo[d]);
      out->hi[d] = std::min(hi[d], other.hi[d]);
      if (out->lo[d] >= out->hi[d]) return false;
    }
    return true;
  }
  bool operator<(const Box& other) const {
    if (!std::equal(lo, lo + kDims, other.lo)) {
      return std::lexicographical_compare(lo, lo + kDims, other.lo, other.lo + kDims);
    }
    return std::lexicographical_compare(hi, hi + kDims, other.hi, other.hi + kDims);
  }
};

struct PieceRow {  // a row of the piece table
  int64_t tensor;
  Box box;
};
struct RankRow {  // a rank holds the pieces [begin, end)
  int64_t rank, node, begin, end;
};
struct MatchRow {  // a decision
  int64_t src, dst, src_piece, dst_piece;
  Box box;
};

struct Held {
  Box box;
  std::vector<int64_t> ranks, pieces;  // ascending ranks
  std::map<int64_t, std::vector<int64_t>> by_node;

  int64_t find(int64_t rank) const {  // index in ranks, or -1
    auto it = std::lower_bound(ranks.begin(), ranks.end(), rank);
    return it != ranks.end() && *it == rank ? it - ranks.begin() : -1;
  }
};

struct Need {
  int64_t index;  // position of the piece in its placement
  int64_t dst, node, dst_piece;
  const Held* held;
  Box box;
  int64_t src;
};

void subtract(const Box& box, const Box& other, std::vector<Box>* out) {
  Box overlap, rest = box;
  if (!box.intersect(other, &overlap)) return out->push_back(box);
  for (int d = 0; d < kDims; ++d) {
    if (rest.lo[d] < overlap.lo[d]) {
      out->push_back(rest);
      out->back().hi[d] = overlap.lo[d];
    }
    if (overlap.hi[d] < rest.hi[d]) {
      out->push_back(rest);
      out->back().lo[d] = overlap.hi[d];
    }
    rest.lo[d] = overlap.lo[d];
    rest.hi[d] = overlap.hi[d];
  }
}

class Matcher {
 public:
  Matcher(const PieceRow* pieces, const RankRow* sources, int64_t n_sources, int64_t n_tensors)
      : pieces_(pieces), index_(n_tensors) {
    std::vector<std::map<Box, Held>> boxes(n_tensors);
    for (int64_t s = 0; s < n_sources; ++s) {
      const RankRow& row = sources[s];
      for (int64_t p = row.begin; p < row.end; ++p) {
        Held& held = boxes[pieces[p].tensor][pieces[p].box];
        if (!held.ranks.empty() && held.ranks.back() == row.rank) continue;
        held.box = pieces[p].box;
        held.ranks.push_back(row.rank);
        held.pieces.push_back(p);
        held.by_node[row.node].push_back(row.rank);
      }
    }
    for (int64_t t = 0; t < n_tensors; ++t) {
      for (auto& entry : boxes[t]) index_[t].push_back(std::move(entry.second));
    }
  }

  bool cover(const RankRow& dst) {
    for (int64_t p = dst.begin; p < dst.end; ++p) {
      if (!cover_piece(dst, p)) return false;
    }
    return true;
  }

  void choose_senders() {
    std::vector<int64_t> order(needs_.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
      return needs_[a].box.numel() > needs_[b].box.numel();
    });
    std::map<int64_t, int64_t> load;
    for (int64_t at : order) {
      Need& need = needs_[at];
      need.src = need.dst;
      if (need.held->find(need.dst) >= 0) continue;
      auto near = need.held->by_node.find(need.node);
      const auto& ranks = near != need.held->by_node.end() ? near->second : need.held->ranks;
      need.src = ranks[0];
      for (int64_t rank : ranks) {
        if (load[rank] < load[need.src]) need.src = rank;
      }
      load[need.src] += need.box.numel();
    }
  }

  std::vector<MatchRow> rows(bool all, int64_t keep) {
    std::stable_sort(needs_.begin(), needs_.end(), [](const Need& a, const Need& b) {
      return a.index != b.index ? a.index < b.index : a.dst < b.dst;
    });
    std::vector<MatchRow> out;
    for (const Need& n : needs_) {
      if (!all && n.src != keep && n.dst != keep) continue;
      out.push_back({n.src, n.dst, n.held->pieces[n.held->find(n.src)], n.dst_piece, n.box});
    }
    return out;
  }

 private:
  bool cover_piece(const RankRow& dst, int64_t p) {
    const Box& want = pieces_[p].box;
    struct Near {
      int distance;
      const Held* held;
      Box overlap;
    };
    std::vector<Near> near;
    for (const Held& held : index_[pieces_[p].tensor]) {
      Box overlap;
      if (!held.box.intersect(want, &overlap)) continue;
      const int distance = held.find(dst.rank) >= 0 ? 0 : held.by_node.count(dst.node) ? 1 : 2;
      near.push_back({distance, &held, overlap});
    }
    std::stable_sort(near.begin(), near.end(),
                     [](const Near& a, const Near& b) { return a.distance < b.distance; });
    int64_t missing = want.numel();
    std::vector<Box> parts, next;
    for (size_t k = 0; k < near.size(); ++k) {
      parts.assign(1, near[k].overlap);
      for (size_t j = 0; j < k && !parts.empty(); ++j) {
        next.clear();
        for (const Box& part : parts) subtract(part, near[j].overlap, &next);
        parts.swap(next);
      }
      for (const Box& part : parts) {
        needs_.push_back({p - dst.begin, dst.rank, dst.node, p, near[k].held, part, 0});
        missing -= part.numel();
      }
    }
    return missing == 0;
  }

  const PieceRow* pieces_;
  std::vector<std::vector<Held>> index_;
  std::vector<Need> needs_;
};

}  // namespace
}  // namespace megarl

using namespace megarl;

// sources and destinations in ascending order of rank. On kOk, *out owns *count rows until freed.
MEGARL_API int megarl_match(const PieceRow* pieces, int64_t n_pieces, int64_t n_tensors,
                            const RankRow* sources, int64_t n_sources, const RankRow* destinations,
                            int64_t n_destinations, int all, int64_t keep, void** out,
                            int64_t* count) {
  try {
    for (int64_t i = 0; i < n_pieces; ++i) {
      if (pieces[i].tensor < 0 || pieces[i].tensor >= n_tensors) return kOutOfBounds;
    }
    for (int64_t i = 0; i < n_sources; ++i) {
      if (sources[i].begin < 0 || sources[i].end > n_pieces) return kOutOfBounds;
    }
    for (int64_t i = 0; i < n_destinations; ++i) {
      if (destinations[i].begin < 0 || destinations[i].end > n_pieces) return kOutOfBounds;
    }
    Matcher matcher(pieces, sources, n_sources, n_tensors);
    for (int64_t i = 0; i < n_destinations; ++i) {
      if (!matcher.cover(destinations[i])) return kUncovered;
    }
    matcher.choose_senders();
    auto* rows = new std::vector<MatchRow>(matcher.rows(all != 0, keep));
    *out = rows;
    *count = static_cast<int64_t>(rows->size());
    return kOk;
  } catch (...) {  // only allocation can fail here
    return kNoMemory;
  }
}

MEGARL_API const void* megarl_match_rows(void* handle) {
  return static_cast<std::vector<MatchRow>*>(handle)->data();
}

MEGARL_API void megarl_match_free(void* handle) {
  delete static_cast<std::vector<MatchRow>*>(handle);
}
