#pragma once

// What both losses make of a target: twin of csrc/weighted_loss.h.

#include "block_sum.cuh"
#include "elements.cuh"
#include "objective.h"

namespace progdistill::cuda {

/// Where a loss reads and writes; `partials` null: the sums of whole samples go to `loss`.
struct LossPlanes {
  void* loss;
  double* partials;
  Plane pred[kMaxHeads];
  Plane grad[kMaxHeads];
  bool wants_grad;
  const double* phi;
  uint32_t elements;
  uint32_t chunks;
  Objective objective;
};

inline LossPlanes planes(
    const Layout& layout, void* loss, double* partials, const std::optional<Sink>& grad, const Source& pred,
    const double* phi, const Objective& objective) {
  LossPlanes result{};
  const int64_t chunks = chunks_per_sample(layout.elements);
  result.loss = loss;
  result.partials = chunks > 1 ? partials : nullptr;
  result.wants_grad = grad.has_value();
  result.phi = phi;
  result.elements = static_cast<uint32_t>(layout.elements);
  result.chunks = static_cast<uint32_t>(chunks);
  result.objective = objective;
  for (int head = 0; head < pred.heads; ++head) {
    result.pred[head] = plane(pred, head, layout);
    if (grad) result.grad[head] = plane(*grad, head, layout);
  }
  return result;
}

template <class T>
struct LossCoefficients {
  T scale, output[kMaxHeads], slope[kMaxHeads];
};

/// Fills a block's coefficients by its last warp, which has nothing else to form. A barrier must follow.
template <class T>
__device__ __noinline__ void form_loss(LossCoefficients<T>& by, const LossPlanes& loss, int64_t sample) {
  if (threadIdx.x != kThreads - 32) return;
  const Objective& objective = loss.objective;
  const LossScale own =
      loss_scale(objective.prediction, objective.weighting, loss.phi[sample], objective.min_snr_gamma);
  const double factor = objective.type == LossType::l2 ? 2.0 : 1.0;
  const double mean_slope = factor * objective.grad_scale / static_cast<double>(loss.elements);
  by.scale = static_cast<T>(own.scale);
  for (int head = 0; head < kMaxHeads; ++head) {
    by.output[head] = static_cast<T>(own.output[head]);
    by.slope[head] = static_cast<T>(mean_slope * own.scale * own.output[head]);
  }
}

/// Turns residuals into derivatives and adds their loss to `sum`.
template <LossType Type, class T, int Width>
__device__ void derive(Unit<T, Width>& residual, T huber_c, T& sum) {
  residual.each([&](int i) { return add_loss<Type>(residual.value[i], huber_c, sum); });
}

/// r = scale (own prediction - target): adds its loss to `sum` and writes its gradient.
template <class T, int Width>
__device__ void weigh(
    const Unit<T, Width>& target, const LossCoefficients<T>& by, const LossPlanes& loss, int64_t sample,
    uint32_t element, T& sum) {
  const Objective& objective = loss.objective;
  Unit<T, Width> own;
  load(own, loss.pred[0], sample, element);
  own.each([&](int i) { return by.output[0] * own.value[i]; });
  if (heads(objective.prediction) == 2) add(own, by.output[1], loss.pred[1], sample, element);
  own.each([&](int i) { return by.scale * (own.value[i] - target.value[i]); });
  const T huber_c = static_cast<T>(objective.huber_c);
  if (objective.type == LossType::l2) {
    derive<LossType::l2>(own, huber_c, sum);
  } else if (objective.type == LossType::l1) {
    derive<LossType::l1>(own, huber_c, sum);
  } else {
    derive<LossType::pseudo_huber>(own, huber_c, sum);
  }
  if (!loss.wants_grad) return;
  for (int head = 0; head < heads(objective.prediction); ++head) {
    Unit<T, Width> grad;
    grad.each([&](int i) { return by.slope[head] * own.value[i]; });
    store(grad, loss.grad[head], sample, element);
  }
}

/// Adds up the threads' sums of a block. All threads must come here.
template <class T>
__device__ void write_loss(T sum, const LossPlanes& loss, int64_t sample) {
  const double total = block_sum(static_cast<double>(sum));
  if (threadIdx.x != 0) return;
  if (loss.partials != nullptr) {
    loss.partials[blockIdx.x] = total;
  } else {
    static_cast<T*>(loss.loss)[sample] = static_cast<T>(total / static_cast<double>(loss.elements));
  }
}

/// A warp for each sample adds up its partial sums, always in the same order.
template <class T>
__global__ void mean_kernel(T* __restrict__ loss, const double* __restrict__ partials, uint32_t chunks, uint32_t elements) {
  double sum = 0.0;
  for (uint32_t chunk = threadIdx.x; chunk < chunks; chunk += 32) sum += partials[int64_t{blockIdx.x} * chunks + chunk];
  sum = warp_sum(sum);
  if (threadIdx.x == 0) loss[blockIdx.x] = static_cast<T>(sum / static_cast<double>(elements));
}

/// Adds up what a loss kernel has left in `partials`, if anything.
template <class T>
cudaError_t launch_mean(const LossPlanes& loss, int64_t samples, const Queue& queue) {
  if (loss.partials == nullptr) return cudaSuccess;
  return launch(
      mean_kernel<T>, samples, 32, queue, static_cast<T*>(loss.loss), loss.partials, loss.chunks, loss.elements);
}

}  // namespace progdistill::cuda
