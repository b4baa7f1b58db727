#include "weighted_loss.cuh"

namespace progdistill::cuda {
namespace {

/// A given target, as a kernel takes it.
struct TargetPlanes {
  Plane z;
  Plane target[kMaxHeads];
  Prediction type;
};

TargetPlanes planes(const Source& z, const Source& target, Prediction type, const Layout& layout) {
  return {plane(z, 0, layout), {plane(target, 0, layout), plane(target, target.heads - 1, layout)}, type};
}

template <class T>
struct Coefficients {
  T z, output[kMaxHeads];
};

template <class T, int Width>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor<T>) prediction_loss_kernel(
    const __grid_constant__ LossPlanes loss, const __grid_constant__ TargetPlanes given) {
  const Part part(loss.elements, loss.chunks);
  __shared__ LossCoefficients<T> by;
  __shared__ Coefficients<T> target_by;
  if (threadIdx.x == 0) {
    const Form form = prediction_form(given.type, domain(loss.objective.prediction), loss.phi[part.sample]);
    target_by.z = static_cast<T>(form.z);
    for (int head = 0; head < kMaxHeads; ++head) target_by.output[head] = static_cast<T>(form.output[head]);
  }
  form_loss(by, loss, part.sample);
  __syncthreads();
  T sum = 0;
  part.for_each_unit<Width>([&](uint32_t e) {
    Unit<T, Width> target{};
    add(target, target_by.z, given.z, part.sample, e);
    for (int head = 0; head < heads(given.type); ++head) {
      add(target, target_by.output[head], given.target[head], part.sample, e);
    }
    weigh(target, by, loss, part.sample, e, sum);
  });
  write_loss(sum, loss, part.sample);
}

}  // namespace

int prediction_loss(
    const Layout& layout, void* loss, double* partials, const std::optional<Sink>& grad, const Source& pred,
    const Source& z, const Source& target, const double* phi, Prediction target_type, const Objective& objective,
    const Queue& queue) {
  const bool vectors = takes_vectors(layout, pred, z, target, grad ? *grad : Sink{});
  const LossPlanes where = planes(layout, loss, partials, grad, pred, phi, objective);
  return for_state_type_and_width(layout, vectors, [&](auto zero, auto width) {
    using T = decltype(zero);
    const cudaError_t error = launch(
        prediction_loss_kernel<T, width()>, layout.samples * where.chunks, kThreads, queue, where,
        planes(z, target, target_type, layout));
    return error != cudaSuccess ? error : launch_mean<T>(where, layout.samples, queue);
  });
}

}  // namespace progdistill::cuda
