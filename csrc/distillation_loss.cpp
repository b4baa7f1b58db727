#include "target_sum.h"
#include "weighted_loss.h"

namespace progdistill {

bool distillation_loss(
    const Layout& layout, void* loss, const std::optional<Sink>& grad, const Source& pred, const Source& z,
    const Teacher& teacher, const Objective& objective, int threads) {
  const Quantity quantity = domain(objective.prediction);
  Watch watch;
  for_state_type(layout, [&](auto zero) {
    using T = decltype(zero);
    weighted_loss<T>(
        layout, loss, grad, pred, teacher.phis, objective, threads, watch,
        [&](int64_t b) { return target_coefficients(layout, teacher, quantity, b, watch); },
        [&](Sum<T>& sum, const TargetCoefficients& by, const Block& block, Scratch<T>& scratch) {
          add_target(sum, by, layout, z, teacher, block, scratch);
        });
  });
  return watch.all_well();
}

}  // namespace progdistill
