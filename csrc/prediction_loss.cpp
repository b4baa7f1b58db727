#include "weighted_loss.h"

namespace progdistill {

bool prediction_loss(
    const Layout& layout, void* loss, const std::optional<Sink>& grad, const Source& pred, const Source& z,
    const Source& target, const double* phi, Prediction target_type, const Objective& objective, int threads) {
  const Quantity quantity = domain(objective.prediction);
  Watch watch;
  for_state_type(layout, [&](auto zero) {
    using T = decltype(zero);
    weighted_loss<T>(
        layout, loss, grad, pred, phi, objective, threads, watch,
        [&](int64_t b) {
          const Form form = prediction_form(target_type, quantity, phi[b]);
          watch.angle(phi[b]);
          watch.finite(form.z);
          watch.finite(form.output, kMaxHeads);
          return form;
        },
        [&](Sum<T>& sum, const Form& by, const Block&, Scratch<T>&) {
          sum.add(z, 0, by.z);
          sum.add_heads(target, by.output);
        });
  });
  return watch.all_well();
}

}  // namespace progdistill
