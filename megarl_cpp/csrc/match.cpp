// The planner's decisions, element for element those of megarl/layout/match.py, on int64 tables.
#include <unordered_map>
#include <vector>

#include "deal.h"
#include "spread.h"

namespace megarl {
namespace {

struct MatchRow {  // a decision
  int64_t src, dst, src_piece, dst_piece, relay;
  Box box;
};

struct TotalRow {  // elements of one rank: its own, received and sent in and between nodes
  int64_t rank, local, near_received, far_received, near_sent, far_sent;
};

struct Move {
  bool relay;
  int64_t dst, src;
  Box box;

  bool operator<(const Move& other) const {
    if (relay != other.relay) return other.relay;
    if (dst != other.dst) return dst < other.dst;
    if (src != other.src) return src < other.src;
    return box < other.box;
  }
};

using Nodes = std::unordered_map<int64_t, int64_t>;  // rank -> node
using Group = std::vector<int64_t>;

struct Tables {
  const PieceRow* pieces;
  int64_t n_pieces, n_tensors;
  const RankRow* sources;
  int64_t n_sources;
  const RankRow* destinations;
  int64_t n_destinations;
  int64_t grain;

  bool in_bounds() const {
    for (int64_t i = 0; i < n_pieces; ++i) {
      if (pieces[i].tensor < 0 || pieces[i].tensor >= n_tensors) return false;
    }
    return in_bounds(sources, n_sources) && in_bounds(destinations, n_destinations);
  }
  bool in_bounds(const RankRow* rows, int64_t count) const {
    for (int64_t i = 0; i < count; ++i) {
      if (rows[i].begin < 0 || rows[i].end > n_pieces) return false;
    }
    return true;
  }
};

class Matcher {
 public:
  explicit Matcher(const Tables& t)
      : held_(t.pieces, t.sources, t.n_sources, t.n_tensors),
        needed_(t.pieces, t.destinations, t.n_destinations, t.n_tensors),
        n_tensors_(t.n_tensors),
        grain_(t.grain) {
    for (int64_t i = 0; i < t.n_sources; ++i) nodes_[t.sources[i].rank] = t.sources[i].node;
    for (int64_t i = 0; i < t.n_destinations; ++i) {
      nodes_[t.destinations[i].rank] = t.destinations[i].node;
    }
  }

  // Calls each(row) for the decisions of all tensors, or of those that one rank holds or needs;
  // false where a destination has no source. `pieces`: whether rows name their pieces.
  template <typename Each>
  bool run(bool all, int64_t rank, Each each) const {
    for (int64_t tensor = 0; tensor < n_tensors_; ++tensor) {
      if (needed_.has(tensor) && !held_.has(tensor)) return false;
    }
    for (int64_t tensor = 0; tensor < n_tensors_; ++tensor) {
      if (!needed_.has(tensor)) continue;
      if (!all && !held_.has(tensor, rank) && !needed_.has(tensor, rank)) continue;
      if (!match_tensor(tensor, each)) return false;
    }
    return true;
  }

  int64_t node_of(int64_t rank) const { return nodes_.at(rank); }

 private:
  template <typename Each>
  bool match_tensor(int64_t tensor, Each each) const {
    std::vector<Move> moves;
    const std::vector<Part> held = held_.parts(tensor);
    for (const Part& part : needed_.parts(tensor)) {
      int64_t covered = 0;
      for (const Part& source : held) {
        Box box;
        if (!source.box.intersect(part.box, &box)) continue;
        covered += box.numel();
        serve(box, source.ranks, part.ranks, tensor, &moves);
      }
      if (covered != part.box.numel()) return false;
    }
    std::sort(moves.begin(), moves.end());
    std::vector<int64_t> from, wanted;
    for (const Move& m : moves) {
      needed_.pieces_around(tensor, m.dst, m.box, &wanted);
      (m.relay ? needed_ : held_).pieces_around(tensor, m.src, m.box, &from);
      each(MatchRow{m.src, m.dst, from[0], wanted[0], m.relay, m.box});
      for (size_t k = 1; k < wanted.size(); ++k) {
        const bool here = m.src == m.dst;
        each(MatchRow{m.dst, m.dst, here ? from[0] : wanted[0], wanted[k], !here, m.box});
      }
    }
    return true;
  }

