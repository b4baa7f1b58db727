#pragma once

namespace progdistill {

/// What a loss makes of a weighted residual r (ops/residual.py): mean r^2, mean |r| or mean (sqrt(r^2 + c^2) - c), with
/// derivatives 2 r, sign(r) (0 at 0) and r / sqrt(r^2 + c^2). Numbered as in ops/names.py.
enum class LossType : int { l2, l1, pseudo_huber };
constexpr int kLossTypes = 3;

}  // namespace progdistill
