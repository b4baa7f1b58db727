#include "elements.cuh"

namespace progdistill::cuda {
namespace {

template <class T>
struct Coefficients {
  T z, output[kMaxHeads];  // of the next state, or of x if it is to be clipped
  T z_of_clipped, x_of_clipped;
};

struct Clip {
  bool wanted;
  double bound;
};

template <class T>
__device__ void form_coefficients(
    Coefficients<T>& by, Prediction prediction, double phi, double phi_next, bool clips) {
  const StepForm form = step_form(prediction, phi, phi_next);
  const Form& used = clips ? form.x : form.direct;
  by.z = static_cast<T>(used.z);
  for (int head = 0; head < kMaxHeads; ++head) by.output[head] = static_cast<T>(used.output[head]);
  by.z_of_clipped = static_cast<T>(form.z_of_clipped);
  by.x_of_clipped = static_cast<T>(form.x_of_clipped);
}

template <class T, int Width>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor<T>) ddim_step_kernel(
    Plane next, Plane copy, Plane z, Plane first, Plane second, const double* __restrict__ phi,
    const double* __restrict__ phi_next, Prediction prediction, Clip clip, uint32_t elements, uint32_t chunks) {
  const Part part(elements, chunks);
  __shared__ Coefficients<T> by;
  if (threadIdx.x == 0) form_coefficients(by, prediction, phi[part.sample], phi_next[part.sample], clip.wanted);
  __syncthreads();
  const T bound = static_cast<T>(clip.bound);
  part.for_each_unit<Width>([&](uint32_t e) {
    Unit<T, Width> state, sum;
    load(state, z, part.sample, e);
    load(sum, first, part.sample, e);
    // A coefficient that is zero by its formula must not let an infinite state through.
    sum.each([&](int i) { return fused(by.output[0], sum.value[i], by.z == 0 ? T(0) : by.z * state.value[i]); });
    if (heads(prediction) == 2) add(sum, by.output[1], second, part.sample, e);
    if (clip.wanted) {
      sum.each([&](int i) {
        return fused(by.x_of_clipped, clipped(sum.value[i], bound), by.z_of_clipped * state.value[i]);
      });
    }
    store(sum, next, part.sample, e);
    if constexpr (sizeof(T) == 4) {
      if (copy.data != nullptr) store_as<uint16_t>(sum, copy, part.sample, e);
    }
  });
}

}  // namespace

int ddim_step(
    const Layout& layout, const Sink& next, const std::optional<Sink>& copy, const Source& z, const Source& out,
    const double* phi, const double* phi_next, Prediction prediction, std::optional<double> clip, const Queue& queue) {
  const Clip bound{clip.has_value(), clip.value_or(0.0)};
  const Sink twin = copy.value_or(Sink{});
  return for_state_type_and_width(layout, takes_vectors(layout, next, twin, z, out), [&](auto zero, auto width) {
    const int64_t chunks = chunks_per_sample(layout.elements);
    return launch(
        ddim_step_kernel<decltype(zero), width()>, layout.samples * chunks, kThreads,
        queue, plane(next, 0, layout), plane(twin, 0, layout), plane(z, 0, layout), plane(out, 0, layout),
        plane(out, out.heads - 1, layout), phi, phi_next, prediction, bound, layout.elements, chunks);
  });
}

}  // namespace progdistill::cuda
