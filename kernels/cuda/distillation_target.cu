#include "teacher_target.cuh"

namespace progdistill::cuda {
namespace {

template <bool Clips, class T, int Width>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor<T>) distillation_target_kernel(
    Plane target, const __grid_constant__ TeacherPlanes teacher, Quantity quantity, uint32_t elements,
    uint32_t chunks) {
  const Part part(elements, chunks);
  __shared__ TargetCoefficients<T> by;
  form_target(by, teacher, quantity, part.sample);
  __syncthreads();
  part.for_each_unit<Width>([&](uint32_t e) {
    store(sum_target<Clips, T, Width>(by, teacher, part.sample, e), target, part.sample, e);
  });
}

}  // namespace

int distillation_target(
    const Layout& layout, const Sink& target, const Source& z, const Teacher& teacher, Prediction target_type,
    const Queue& queue) {
  // A two-headed target is x beside eps, one launch each.
  const bool both = target_type == Prediction::sample_epsilon;
  const Quantity quantities[] = {both ? Quantity::x : domain(target_type), Quantity::eps};
  const bool vectors = takes_vectors(layout, target, z) && takes_vectors(layout, teacher);
  return for_state_type_and_width(layout, vectors, [&](auto zero, auto width) {
    using T = decltype(zero);
    const int64_t chunks = chunks_per_sample(layout.elements);
    const auto kernel = teacher.clip ? distillation_target_kernel<true, T, width()>
                                     : distillation_target_kernel<false, T, width()>;
    cudaError_t error = cudaSuccess;
    for (int head = 0; head < target.heads && error == cudaSuccess; ++head) {
      error = launch(
          kernel, layout.samples * chunks, kThreads, queue,
          plane(target, head, layout), planes(z, teacher, layout), quantities[head], layout.elements, chunks);
    }
    return error;
  });
}

}  // namespace progdistill::cuda
