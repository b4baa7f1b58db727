#pragma once

#include <vector>

#include "block.h"
#include "ops.h"
#include "watch.h"

namespace progdistill {

/// Both losses: mean over a sample of r^2 (or the like, see loss_type.h), r = scale * (own prediction - target), and its
/// gradient for pred in the same pass. `target_of(sample)` gives a sample's coefficients, `add(sum, coefficients, block, scratch)` its target.
template <class T, class TargetOf, class AddTarget>
void weighted_loss(
    const Layout& layout, void* loss, const std::optional<Sink>& grad, const Source& pred, const double* phi,
    const Objective& objective, int threads, Watch& watch, TargetOf&& target_of, AddTarget&& add) {
  struct Coefficients {
    LossScale own;
    decltype(target_of(0)) target;
  };
  // One partial sum a block, added up in the order of blocks: the result does not depend on who computed what.
  const Blocks blocks(layout, false);
  std::vector<double> partial(layout.samples * blocks.per_sample);
  const double factor = objective.type == LossType::l2 ? 2.0 : 1.0;
  const double mean_slope = factor * objective.grad_scale / static_cast<double>(layout.elements);
  for_each_block<T>(
      layout, blocks, threads,
      [&](int64_t b) {
        const LossScale own =
            loss_scale(objective.prediction, objective.weighting, phi[b], objective.min_snr_gamma);
        watch.finite(own.scale);
        return Coefficients{own, target_of(b)};
      },
      [&](const Coefficients& by, const Block& block, Scratch<T>& scratch) {
        Sum<T> target(layout, block, scratch);
        add(target, by.target, block, scratch);
        Residual<T> job{};
        job.terms = target.copy_terms(job.target);
        job.heads = pred.heads;
        job.scale = static_cast<T>(by.own.scale);
        job.type = objective.type;
        job.huber_c = static_cast<T>(objective.huber_c);
        for (int head = 0; head < pred.heads; ++head) {
          const T* own = read(pred, head, layout, block, scratch.heads[head]);
          job.pred[head] = {own, static_cast<T>(by.own.output[head])};
          job.slope[head] = static_cast<T>(mean_slope * by.own.scale * by.own.output[head]);
          if (grad) job.grad[head] = destination<T>(*grad, head, layout, block, scratch.grads[head]);
        }
        partial[block.index] = typed_loops<T>().residual(job, block.size);
        if (grad) commit<T>(*grad, layout, block, job.grad);
      });
  for (int64_t b = 0; b < layout.samples; ++b) {
    double sum = 0.0;
    for (int64_t k = 0; k < blocks.per_sample; ++k) sum += partial[b * blocks.per_sample + k];
    static_cast<T*>(loss)[b] = static_cast<T>(sum / static_cast<double>(layout.elements));
  }
}

}  // namespace progdistill
