#pragma once

#include <cstdint>

#include "images.h"

namespace progdistill {

constexpr int kMaxTerms = 8;  // of a linear combination

/// One head of a tensor, times a factor that is not 0.
struct CombinedHead {
  Source source;
  int head;
  double factor;
};

/// Where no tensor has two heads samples mean nothing: all of them as one, while elements can be counted in 31 bits.
inline Layout without_samples(Layout layout, bool two_heads) {
  if (two_heads || layout.samples == 0 || layout.elements > INT32_MAX / layout.samples) return layout;
  layout.elements *= layout.samples;
  layout.samples = 1;
  return layout;
}

}  // namespace progdistill
