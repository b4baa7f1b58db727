#pragma once

#include "elements.cuh"

namespace progdistill::cuda {

/// The sum over the lanes of a warp, the same bits in each.
__device__ inline double warp_sum(double value) {
  for (int mask = 16; mask > 0; mask /= 2) value += __shfl_xor_sync(0xFFFFFFFFu, value, mask);
  return value;
}

/// The sum over a block of kThreads, for its first thread, always in the same order. No thread may call it twice.
__device__ inline double block_sum(double value) {
  __shared__ double of_warp[kThreads / 32];
  value = warp_sum(value);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
  __syncthreads();
  double sum = 0.0;
  if (threadIdx.x == 0) {
    for (double part : of_warp) sum += part;
  }
  return sum;
}

}  // namespace progdistill::cuda
