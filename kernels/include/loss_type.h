#pragma once

#include "arithmetic.h"

namespace progdistill {

/// What a loss makes of a weighted residual r (ops/residual.py): mean r^2, mean |r| or mean (sqrt(r^2 + c^2) - c), with
/// derivatives 2 r, sign(r) (0 at 0) and r / sqrt(r^2 + c^2). Numbered as in ops/names.py.
enum class LossType : int { l2, l1, pseudo_huber };
constexpr int kLossTypes = 3;

/// Adds a residual's loss to `sum` and returns its derivative, but for the factor 2 of l2. NaN stays NaN.
template <LossType Type, class T>
PD_LOCAL T add_loss(T r, T huber_c, T& sum) {
  if constexpr (Type == LossType::l2) {
    sum = fused(r, r, sum);
    return r;
  } else if constexpr (Type == LossType::l1) {
    sum += r < 0 ? -r : r;
    return r > 0 ? T(1) : r < 0 ? T(-1) : r;
  } else {
    const T square = r * r, root = square_root(square + huber_c * huber_c);
    sum += square / (root + huber_c);  // root - c without its cancellation
    return r / root;
  }
}

}  // namespace progdistill
