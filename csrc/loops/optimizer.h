#pragma once

// The loops of the optimizer. Included by loops.cpp alone, once for each instruction set.

#include <cstdint>

#include "adamw.h"
#include "loops.h"

namespace progdistill {
namespace {

template <bool Averages, class T>
void adamw_ema_fixed(const ParameterBlock<T>& given, const AdamWFactors<T>& factors, int64_t n) {
  const ParameterBlock<T> block = given;
  const AdamWFactors<T> by = factors;
  PD_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) {
    T exp_avg = block.exp_avg[i], exp_avg_sq = block.exp_avg_sq[i];
    const T param = adamw(block.param[i], block.grad[i], exp_avg, exp_avg_sq, by);
    block.param[i] = param;
    block.exp_avg[i] = exp_avg;
    block.exp_avg_sq[i] = exp_avg_sq;
    if constexpr (Averages) block.ema[i] = averaged(block.ema[i], param, by.ema);
  }
}

template <class T>
void adamw_ema(const ParameterBlock<T>& block, const AdamWFactors<T>& by, int64_t n) {
  (block.ema != nullptr ? adamw_ema_fixed<true, T> : adamw_ema_fixed<false, T>)(block, by, n);
}

/// In as many partial sums for every instruction set, so the same bits.
template <class T>
double sum_of_squares(const T* src, int64_t n) {
  constexpr int kSums = 32;
  double sums[kSums] = {};
  for (int64_t start = 0; start < n; start += kSums) {
    const int count = n - start < kSums ? static_cast<int>(n - start) : kSums;
    PD_INDEPENDENT
    for (int i = 0; i < count; ++i) {
      const double value = src[start + i];
      sums[i] = fused(value, value, sums[i]);
    }
  }
  for (int half = kSums / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
  }
  return sums[0];
}

}  // namespace
}  // namespace progdistill
