#include "teacher_target.cuh"
#include "weighted_loss.cuh"

namespace progdistill::cuda {
namespace {

template <bool Clips, class T, int Width>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor<T>) distillation_loss_kernel(
    const __grid_constant__ LossPlanes loss, const __grid_constant__ TeacherPlanes teacher) {
  const Part part(loss.elements, loss.chunks);
  __shared__ LossCoefficients<T> by;
  __shared__ TargetCoefficients<T> target_by;
  form_target(target_by, teacher, domain(loss.objective.prediction), part.sample);
  form_loss(by, loss, part.sample);
  __syncthreads();
  T sum = 0;
  part.for_each_unit<Width>([&](uint32_t e) {
    const auto target = sum_target<Clips, T, Width>(target_by, teacher, part.sample, e);
    weigh(target, by, loss, part.sample, e, sum);
  });
  write_loss(sum, loss, part.sample);
}

}  // namespace

int distillation_loss(
    const Layout& layout, void* loss, double* partials, const std::optional<Sink>& grad, const Source& pred,
    const Source& z, const Teacher& teacher, const Objective& objective, const Queue& queue) {
  const bool vectors = takes_vectors(layout, pred, z, grad ? *grad : Sink{}) && takes_vectors(layout, teacher);
  const LossPlanes where = planes(layout, loss, partials, grad, pred, teacher.phis, objective);
  return for_state_type_and_width(layout, vectors, [&](auto zero, auto width) {
    using T = decltype(zero);
    const auto kernel =
        teacher.clip ? distillation_loss_kernel<true, T, width()> : distillation_loss_kernel<false, T, width()>;
    const cudaError_t error =
        launch(kernel, layout.samples * where.chunks, kThreads, queue, where, planes(z, teacher, layout));
    return error != cudaSuccess ? error : launch_mean<T>(where, layout.samples, queue);
  });
}

}  // namespace progdistill::cuda
