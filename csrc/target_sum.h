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

/// The target of a teacher that clips, into `target`: as many steps in one pass as there is scratch to read outputs to. An
/// excess is exactly zero where nothing is clipped, so there the unclipped formula stands to the last digit, however small
/// the angle.
template <class T>
void sum_clipped(
    T* target, const TargetCoefficients& by, const Layout& layout, const Source& z, const Teacher& teacher,
    const Block& block, Scratch<T>& scratch) {
  const int steps = static_cast<int>(teacher.outs.size()), heads = teacher.outs[0].heads;
  ClippedTarget<T> job{};
  job.z = read<T>(z, 0, layout, block, nullptr);
  job.z_factor = static_cast<T>(by.target.z);
  job.bound = static_cast<T>(*teacher.clip);
  job.heads = heads;
  job.state = scratch.state;
  job.target = scratch.sum;
  job.excess = scratch.excess;
  for (int begin = 0; begin < steps; begin += job.steps) {
    job.steps = std::min(steps - begin, kTerms / heads);
    job.first = begin == 0;
    job.last = begin + job.steps == steps;
    for (int k = 0; k < job.steps; ++k) {
      const int j = begin + k;
      const StepForm& step = by.steps[j];
      ClippedStep<T>& to = job.step[k];
      for (int head = 0; head < heads; ++head) {
        to.out[head] = read(teacher.outs[j], head, layout, block, scratch.terms[heads * k + head]);
        to.output[head] = static_cast<T>(by.target.output[j][head]);
        to.x_of_output[head] = static_cast<T>(step.x.output[head]);
      }
      to.x_of_z = static_cast<T>(step.x.z);
      to.z_of_clipped = static_cast<T>(step.z_of_clipped);
      to.x_of_clipped = static_cast<T>(step.x_of_clipped);
      to.excess = static_cast<T>(by.target.excess[j]);
    }
    typed_loops<T>().clipped_target(target, job, block.size);
  }
}

/// Adds a teacher's target to an empty sum.
template <class T>
void add_target(
    Sum<T>& sum, const TargetCoefficients& by, const Layout& layout, const Source& z, const Teacher& teacher,
    const Block& block, Scratch<T>& scratch) {
  if (teacher.clip) {
    sum_clipped(scratch.x, by, layout, z, teacher, block, scratch);
    sum.add(scratch.x, 1.0);
    return;
  }
  sum.add(z, 0, by.target.z);
  for (size_t j = 0; j < teacher.outs.size(); ++j) sum.add_heads(teacher.outs[j], by.target.output[j]);
}

}  // namespace progdistill
