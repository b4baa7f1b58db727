#include "block.h"
#include "ops.h"

namespace progdistill {

void linear_combination(
    const Layout& layout, const Sink& result, const std::vector<CombinedHead>& terms, int threads) {
  for_state_type(layout, [&](auto zero) {
    using T = decltype(zero);
    for_each_block<T>(
        layout, threads, [](int64_t) { return 0; },
        [&](int, const Block& block, Scratch<T>& scratch) {
          Sum<T> sum(layout, block, scratch);
          for (const CombinedHead& term : terms) sum.add(term.source, term.head, term.factor);
          sum.write(destination<T>(result, 0, layout, block, nullptr));  // a state: there is no other place
        });
  });
}

}  // namespace progdistill
