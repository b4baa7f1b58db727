#pragma once

// Sine and cosine of angles between a clean image and pure noise, 0 to pi/2, and of their differences. Series of our own
// instead of a library's: the CPU and CUDA kernels form the same coefficients to the last bit, and a thread of a GPU
// needs few registers for them.

#include <cmath>

#include "host_device.h"

namespace progdistill {

/// a b + c rounded once; on a processor without the instruction a slow library function.
struct Fused {
  PD_HOST_DEVICE static double multiply_add(double a, double b, double c) { return ::fma(a, b, c); }
};

/// Rounded twice, the same bits everywhere as long as compilers do not contract it.
struct Separate {
  PD_HOST_DEVICE static double multiply_add(double a, double b, double c) { return a * b + c; }
};

/// |y| <= pi/4; what follows y^15 / 15! is below 7e-17 of the sum.
template <class By>
PD_LOCAL double sine_series(double y) {
  const double y2 = y * y;
  double s = -1.0 / 1307674368000.0;
  s = By::multiply_add(s, y2, 1.0 / 6227020800.0);
  s = By::multiply_add(s, y2, -1.0 / 39916800.0);
  s = By::multiply_add(s, y2, 1.0 / 362880.0);
  s = By::multiply_add(s, y2, -1.0 / 5040.0);
  s = By::multiply_add(s, y2, 1.0 / 120.0);
  s = By::multiply_add(s, y2, -1.0 / 6.0);
  return By::multiply_add(y * y2, s, y);
}

/// |y| <= pi/4; what follows y^16 / 16! is below 3e-18.
template <class By>
PD_LOCAL double cosine_series(double y) {
  const double y2 = y * y;
  double c = 1.0 / 20922789888000.0;
  c = By::multiply_add(c, y2, -1.0 / 87178291200.0);
  c = By::multiply_add(c, y2, 1.0 / 479001600.0);
  c = By::multiply_add(c, y2, -1.0 / 3628800.0);
  c = By::multiply_add(c, y2, 1.0 / 40320.0);
  c = By::multiply_add(c, y2, -1.0 / 720.0);
  c = By::multiply_add(c, y2, 1.0 / 24.0);
  c = By::multiply_add(c, y2, -0.5);
  return By::multiply_add(c, y2, 1.0);
}

PD_LOCAL bool is_steep(double phi) { return phi > 0.78539816339744830962; }

/// pi/2 - phi to the last bit: the second number is what the first lacks of pi/2.
PD_LOCAL double complement(double phi) { return (1.57079632679489661923 - phi) + 6.123233995736766e-17; }

/// Good to 2 units in the last place for phi in [-pi/4, 3 pi/4]; beyond they mean nothing.
PD_LOCAL double sine(double phi) {
  return is_steep(phi) ? cosine_series<Separate>(complement(phi)) : sine_series<Separate>(phi);
}
PD_LOCAL double cosine(double phi) {
  return is_steep(phi) ? sine_series<Separate>(complement(phi)) : cosine_series<Separate>(phi);
}

struct SineCosine {
  double sin, cos;
};

/// The same two numbers, in the time of one: their series run side by side.
PD_LOCAL SineCosine sine_and_cosine(double phi) {
  const bool steep = is_steep(phi);
  const double y = steep ? complement(phi) : phi;
  const double sin = sine_series<Separate>(y), cos = cosine_series<Separate>(y);
  return {steep ? cos : sin, steep ? sin : cos};
}

}  // namespace progdistill
