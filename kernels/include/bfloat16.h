#pragma once

#include <cstdint>
#include <cstring>

#include "host_device.h"

namespace progdistill {

PD_LOCAL float float_of_bfloat16(uint16_t value) {
  const uint32_t bits = static_cast<uint32_t>(value) << 16;
  float result;
  memcpy(&result, &bits, sizeof(result));
  return result;
}

/// To nearest, ties to even; NaN stays NaN.
PD_LOCAL uint16_t rounded_to_bfloat16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t chosen = value == value ? rounded : 0x7FC0u;
  return static_cast<uint16_t>(chosen);
}

}  // namespace progdistill
