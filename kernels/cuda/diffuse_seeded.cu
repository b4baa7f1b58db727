#include "seeded_normals.cuh"

namespace progdistill::cuda {
namespace {

/// Where the four elements of a Philox counter lie in a sample. Elements are numbered in contiguous order; where
/// channels run fastest, neighbouring threads take the same pixels of neighbouring channels, so that a warp still reads
/// and writes one piece of memory.
struct Order {
  int64_t pixels;
  int channels;  // 0: contiguous

  __device__ int64_t counter(int64_t thread) const {
    if (channels == 0 || pixels % 4 != 0) return thread;
    return thread % channels * (pixels / 4) + thread / channels;
  }
  __device__ int64_t offset(int64_t element) const {
    return channels == 0 ? element : element % pixels * channels + element / pixels;
  }
};

template <class T, bool Vectors>
__global__ void __launch_bounds__(kThreads) diffuse_seeded_kernel(
    T* __restrict__ z, const T* __restrict__ x, const int64_t* __restrict__ seeds, const int64_t* __restrict__ step,
    uint32_t stream, const double* __restrict__ phi, Order order, int64_t elements, int64_t blocks_per_sample) {
  const int64_t sample = blockIdx.x / blocks_per_sample;
  const int64_t thread = blockIdx.x % blocks_per_sample * kThreads + threadIdx.x;
  const int64_t counter = order.counter(thread), first = 4 * counter;
  const bool has = 4 * thread < elements;  // beyond them, `counter` means nothing
  const T* from = x + sample * elements;
  T* to = z + sample * elements;
  T values[4]{};
  if constexpr (Vectors) {
    if (has) load_unit<T, 4>(values, from + first);
  } else {
    for (int i = 0; i < 4 && has && first + i < elements; ++i) values[i] = from[order.offset(first + i)];
  }
  __shared__ T cos, sin;
  if (threadIdx.x == 0) {
    const SineCosine by = sine_and_cosine(phi[sample]);
    cos = static_cast<T>(by.cos);
    sin = static_cast<T>(by.sin);
  }
  __syncthreads();
  if (!has) return;
  float noise[4];
  seeded_normals(noise, seeds[sample], *step, stream, static_cast<uint32_t>(counter));
  for (int i = 0; i < 4; ++i) values[i] = fused(sin, static_cast<T>(noise[i]), cos * values[i]);
  if constexpr (Vectors) {
    store_unit<T, 4>(to + first, values);
  } else {
    for (int i = 0; i < 4 && first + i < elements; ++i) to[order.offset(first + i)] = values[i];
  }
}

template <class T>
cudaError_t launch_for(
    const Layout& layout, T* z, const T* x, const int64_t* seeds, const int64_t* step, uint32_t stream,
    const double* phi, const Queue& queue) {
  const bool aligned = reinterpret_cast<uintptr_t>(z) % 16 == 0 && reinterpret_cast<uintptr_t>(x) % 16 == 0;
  const bool vectors = aligned && layout.elements % 4 == 0 && !layout.channels_last;
  const Order order{layout.channels > 0 ? layout.elements / layout.channels : 0,
                    layout.channels_last ? static_cast<int>(layout.channels) : 0};
  const int64_t per_sample = (layout.elements + 4 * kThreads - 1) / (4 * kThreads);
  return launch(
      vectors ? diffuse_seeded_kernel<T, true> : diffuse_seeded_kernel<T, false>, layout.samples * per_sample, kThreads,
      queue, z, x, seeds, step, stream, phi, order, layout.elements, per_sample);
}

}  // namespace

int diffuse_seeded(
    const Layout& layout, const Sink& z, const Source& x, const int64_t* seeds, const int64_t* step, uint32_t stream,
    const double* phi, const Queue& queue) {
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    return launch_for<T>(
        layout, static_cast<T*>(z.data), static_cast<const T*>(x.data), seeds, step, stream, phi,
        queue);
  };
  return layout.dtype == DType::float64 ? run(double{}) : run(float{});
}

}  // namespace progdistill::cuda
