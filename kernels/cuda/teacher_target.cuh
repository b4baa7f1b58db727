#pragma once

// The target of a teacher's steps for the elements of a thread: twin of csrc/target_sum.h.

#include "elements.cuh"
#include "teacher.h"

namespace progdistill::cuda {

/// A teacher's steps as a kernel takes them.
struct TeacherPlanes {
  Plane z;
  Plane outs[kMaxSteps][kMaxHeads];
  const double* phis;
  int64_t samples;
  int steps;
  Prediction prediction;
  bool clips;
  double bound;
};

inline TeacherPlanes planes(const Source& z, const Teacher& teacher, const Layout& layout) {
  TeacherPlanes result{};
  result.z = plane(z, 0, layout);
  result.phis = teacher.phis;
  result.samples = layout.samples;
  result.steps = static_cast<int>(teacher.outs.size());
  result.prediction = teacher.prediction;
  result.clips = teacher.clip.has_value();
  result.bound = teacher.clip.value_or(0.0);
  for (int j = 0; j < result.steps; ++j) {
    for (int head = 0; head < teacher.outs[j].heads; ++head) result.outs[j][head] = plane(teacher.outs[j], head, layout);
  }
  return result;
}

inline bool takes_vectors(const Layout& layout, const Teacher& teacher) {
  for (const Source& out : teacher.outs) {
    if (!takes_vectors(layout, out)) return false;
  }
  return true;
}

template <class T>
struct TargetCoefficients {
  T z, output[kMaxSteps][kMaxHeads], excess[kMaxSteps];
  struct Step {
    T x_of_z, x_of_output[kMaxHeads], z_of_clipped, x_of_clipped;
  } step[kMaxSteps];  // only with clipping, which alone needs the states between the steps
};

/// Fills a block's coefficients, formed in double; the first lanes of its warps share the work. A barrier must follow.
/// Not inlined, so that its registers are not those of the loops.
template <class T>
__device__ __noinline__ void form_target(
    TargetCoefficients<T>& by, const TeacherPlanes& teacher, Quantity quantity, int64_t sample) {
  if (threadIdx.x % 32 != 0) return;
  const int warp = threadIdx.x / 32, warps = kThreads / 32;
  const auto angle = [&](int j) { return teacher.phis[j * teacher.samples + sample]; };
  if (warp == 0) {
    double phis[kMaxSteps + 1];
    for (int j = 0; j <= teacher.steps; ++j) phis[j] = angle(j);
    const TargetForm form = target_form(teacher.prediction, quantity, phis, teacher.steps);
    by.z = static_cast<T>(form.z);
    for (int j = 0; j < teacher.steps; ++j) {
      by.excess[j] = static_cast<T>(form.excess[j]);
      for (int head = 0; head < kMaxHeads; ++head) by.output[j][head] = static_cast<T>(form.output[j][head]);
    }
  } else if (teacher.clips) {
    for (int j = warp - 1; j < teacher.steps; j += warps - 1) {
      const StepForm form = step_form(teacher.prediction, angle(j), angle(j + 1));
      by.step[j] = {
          static_cast<T>(form.x.z),
          {static_cast<T>(form.x.output[0]), static_cast<T>(form.x.output[1])},
          static_cast<T>(form.z_of_clipped),
          static_cast<T>(form.x_of_clipped)};
    }
  }
}

/// sum_j excess_j * (x_j - clip(x_j)) along the teacher's states. A summand is exactly zero where nothing is clipped.
template <class T, int Width>
__device__ Unit<T, Width> sum_excesses(
    const TargetCoefficients<T>& by, const TeacherPlanes& teacher, int64_t sample, uint32_t element) {
  const T bound = static_cast<T>(teacher.bound);
  Unit<T, Width> excess{}, state, x;
  load(state, teacher.z, sample, element);
  for (int j = 0; j < teacher.steps; ++j) {
    const auto& step = by.step[j];
    x.each([&](int i) { return step.x_of_z == 0 ? T(0) : step.x_of_z * state.value[i]; });
    for (int head = 0; head < heads(teacher.prediction); ++head) {
      add(x, step.x_of_output[head], teacher.outs[j][head], sample, element);
    }
    excess.each([&](int i) { return excess.value[i] + by.excess[j] * (x.value[i] - clipped(x.value[i], bound)); });
    state.each([&](int i) {
      return fused(step.x_of_clipped, clipped(x.value[i], bound), step.z_of_clipped * state.value[i]);
    });
  }
  return excess;
}

/// The excesses come last: where one step is clipped, x - (x - clip(x)) is clip(x) to the last digit then.
template <bool Clips, class T, int Width>
__device__ Unit<T, Width> sum_target(
    const TargetCoefficients<T>& by, const TeacherPlanes& teacher, int64_t sample, uint32_t element) {
  Unit<T, Width> target{};
  add(target, by.z, teacher.z, sample, element);
  for (int j = 0; j < teacher.steps; ++j) {
    for (int head = 0; head < heads(teacher.prediction); ++head) {
      add(target, by.output[j][head], teacher.outs[j][head], sample, element);
    }
  }
  if constexpr (Clips) {
    const auto excess = sum_excesses<T, Width>(by, teacher, sample, element);
    target.each([&](int i) { return target.value[i] + excess.value[i]; });
  }
  return target;
}

}  // namespace progdistill::cuda
