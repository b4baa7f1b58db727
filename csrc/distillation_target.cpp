#include "ops.h"
#include "target_sum.h"

namespace progdistill {

bool distillation_target(
    const Layout& layout, const Sink& target, const Source& z, const Teacher& teacher, Prediction target_type,
    int threads) {
  struct Coefficients {
    TargetCoefficients head[kMaxHeads];
  };
  // A two-headed target is x beside eps.
  const bool both = target_type == Prediction::sample_epsilon;
  const Quantity quantities[] = {both ? Quantity::x : domain(target_type), Quantity::eps};
  Watch watch;
  for_state_type(layout, [&](auto zero) {
    using T = decltype(zero);
    for_each_block<T>(
        layout, Blocks(layout, false), threads,
        [&](int64_t b) {
          Coefficients result;
          for (int head = 0; head < target.heads; ++head) {
            result.head[head] = target_coefficients(layout, teacher, quantities[head], b, watch);
          }
          return result;
        },
        [&](const Coefficients& by, const Block& block, Scratch<T>& scratch) {
          T* to[kMaxHeads];
          for (int head = 0; head < target.heads; ++head) {
            to[head] = destination<T>(target, head, layout, block, scratch.heads[head]);
            Sum<T> sum(layout, block, scratch);
            add_target(sum, by.head[head], layout, z, teacher, block, scratch);
            sum.write(to[head]);
          }
          commit(target, layout, block, to);
        });
  });
  return watch.all_well();
}

}  // namespace progdistill
