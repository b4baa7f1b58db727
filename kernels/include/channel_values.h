#pragma once

#include <cstdint>

namespace progdistill::cuda {

/// Numbers of the channels, float32 or bfloat16: one row for all samples, or one for each.
struct ChannelValues {
  const void* data;
  bool is_bfloat16;
  int64_t stride;  // from one sample's row to the next; 0: the same
};

}  // namespace progdistill::cuda
