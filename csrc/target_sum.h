#pragma once

#include "block.h"
#include "ops.h"
#include "watch.h"

namespace progdistill {

/// What a block of a teacher's target needs of its sample.
struct TargetCoefficients {
  TargetForm target;
  StepForm steps[kMaxSteps];  // only with clipping, which alone needs the states between the steps
};

inline TargetCoefficients target_coefficients(
    const Layout& layout, const Teacher& teacher, Quantity quantity, int64_t sample, Watch& watch) {
  const int steps = static_cast<int>(teacher.outs.size());
  double phis[kMaxSteps + 1]{};
  for (int j = 0; j <= steps; ++j) {
    phis[j] = teacher.phis[j * layout.samples + sample];
    watch.angle(phis[j]);
    watch.require(j == 0 || phis[j] < phis[j - 1]);
  }
  TargetCoefficients result;
  result.target = target_form(teacher.prediction, quantity, phis, steps);
  watch.finite(result.target.z);
  watch.finite(result.target.output[0], steps * kMaxHeads);
  if (teacher.clip) watch.finite(result.target.excess, steps);
  if (teacher.clip) {
    for (int j = 0; j < steps; ++j) result.steps[j] = step_form(teacher.prediction, phis[j], phis[j + 1]);
  }
  return result;
}

/// sum_j excess_j * (x_j - clip(x_j)) along the teacher's states, into scratch.excess. A summand is exactly zero where
/// nothing is clipped, so there the unclipped formula stands to the last digit, however small the angle.
template <class T>
void sum_excesses(
    const TargetCoefficients& by, const Layout& layout, const Source& z, const Teacher& teacher, const Block& block,
    Scratch<T>& scratch) {
  const auto& loops = typed_loops<T>();
  const T* state = read<T>(z, 0, layout, block, nullptr);
  for (size_t j = 0; j < teacher.outs.size(); ++j) {
    const StepForm& step = by.steps[j];
    Sum<T> x(layout, block, scratch);
    x.add(state, step.x.z);
    x.add_heads(teacher.outs[j], step.x.output);
    x.write(scratch.x);
    loops.clip(
        scratch.x, scratch.state, state, static_cast<T>(*teacher.clip), static_cast<T>(step.z_of_clipped),
        static_cast<T>(step.x_of_clipped), block.size);
    state = scratch.state;
    const Term<T> terms[] = {{scratch.x, static_cast<T>(by.target.excess[j])}, {scratch.excess, T(1)}};
    loops.combine(scratch.excess, terms, j == 0 ? 1 : 2, block.size);
  }
}

/// Adds a teacher's target to an empty sum. The excesses come last: where one step is clipped, x - (x - clip(x)) is
/// clip(x) to the last digit then.
template <class T>
void add_target(
    Sum<T>& sum, const TargetCoefficients& by, const Layout& layout, const Source& z, const Teacher& teacher,
    const Block& block, Scratch<T>& scratch) {
  if (teacher.clip) sum_excesses(by, layout, z, teacher, block, scratch);
  sum.add(z, 0, by.target.z);
  for (size_t j = 0; j < teacher.outs.size(); ++j) sum.add_heads(teacher.outs[j], by.target.output[j]);
  if (teacher.clip) sum.add(scratch.excess, 1.0);
}

}  // namespace progdistill
