#include "draws.h"

#include "launch.cuh"
#include "launchers.h"

namespace progdistill::cuda {
namespace {

constexpr int kThreads = 128;

__device__ inline int64_t place() { return static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; }

int64_t blocks(int64_t count) { return (count + kThreads - 1) / kThreads; }

template <class Number>
__global__ void __launch_bounds__(kThreads) draw_kernel(
    Number* __restrict__ out, const int64_t* __restrict__ seeds, int64_t samples, const int64_t* __restrict__ step,
    uint32_t stream, int64_t high) {
  const int64_t i = place();
  if (i < samples) write_number(out + i, drawn_bits(seeds[i], *step, stream), high);
}

__global__ void __launch_bounds__(kThreads) random_bits_kernel(
    int64_t* __restrict__ out, const int64_t* __restrict__ numbers, int64_t count, uint64_t key,
    uint64_t counter_high) {
  const int64_t i = place();
  if (i >= count) return;
  out[i] = static_cast<int64_t>(philox_bits(key, static_cast<uint64_t>(numbers[i]), counter_high));
}

}  // namespace

int uniform(
    double* out, const int64_t* seeds, int64_t samples, const int64_t* step, uint32_t stream, const Queue& queue) {
  return launch(draw_kernel<double>, blocks(samples), kThreads, queue, out, seeds, samples, step, stream, 0);
}

int integers(
    int64_t* out, const int64_t* seeds, int64_t samples, const int64_t* step, uint32_t stream, int64_t high,
    const Queue& queue) {
  return launch(draw_kernel<int64_t>, blocks(samples), kThreads, queue, out, seeds, samples, step, stream, high);
}

int random_bits(
    int64_t* out, const int64_t* numbers, int64_t count, int64_t key, int64_t counter_high, const Queue& queue) {
  return launch(random_bits_kernel, blocks(count), kThreads, queue, out, numbers, count, key, counter_high);
}

}  // namespace progdistill::cuda