  void serve(const Box& box, const Group& holders, const Group& needers, int64_t turn,
             std::vector<Move>* moves) const {
    std::map<int64_t, Group> near, lacking;
    for (int64_t rank : holders) near[nodes_.at(rank)].push_back(rank);
    for (int64_t rank : needers) {
      if (std::binary_search(holders.begin(), holders.end(), rank)) {
        moves->push_back({false, rank, rank, box});
      } else {
        lacking[nodes_.at(rank)].push_back(rank);
      }
    }
    std::vector<const Group*> far;
    std::vector<int64_t> sizes;
    for (const auto& [node, takers] : lacking) {
      auto givers = near.find(node);
      if (givers == near.end()) {
        far.push_back(&takers);
        sizes.push_back(static_cast<int64_t>(takers.size()));
        continue;
      }
      const Group ones(takers.size(), 1);
      deal(box, ones, static_cast<int64_t>(givers->second.size()), turn, grain_,
           [&](int64_t group, int64_t, int64_t giver, const Box& share) {
             moves->push_back({false, takers[group], givers->second[giver], share});
           });
    }
    deal(box, sizes, static_cast<int64_t>(holders.size()), turn, grain_,
         [&](int64_t group, int64_t member, int64_t giver, const Box& share) {
           const int64_t entry = (*far[group])[member];
           moves->push_back({false, entry, holders[giver], share});
           for (int64_t rank : *far[group]) {
             if (rank != entry) moves->push_back({true, rank, entry, share});
           }
         });
  }

  Side held_, needed_;
  Nodes nodes_;
  int64_t n_tensors_, grain_;
};

void add(const Matcher& matcher, const MatchRow& row, std::map<int64_t, TotalRow>* totals) {
  TotalRow& to = (*totals)[row.dst];
  const int64_t n = row.box.numel();
  if (row.src == row.dst) {
    to.local += n;
    return;
  }
  const bool near = matcher.node_of(row.src) == matcher.node_of(row.dst);
  TotalRow& from = (*totals)[row.src];
  (near ? to.near_received : to.far_received) += n;
  (near ? from.near_sent : from.far_sent) += n;
}

template <typename Row>
void hand_over(std::vector<Row>* rows, void** out, int64_t* count) {
  *count = static_cast<int64_t>(rows->size() * sizeof(Row) / sizeof(int64_t));
  auto* cells = new std::vector<int64_t>(*count);
  std::copy_n(reinterpret_cast<const int64_t*>(rows->data()), *count, cells->begin());
  *out = cells;
}

}  // namespace
}  // namespace megarl

using namespace megarl;

// Tensors are numbered in plan order; sources and destinations ascend in rank. On kOk, *out owns
// *count int64 cells until freed: a MatchRow for each decision that concerns `keep` (or all), or,
// with totals, a TotalRow for each rank that moves anything.
MEGARL_API int megarl_match(const PieceRow* pieces, int64_t n_pieces, int64_t n_tensors,
                            const RankRow* sources, int64_t n_sources, const RankRow* destinations,
                            int64_t n_destinations, int64_t grain, int all, int64_t keep,
                            int totals, void** out, int64_t* count) {
  try {
    const Tables tables{pieces,       n_pieces,       n_tensors, sources, n_sources,
                        destinations, n_destinations, grain};
    if (!tables.in_bounds()) return kOutOfBounds;
    const Matcher matcher(tables);
    std::vector<MatchRow> rows;
    std::map<int64_t, TotalRow> sums;
    const bool covered = matcher.run(all != 0, keep, [&](const MatchRow& row) {
      if (totals) {
        add(matcher, row, &sums);
      } else if (all || row.src == keep || row.dst == keep) {
        rows.push_back(row);
      }
    });
    if (!covered) return kUncovered;
    if (!totals) {
      hand_over(&rows, out, count);
      return kOk;
    }
    std::vector<TotalRow> table;
    for (auto& [rank, row] : sums) {
      row.rank = rank;
      table.push_back(row);
    }
    hand_over(&table, out, count);
    return kOk;
  } catch (...) {  // only allocation can fail here
    return kNoMemory;
  }
}

MEGARL_API const void* megarl_match_cells(void* handle) {
  return static_cast<std::vector<int64_t>*>(handle)->data();
}

MEGARL_API void megarl_match_free(void* handle) {
  delete static_cast<std::vector<int64_t>*>(handle);
}
