#pragma once

// AdamW (Loshchilov & Hutter 2019, algorithm 2) on a clipped gradient, and the bias-corrected average of the weights:
// twin of ops/adamw_ema.py.

#include <cstdint>

#include "arithmetic.h"
#include "images.h"

namespace progdistill {

/// A number, or where a kernel finds it when it runs.
struct Number {
  double value;
  const void* pointer;  // null: the value stands
  DType dtype;          // of what lies there: float32, float64 or int64
};

PD_LOCAL double value_of(const Number& number) {
  if (number.pointer == nullptr) return number.value;
  if (number.dtype == DType::float32) return *static_cast<const float*>(number.pointer);
  if (number.dtype == DType::float64) return *static_cast<const double*>(number.pointer);
  return static_cast<double>(*static_cast<const int64_t*>(number.pointer));
}

struct AdamW {
  Number lr;
  Number step;  // of this update, from 1
  double beta1, beta2, eps, weight_decay;
  bool clips;  // the next two count
  Number grad_norm;
  double max_norm;
  bool averages;  // the next one counts
  Number ema_decay;
};

/// base^exponent by squaring: the same bits on every processor, and as near to the power as 1 - base^exponent needs.
PD_LOCAL double power(double base, int64_t exponent) {
  double result = 1.0;
  for (uint64_t left = static_cast<uint64_t>(exponent); left != 0; left >>= 1) {
    if (left & 1) result *= base;
    base *= base;
  }
  return result;
}

/// a + weight (b - a), counted from the nearer end: weight 1 gives b to the last bit.
template <class T>
struct Lerp {
  T factor;
  int from_b;  // a bool would keep GCC from vectorising
};

template <class T>
PD_LOCAL Lerp<T> lerp_by(double weight) {
  const bool from_b = weight >= 0.5;
  return {static_cast<T>(from_b ? weight - 1.0 : weight), from_b};
}

/// What all elements of an update share, formed in double and rounded once.
template <class T>
struct AdamWFactors {
  T clip;
  T decay;
  Lerp<T> exp_avg, exp_avg_sq;
  T root_scale;  // of sqrt(exp_avg_sq)
  T eps;
  T step_size;
  Lerp<T> ema;
};

template <class T>
PD_LOCAL AdamWFactors<T> adamw_factors(const AdamW& given) {
  const double lr = value_of(given.lr);
  const int64_t step = static_cast<int64_t>(value_of(given.step));
  AdamWFactors<T> by;
  by.clip = 1;
  if (given.clips) {
    // As clip_grad_norm_: a norm that is not a number makes every gradient so, an infinite one leaves zeros.
    const double clip = given.max_norm / (value_of(given.grad_norm) + 1e-6);
    by.clip = static_cast<T>(clip > 1.0 ? 1.0 : clip);
  }
  by.decay = static_cast<T>(lr * given.weight_decay);
  by.exp_avg = lerp_by<T>(1.0 - given.beta1);
  by.exp_avg_sq = lerp_by<T>(1.0 - given.beta2);
  by.step_size = static_cast<T>(lr / (1.0 - power(given.beta1, step)));
  by.root_scale = static_cast<T>(1.0 / square_root(1.0 - power(given.beta2, step)));
  by.eps = static_cast<T>(given.eps);
  by.ema = {};
  if (given.averages) {
    const double decay = value_of(given.ema_decay);
    by.ema = lerp_by<T>((1.0 - decay) / (1.0 - power(decay, step)));
  }
  return by;
}

/// The average with the new weight taken in.
template <class T>
PD_LOCAL T averaged(T ema, T param, const Lerp<T>& by) {
  return fused(by.factor, param - ema, by.from_b != 0 ? param : ema);
}

/// One element of AdamW; returns the new weight.
template <class T>
PD_LOCAL T adamw(T param, T grad, T& exp_avg, T& exp_avg_sq, const AdamWFactors<T>& by) {
  const T g = by.clip * grad;
  exp_avg = fused(by.exp_avg.factor, g - exp_avg, by.exp_avg.from_b != 0 ? g : exp_avg);
  // From the difference to g^2: rounded factors of both ends that do not add up to 1 would shift what this tends to.
  exp_avg_sq = fused(by.exp_avg_sq.factor, fused(g, g, -exp_avg_sq), by.exp_avg_sq.from_b != 0 ? g * g : exp_avg_sq);
  const T denominator = fused(square_root(exp_avg_sq), by.root_scale, by.eps);
  return fused(-by.step_size, exp_avg / denominator, fused(-by.decay, param, param));
}

}  // namespace progdistill
