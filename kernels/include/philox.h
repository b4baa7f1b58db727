#pragma once

// Philox4x32-10 (Salmon, Moraes, Dror, Shaw, SC 2011) and the normals made of its words: twins of ops/philox.py and
// ops/normal.py.
//
// The Gaussian transform is Box-Muller in double with series of our own instead of a library's log, sin and cos, and
// every product that meets a sum is an explicit fma: so all compilers, instruction sets and devices give the same bits
// (division and square root are exact to the last bit by IEEE 754). It is accurate to some 1e-15, which one rounding
// to float hides but for about one normal in a million.

#include <cmath>
#include <cstdint>
#include <cstring>

#include "angles.h"

namespace progdistill {

/// Ten rounds. The words are in/out parameters one by one, which lets compilers vectorise over counters.
PD_LOCAL void philox_4x32_10(
    uint32_t& c0, uint32_t& c1, uint32_t& c2, uint32_t& c3, uint32_t key_low, uint32_t key_high) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = static_cast<uint64_t>(c0) * 0xD2511F53u;
    const uint64_t product1 = static_cast<uint64_t>(c2) * 0xCD9E8D57u;
    c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ key_low;
    c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ key_high;
    c1 = static_cast<uint32_t>(product1);
    c3 = static_cast<uint32_t>(product0);
    key_low += 0x9E3779B9u;
    key_high += 0xBB67AE85u;
  }
}

PD_LOCAL uint64_t bits_of(double value) {
  uint64_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}

PD_LOCAL double double_of(uint64_t bits) {
  double value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

/// An integer below 2^52 as a double: 2^52 + value has it in its last bits. (Before AVX-512 there is no conversion of
/// unsigned integers that vectorises.)
PD_LOCAL double exact_double(uint64_t value) {
  return double_of(0x4330000000000000u | value) - 4503599627370496.0;
}

/// log((word + 1/2) / 2^32), by word + 1/2 = 2^k m with m in [sqrt(1/2), sqrt(2)), log(m) = 2 atanh((m - 1) / (m + 1)).
PD_LOCAL double log_of_uniform(uint32_t word) {
  constexpr uint64_t kOne = uint64_t{1} << 52;                 // of an exponent
  constexpr uint64_t kSqrtHalf = 0x3FE6A09E667F3BCDu;          // the bits of sqrt(1/2)
  const uint64_t bits = bits_of(exact_double(word) + 0.5);
  const uint64_t exponent = (bits - kSqrtHalf + kOne) >> 52;   // k + 1, from 0
  const double m = double_of(bits - (exponent << 52) + kOne);
  const double s = (m - 1.0) / (m + 1.0), s2 = s * s;          // |s| < 0.172: ten terms leave 2e-17
  double series = 1.0 / 19.0;
  series = ::fma(series, s2, 1.0 / 17.0);
  series = ::fma(series, s2, 1.0 / 15.0);
  series = ::fma(series, s2, 1.0 / 13.0);
  series = ::fma(series, s2, 1.0 / 11.0);
  series = ::fma(series, s2, 1.0 / 9.0);
  series = ::fma(series, s2, 1.0 / 7.0);
  series = ::fma(series, s2, 1.0 / 5.0);
  series = ::fma(series, s2, 1.0 / 3.0);
  const double twice = s + s;
  const double log_m = ::fma(twice * s2, series, twice);
  return ::fma(exact_double(exponent) - 33.0, 0.693147180559945309417, log_m);
}

/// cos and sin of 2 pi (word + 1/2) / 2^32: the quadrant and the angle within it, in [-pi/4, pi/4], are exact integers.
PD_LOCAL void circle_of_uniform(uint32_t word, double* cos, double* sin) {
  const uint32_t quadrant = (word + 0x20000000u) >> 30;
  const int32_t within = static_cast<int32_t>(word - (quadrant << 30));
  const double y = (within + 0.5) * (1.57079632679489661923 / 1073741824.0);
  const double s = sine_series<Fused>(y), c = cosine_series<Fused>(y);
  const bool odd = quadrant & 1;
  const double along = odd ? s : c, across = odd ? c : s;
  *cos = (quadrant + 1) & 2 ? -along : along;
  *sin = quadrant & 2 ? -across : across;
}

/// Two standard normals from two words (Box-Muller).
PD_LOCAL void normal_pair(uint32_t radius_word, uint32_t angle_word, float* first, float* second) {
  const double radius = ::sqrt(-2.0 * log_of_uniform(radius_word));
  double cos, sin;
  circle_of_uniform(angle_word, &cos, &sin);
  *first = static_cast<float>(radius * cos);
  *second = static_cast<float>(radius * sin);
}

}  // namespace progdistill
