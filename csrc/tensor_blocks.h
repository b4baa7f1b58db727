#pragma once

#include <algorithm>
#include <vector>

#include "block.h"
#include "thread_pool.h"

namespace progdistill {

/// Tensors of these sizes, cut into blocks of at most kBlock elements that are numbered through.
class TensorBlocks {
 public:
  explicit TensorBlocks(const std::vector<int64_t>& counts) : counts_(counts), first_block_{0} {
    for (const int64_t count : counts) first_block_.push_back(first_block_.back() + (count + kBlock - 1) / kBlock);
  }

  int64_t size() const { return first_block_.back(); }

  /// Calls body(tensor, first element, elements, block) for all blocks.
  template <class Body>
  void for_each(int threads, Body&& body) const {
    parallel_for(size(), kBlocksPerPiece, threads, [&](int64_t begin, int64_t end) {
      // The last tensor that begins here or before: those without elements begin where their successor does.
      size_t tensor = std::upper_bound(first_block_.begin(), first_block_.end(), begin) - first_block_.begin() - 1;
      for (int64_t block = begin; block < end; ++block) {
        while (block >= first_block_[tensor + 1]) ++tensor;
        const int64_t first = (block - first_block_[tensor]) * kBlock;
        body(tensor, first, std::min(kBlock, counts_[tensor] - first), block);
      }
    });
  }

 private:
  const std::vector<int64_t> counts_;
  std::vector<int64_t> first_block_;  // of each tensor, then the number of all
};

}  // namespace progdistill
