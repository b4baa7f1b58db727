#include "angles.h"
#include "elements.cuh"

namespace progdistill::cuda {
namespace {

template <class T, int Width>
__global__ void __launch_bounds__(kThreads) diffuse_kernel(
    Plane z, Plane x, Plane noise, const double* __restrict__ phi, uint32_t elements, uint32_t chunks) {
  const Part part(elements, chunks);
  __shared__ T cos, sin;
  if (threadIdx.x == 0) {
    const SineCosine by = sine_and_cosine(phi[part.sample]);
    cos = static_cast<T>(by.cos);
    sin = static_cast<T>(by.sin);
  }
  __syncthreads();
  part.for_each_unit<Width>([&](uint32_t e) {
    Unit<T, Width> clean, random;
    load(clean, x, part.sample, e);
    load(random, noise, part.sample, e);
    clean.each([&](int i) { return fused(sin, random.value[i], cos * clean.value[i]); });
    store(clean, z, part.sample, e);
  });
}

}  // namespace

int diffuse(
    const Layout& layout, const Sink& z, const Source& x, const Source& noise, const double* phi, const Queue& queue) {
  return for_state_type_and_width(layout, takes_vectors(layout, z, x, noise), [&](auto zero, auto width) {
    const int64_t chunks = chunks_per_sample(layout.elements);
    return launch(
        diffuse_kernel<decltype(zero), width()>, layout.samples * chunks, kThreads,
        queue, plane(z, 0, layout), plane(x, 0, layout), plane(noise, 0, layout), phi,
        layout.elements, chunks);
  });
}

}  // namespace progdistill::cuda
