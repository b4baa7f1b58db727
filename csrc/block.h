#pragma once

// Operations run block by block: a run of at most kBlock elements of one sample, one head at a time. What a tensor's
// dtype and order are matters only while a block is read or written; between lie plain arrays of float or double.

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "images.h"
#include "loops/loops.h"
#include "thread_pool.h"

namespace progdistill {

constexpr int64_t kBlock = 1024;          // so that the arrays of a block stay in the first-level cache
constexpr int64_t kDirectBlock = 4096;    // of calls that need no such arrays, whose blocks cost their overhead alone
constexpr int64_t kBlocksPerPiece = 32;   // of kBlock, work for a thread: smaller tensors stay on the caller

struct Block {
  int64_t sample;
  int64_t first;  // element within the sample, heads not counted
  int64_t size;
  int64_t index;  // among all blocks of the call
};

/// Elements of a block: where pixels may hold two heads a whole number of pixels, of vectors if it can be.
inline int64_t block_length(const Layout& layout) {
  if (!layout.channels_last || layout.channels > kBlock) return kBlock;  // no two heads then (Arguments::layout)
  const int64_t unit = 16 * layout.channels <= kBlock ? 16 * layout.channels : layout.channels;
  return kBlock / unit * unit;
}

/// How the samples of a call are cut.
struct Blocks {
  int64_t length;
  int64_t per_sample;

  /// For bodies that use no scratch but for tensors that need some, if none do (lies_direct).
  Blocks(const Layout& layout, bool direct)
      : length(direct ? kDirectBlock : block_length(layout)), per_sample((layout.elements + length - 1) / length) {}
};

/// Whether a tensor is read or written where it lies: its elements side by side in the order of states, and of their
/// dtype. Takes a Source or a Sink, or an optional one.
template <class Image>
bool lies_direct(const Layout& layout, const Image& image) {
  return image.dtype == layout.dtype && (image.heads == 1 || !layout.channels_last);
}
template <class Image>
bool lies_direct(const Layout& layout, const std::optional<Image>& image) {
  return !image || lies_direct(layout, *image);
}

/// Arrays of one thread's current block.
template <class T>
struct Scratch {
  alignas(64) T terms[kTerms][kBlock];
  alignas(64) T sum[kBlock];
  alignas(64) T x[kBlock];
  alignas(64) T state[kBlock];
  alignas(64) T excess[kBlock];
  alignas(64) T heads[2][kBlock];
  alignas(64) T grads[2][kBlock];
};

/// Of every sample's angle, before the images are read: one loop, of which the compiler makes vector code.
inline std::vector<SineCosine> sines_and_cosines(const double* phi, int64_t samples) {
  std::vector<SineCosine> by(samples);
  loops().sine_and_cosine(by.data(), phi, samples);
  return by;
}

/// Calls body(coefficients(sample), block, scratch) for all blocks, the coefficients once for each run of a sample.
template <class T, class Coefficients, class Body>
void for_each_block(
    const Layout& layout, const Blocks& blocks, int threads, Coefficients&& coefficients, Body&& body) {
  const int64_t length = blocks.length, per_sample = blocks.per_sample;
  // Many tiny samples make tiny blocks; a piece is a number of elements then.
  const int64_t usual = std::min(layout.elements, length);
  const int64_t grain = usual > 0 ? kBlocksPerPiece * kBlock / usual : 1;
  parallel_for(layout.samples * per_sample, grain, threads, [&](int64_t begin, int64_t end) {
    Scratch<T> scratch;
    for (int64_t index = begin; index < end;) {
      const int64_t sample = index / per_sample;
      const auto current = coefficients(sample);
      const int64_t stop = std::min(end, (sample + 1) * per_sample);
      for (; index < stop; ++index) {
        const int64_t first = (index - sample * per_sample) * length;
        body(current, Block{sample, first, std::min(length, layout.elements - first), index}, scratch);
      }
    }
  });
}

/// One head of a tensor in the order of states: where it lies if it is dense there as T, else a copy in `buffer`.
template <class T>
const T* read(const Source& source, int head, const Layout& layout, const Block& block, T* buffer);

/// Where to write one head: in the tensor itself if it is dense there as T, else in `buffer`. `commit`, given where all
/// heads were written, brings the latter into the tensor.
template <class T>
T* destination(const Sink& sink, int head, const Layout& layout, const Block& block, T* buffer);
template <class T>
void commit(const Sink& sink, const Layout& layout, const Block& block, T* const* written);

/// A growing sum of coefficient * tensor over one block. Tensors are read when added and kTerms at a time are combined,
/// so any number of them needs the same scratch.
template <class T>
class Sum {
 public:
  Sum(const Layout& layout, const Block& block, Scratch<T>& scratch)
      : layout_(layout), block_(block), scratch_(scratch) {}

  /// Structural zeros (a state that cancels, a last step at phi = 0) are not read at all.
  void add(const Source& source, int head, double coefficient) {
    if (coefficient == 0.0) return;
    make_room();
    terms_[count_] = {read(source, head, layout_, block_, scratch_.terms[count_]), static_cast<T>(coefficient)};
    ++count_;
  }

  void add(const T* values, double coefficient) {
    if (coefficient == 0.0) return;
    make_room();
    terms_[count_++] = {values, static_cast<T>(coefficient)};
  }

  void add_heads(const Source& source, const double* coefficients) {
    for (int head = 0; head < source.heads; ++head) add(source, head, coefficients[head]);
  }

  void write(T* dst) const { typed_loops<T>().combine(dst, terms_, count_, block_.size); }

  /// What is left to sum up, for a loop that does it on its way.
  int copy_terms(Term<T>* terms) const {
    std::copy(terms_, terms_ + count_, terms);
    return count_;
  }

 private:
  void make_room() {
    if (count_ < kTerms) return;
    write(scratch_.sum);
    terms_[0] = {scratch_.sum, T(1)};
    count_ = 1;
  }

  const Layout& layout_;
  const Block& block_;
  Scratch<T>& scratch_;
  Term<T> terms_[kTerms];
  int count_ = 0;
};

}  // namespace progdistill
