#pragma once

#include <cstdint>

#include "images.h"

namespace progdistill {

/// A dense tensor; which dimension runs fastest is of no account here.
struct Gradient {
  const void* data;
  DType dtype;  // float32, float64 or bfloat16
  int64_t count;
};

/// A parameter and what belongs to it: as many elements each, all in the same dense order.
struct Parameter {
  void* param;
  Gradient grad;     // in the parameter's dtype, or bfloat16 beside float32
  void* exp_avg;     // these three as the parameter
  void* exp_avg_sq;
  void* ema;         // null: no average is kept
  void* twin;        // bfloat16; null: none
};

}  // namespace progdistill
