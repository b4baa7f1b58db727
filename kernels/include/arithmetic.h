#pragma once

// What all element loops compute with. Compilers are told not to contract products and sums (CMakeLists.txt), so these
// are all the fused operations there are, and the CPU and CUDA kernels give the same bits.

#include "host_device.h"

#if defined(__CUDACC__)
#include <cmath>
#endif

namespace progdistill {

#if defined(__CUDACC__)
PD_LOCAL float fused(float a, float b, float c) { return ::fmaf(a, b, c); }
PD_LOCAL double fused(double a, double b, double c) { return ::fma(a, b, c); }
PD_LOCAL float square_root(float x) { return ::sqrtf(x); }
PD_LOCAL double square_root(double x) { return ::sqrt(x); }
#else
#if defined(__x86_64__) && !defined(__FMA__)
// Without the instruction, fma() is a slow library function. For float the product is exact in double, which leaves a
// second rounding that almost never shows.
PD_LOCAL float fused(float a, float b, float c) { return static_cast<float>(static_cast<double>(a) * b + c); }
PD_LOCAL double fused(double a, double b, double c) { return a * b + c; }
#else
PD_LOCAL float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
PD_LOCAL double fused(double a, double b, double c) { return __builtin_fma(a, b, c); }
#endif
PD_LOCAL float square_root(float x) { return __builtin_sqrtf(x); }
PD_LOCAL double square_root(double x) { return __builtin_sqrt(x); }
#endif

/// NaN passes both comparisons, as in torch.clamp.
template <class T>
PD_LOCAL T clipped(T x, T bound) {
  const T above = x < -bound ? -bound : x;
  return above > bound ? bound : above;
}

}  // namespace progdistill
