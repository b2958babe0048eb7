// Who has which part of a tensor; equal to megarl/layout/spread.py.
#pragma once
#include <map>
#include <vector>

#include "box.h"

namespace megarl {

struct PieceRow {  // a row of the piece table
  int64_t tensor;
  Box box;
};
struct RankRow {  // a rank holds the pieces [begin, end); ranks with the same placement share them
  int64_t rank, node, begin, end;
};

struct Part {
  Box box;
  std::vector<int64_t> ranks;  // ascending
};

// One side of a plan: all ranks' pieces, by tensor. Work is done once per distinct placement.
class Side {
 public:
  Side(const PieceRow* pieces, const RankRow* rows, int64_t n_rows, int64_t n_tensors)
      : pieces_(pieces), index_(n_tensors) {
    std::map<std::pair<int64_t, int64_t>, int64_t> known;
    for (int64_t r = 0; r < n_rows; ++r) {
      auto span = std::make_pair(rows[r].begin, rows[r].end);
      auto found = known.emplace(span, static_cast<int64_t>(classes_.size()));
      if (found.second) {
        classes_.emplace_back();
        for (int64_t p = span.first; p < span.second; ++p) {
          auto& entries = index_[pieces[p].tensor];
          if (entries.empty() || entries.back().kind != found.first->second) {
            entries.push_back({found.first->second, {}});
          }
          entries.back().pieces.push_back(p);
        }
      }
      classes_[found.first->second].push_back(rows[r].rank);
      class_of_[rows[r].rank] = found.first->second;
    }
  }

  bool has(int64_t tensor) const { return !index_[tensor].empty(); }

  bool has(int64_t tensor, int64_t rank) const {
    auto found = class_of_.find(rank);
    return found != class_of_.end() && entry(tensor, found->second) != nullptr;
  }

  std::vector<Part> parts(int64_t tensor) const {
    std::map<Box, std::vector<int64_t>> boxes;
    for (const Entry& entry : index_[tensor]) {
      const auto& members = classes_[entry.kind];
      for (int64_t p : entry.pieces) {
        auto& ranks = boxes[pieces_[p].box];
        ranks.insert(ranks.end(), members.begin(), members.end());
      }
    }
    std::vector<Part> parts;
    for (auto& [box, ranks] : boxes) {
      tidy(&ranks);
      split(box, ranks, &parts);
    }
    std::sort(parts.begin(), parts.end(),
              [](const Part& a, const Part& b) { return a.box < b.box; });
    return parts;
  }

  // The rank's pieces that contain a box, in the order of its placement.
  void pieces_around(int64_t tensor, int64_t rank, const Box& box,
                     std::vector<int64_t>* out) const {
    out->clear();
    for (int64_t p : entry(tensor, class_of_.at(rank))->pieces) {
      if (pieces_[p].box.contains(box)) out->push_back(p);
    }
  }

 private:
  struct Entry {
    int64_t kind;
    std::vector<int64_t> pieces;
  };

  const Entry* entry(int64_t tensor, int64_t kind) const {
    const auto& entries = index_[tensor];
    auto at = std::lower_bound(entries.begin(), entries.end(), kind,
                               [](const Entry& e, int64_t k) { return e.kind < k; });
    return at != entries.end() && at->kind == kind ? &*at : nullptr;
  }

  static void tidy(std::vector<int64_t>* ranks) {
    std::sort(ranks->begin(), ranks->end());
    ranks->erase(std::unique(ranks->begin(), ranks->end()), ranks->end());
  }

  static void split(const Box& box, const std::vector<int64_t>& ranks, std::vector<Part>* parts) {
    std::vector<Part> cut;
    std::vector<Box> rest(1, box), next;
    for (Part& part : *parts) {
      Box common;
      if (!part.box.intersect(box, &common)) {
        cut.push_back(std::move(part));
        continue;
      }
      next.clear();
      subtract(part.box, common, &next);
      for (const Box& left : next) cut.push_back({left, part.ranks});
      Part both{common, part.ranks};
      both.ranks.insert(both.ranks.end(), ranks.begin(), ranks.end());
      tidy(&both.ranks);
      cut.push_back(std::move(both));
      next.clear();
      for (const Box& left : rest) subtract(left, common, &next);
      rest.swap(next);
    }
    for (const Box& left : rest) cut.push_back({left, ranks});
    parts->swap(cut);
  }

  const PieceRow* pieces_;
  std::vector<std::vector<Entry>> index_;         // tensor -> by class, ascending
  std::vector<std::vector<int64_t>> classes_;     // class -> ranks
  std::map<int64_t, int64_t> class_of_;           // rank -> class
};

}  // namespace megarl
