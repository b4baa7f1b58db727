#pragma once

#include <atomic>
#include <cmath>

namespace progdistill {

/// Looks at the values of a call while its coefficients are formed anyway: angles within [0, pi/2] that fall, finite
/// coefficients. If something is out of order the call says so, and Python's checks (ops/checks.py, whose bounds these
/// are) find the words.
class Watch {
 public:
  bool all_well() const { return all_well_.load(std::memory_order_relaxed); }

  void require(bool condition) {
    if (!condition) all_well_.store(false, std::memory_order_relaxed);
  }

  void angle(double phi) { require(phi >= 0.0 && phi <= 1.57079632679489661923); }

  void finite(const double* coefficients, int count) {
    for (int i = 0; i < count; ++i) require(std::fabs(coefficients[i]) <= 1e8);
  }

  void finite(double coefficient) { finite(&coefficient, 1); }

 private:
  std::atomic<bool> all_well_{true};
};

}  // namespace progdistill
