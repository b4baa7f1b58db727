#include "block.h"
#include "ops.h"

namespace progdistill {

void linear_combination(
    const Layout& layout, const Sink& result, const std::vector<CombinedHead>& terms, int threads) {
  const bool direct = std::all_of(
      terms.begin(), terms.end(), [&](const CombinedHead& term) { return lies_direct(layout, term.source); });
  for_state_type(layout, [&](auto zero) {
    using T = decltype(zero);
    for_each_block<T>(
        layout, Blocks(layout, direct), threads, [](int64_t) { return 0; },
        [&](int, const Block& block, Scratch<T>& scratch) {
          // Side by side: a sum of sums would read the first ones' results again.
          T* const buffers[] = {scratch.terms[0], scratch.terms[1], scratch.terms[2], scratch.terms[3],
                                scratch.sum,      scratch.x,        scratch.state,    scratch.excess};
          static_assert(sizeof(buffers) / sizeof(buffers[0]) == kMaxTerms);
          Term<T> given[kMaxTerms];
          int count = 0;
          for (const CombinedHead& term : terms) {
            const T* values = read(term.source, term.head, layout, block, buffers[count]);
            given[count++] = {values, static_cast<T>(term.factor)};
          }
          T* to = destination<T>(result, 0, layout, block, nullptr);  // a state: there is no other place
          typed_loops<T>().combine(to, given, count, block.size);
        });
  });
}

}  // namespace progdistill
