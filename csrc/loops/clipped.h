#pragma once

// Steps by way of a clipped x, each element in one pass. Included by loops.cpp alone, once for each instruction set.

#include <cstdint>

#include "arithmetic.h"
#include "loops.h"

namespace progdistill {
namespace {

template <int N, class T>
void clipped_step_fixed(T* next, const Term<T>* given, const T* state, const ClippedMove<T>& move, int64_t n) {
  Term<T> terms[N];
  for (int k = 0; k < N; ++k) terms[k] = given[k];
  const ClippedMove<T> by = move;
  PD_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) {
    next[i] = fused(by.x, clipped(sum_of_terms<N>(terms, i), by.bound), by.z * state[i]);
  }
}

template <class T>
void clipped_step(T* next, const Term<T>* terms, int count, const T* state, const ClippedMove<T>& by, int64_t n) {
  switch (count) {
    case 1:
      return clipped_step_fixed<1>(next, terms, state, by, n);
    case 2:
      return clipped_step_fixed<2>(next, terms, state, by, n);
    default:
      return clipped_step_fixed<3>(next, terms, state, by, n);
  }
}

template <int N, class T>
void unclipped_fixed(T* dst, const Term<T>* given, const T* grad, T bound, T factor, int64_t n) {
  Term<T> terms[N];
  for (int k = 0; k < N; ++k) terms[k] = given[k];
  PD_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) {
    const T x = sum_of_terms<N>(terms, i), product = factor * grad[i];
    dst[i] = (x < 0 ? -x : x) <= bound ? product : T(0);
  }
}

template <class T>
void unclipped(T* dst, const Term<T>* terms, int count, const T* grad, T bound, T factor, int64_t n) {
  switch (count) {
    case 1:
      return unclipped_fixed<1>(dst, terms, grad, bound, factor, n);
    case 2:
      return unclipped_fixed<2>(dst, terms, grad, bound, factor, n);
    default:
      return unclipped_fixed<3>(dst, terms, grad, bound, factor, n);
  }
}

/// What a teacher's steps have come to at an element.
template <class T>
struct Followed {
  T state, target, excess;
};

template <int Heads, int Steps, class T>
PD_INLINE Followed<T> follow(Followed<T> at, const ClippedTarget<T>& by, int64_t i) {
  for (int j = 0; j < Steps; ++j) {
    const ClippedStep<T>& step = by.step[j];
    T x = step.x_of_z * at.state;
    for (int head = 0; head < Heads; ++head) {
      x = fused(step.x_of_output[head], step.out[head][i], x);
      at.target = fused(step.output[head], step.out[head][i], at.target);
    }
    const T inside = clipped(x, by.bound);
    at.excess += step.excess * (x - inside);
    at.state = fused(step.x_of_clipped, inside, step.z_of_clipped * at.state);
  }
  return at;
}

/// All steps at once. The excesses come last: where one step is clipped, x - (x - clip(x)) is clip(x) to the last digit
/// then.
template <int Heads, int Steps, class T>
void clipped_target_whole(T* dst, const ClippedTarget<T>& given, int64_t n) {
  const ClippedTarget<T> by = given;
  PD_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) {
    const Followed<T> end = follow<Heads, Steps, T>({by.z[i], by.z_factor * by.z[i], T(0)}, by, i);
    dst[i] = end.target + end.excess;
  }
}

/// A run of the steps.
template <int Heads, int Steps, class T>
void clipped_target_run(T* dst, const ClippedTarget<T>& given, int64_t n) {
  const ClippedTarget<T> by = given;
  PD_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) {
    const Followed<T> start = by.first ? Followed<T>{by.z[i], by.z_factor * by.z[i], T(0)}
                                       : Followed<T>{by.state[i], by.target[i], by.excess[i]};
    const Followed<T> end = follow<Heads, Steps, T>(start, by, i);
    by.state[i] = end.state;
    by.target[i] = end.target;
    by.excess[i] = end.excess;
    dst[i] = end.target + end.excess;
  }
}

template <int Heads, int Steps, class T>
void clipped_target_fixed(T* dst, const ClippedTarget<T>& by, int64_t n) {
  const bool whole = by.first && by.last;
  (whole ? clipped_target_whole<Heads, Steps, T> : clipped_target_run<Heads, Steps, T>)(dst, by, n);
}

template <class T>
void clipped_target(T* dst, const ClippedTarget<T>& by, int64_t n) {
  if (by.heads == 2) return (by.steps == 1 ? clipped_target_fixed<2, 1, T> : clipped_target_fixed<2, 2, T>)(dst, by, n);
  switch (by.steps) {
    case 1:
      return clipped_target_fixed<1, 1>(dst, by, n);
    case 2:
      return clipped_target_fixed<1, 2>(dst, by, n);
    case 3:
      return clipped_target_fixed<1, 3>(dst, by, n);
    default:
      return clipped_target_fixed<1, 4>(dst, by, n);
  }
}

}  // namespace
}  // namespace progdistill
