#pragma once

// One random number a sample, made of the first two words of a Philox block: twin of ops/draws.py.

#include "philox.h"

namespace progdistill {

/// The first two words of a block, the first one in the lower half.
PD_LOCAL uint64_t philox_bits(uint64_t key, uint64_t counter_low, uint64_t counter_high) {
  auto c0 = static_cast<uint32_t>(counter_low), c1 = static_cast<uint32_t>(counter_low >> 32);
  auto c2 = static_cast<uint32_t>(counter_high), c3 = static_cast<uint32_t>(counter_high >> 32);
  philox_4x32_10(c0, c1, c2, c3, static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32));
  return c0 | static_cast<uint64_t>(c1) << 32;
}

/// The bits that a seed draws at a step in a stream.
PD_LOCAL uint64_t drawn_bits(int64_t seed, int64_t step, uint32_t stream) {
  return philox_bits(static_cast<uint64_t>(seed), static_cast<uint64_t>(stream) << 32, static_cast<uint64_t>(step));
}

/// 53 of the bits as a number in [0, 1); `high` is not looked at.
PD_LOCAL void write_number(double* to, uint64_t bits, int64_t) {
  const uint64_t upper = (bits & 0xFFFFFFFFu) >> 5, lower = bits >> 38;
  *to = static_cast<double>(static_cast<int64_t>(upper << 26 | lower)) * (1.0 / 9007199254740992.0);
}

/// An integer below `high`, at most 2^31.
PD_LOCAL void write_number(int64_t* to, uint64_t bits, int64_t high) {
  *to = static_cast<int64_t>((bits & 0xFFFFFFFFu) * static_cast<uint64_t>(high) >> 32);
}

}  // namespace progdistill
