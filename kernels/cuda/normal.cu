#include "seeded_normals.cuh"

namespace progdistill::cuda {
namespace {

/// A thread makes the four normals of one Philox counter.
template <bool Vectors>
__global__ void __launch_bounds__(kThreads) normal_kernel(
    float* __restrict__ out, const int64_t* __restrict__ seeds, const int64_t* __restrict__ step, uint32_t stream,
    int64_t count, int64_t blocks_per_sample) {
  const int64_t sample = blockIdx.x / blocks_per_sample;
  const int64_t counter = blockIdx.x % blocks_per_sample * kThreads + threadIdx.x;
  if (4 * counter >= count) return;
  float normals[4];
  seeded_normals(normals, seeds[sample], *step, stream, static_cast<uint32_t>(counter));
  float* to = out + sample * count + 4 * counter;
  if constexpr (Vectors) {
    Words words;
    for (int i = 0; i < 4; ++i) put(words, i, normals[i]);
    // The intrinsic: nvcc would split an assignment into four stores, each as soon as its number is known.
    __stwb(reinterpret_cast<uint4*>(to), uint4{words.word[0], words.word[1], words.word[2], words.word[3]});
  } else {
    for (int i = 0; i < 4 && 4 * counter + i < count; ++i) to[i] = normals[i];
  }
}

}  // namespace

int normal(
    float* out, const int64_t* seeds, int64_t samples, int64_t count, const int64_t* step, uint32_t stream,
    const Queue& queue) {
  const bool vectors = count % 4 == 0 && reinterpret_cast<uintptr_t>(out) % 16 == 0;
  const int64_t per_sample = (count + 4 * kThreads - 1) / (4 * kThreads);
  return launch(
      vectors ? normal_kernel<true> : normal_kernel<false>, samples * per_sample, kThreads,
      queue, out, seeds, step, stream, count, per_sample);
}

}  // namespace progdistill::cuda
