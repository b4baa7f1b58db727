#pragma once

#include "elements.cuh"
#include "philox.h"

namespace progdistill::cuda {

/// The four normals of one counter under an image's seed.
__device__ inline void seeded_normals(
    float (&normals)[4], int64_t seed, int64_t step, uint32_t stream, uint32_t counter) {
  const auto key = static_cast<uint64_t>(seed), when = static_cast<uint64_t>(step);
  uint32_t c0 = counter, c1 = stream, c2 = static_cast<uint32_t>(when), c3 = static_cast<uint32_t>(when >> 32);
  philox_4x32_10(c0, c1, c2, c3, static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32));
  normal_pair(c0, c1, &normals[0], &normals[1]);
  normal_pair(c2, c3, &normals[2], &normals[3]);
}

}  // namespace progdistill::cuda
