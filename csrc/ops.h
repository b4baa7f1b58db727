#pragma once

// The CPU kernels, one file each: pointers and sizes, no Python. Callers have checked shapes and dtypes; the formulas
// are those of python/progdistill/ops, the coefficients those of kernels/include/rotation.h. Kernels that take angles
// return whether those and the coefficients are in order (watch.h); if not, the numbers written mean nothing.

#include <cstdint>
#include <optional>
#include <vector>

#include "adamw.h"
#include "combination.h"
#include "images.h"
#include "objective.h"
#include "parameters.h"
#include "teacher.h"

namespace progdistill {

/// out (samples, count): normals of Philox counters (element / 4, stream, step) under each sample's seed.
void normal(
    float* out, const int64_t* seeds, int64_t samples, int64_t count, int64_t step, uint32_t stream, int threads);

/// out (samples,): a number in [0, 1), or an integer below `high`, of the first words of those counters.
void uniform(double* out, const int64_t* seeds, int64_t samples, int64_t step, uint32_t stream, int threads);
void integers(
    int64_t* out, const int64_t* seeds, int64_t samples, int64_t step, uint32_t stream, int64_t high, int threads);

/// out (count,): 64 bits of the Philox counters whose lower halves are `numbers`.
void random_bits(
    int64_t* out, const int64_t* numbers, int64_t count, int64_t key, int64_t counter_high, int threads);

/// z = cos(phi) x + sin(phi) noise.
bool diffuse(
    const Layout& layout, const Sink& z, const Source& x, const Source& noise, const double* phi, int threads);

/// The gradients of `diffuse`; angles are those of a call that was in order.
void diffuse_backward(
    const Layout& layout, const std::optional<Sink>& grad_x, const std::optional<Sink>& grad_noise, const Source& grad,
    const double* phi, int threads);

/// `diffuse` with the noise that `normal` gives for each sample, elements numbered in contiguous order.
bool diffuse_seeded(
    const Layout& layout, const Sink& z, const Source& x, const int64_t* seeds, int64_t step, uint32_t stream,
    const double* phi, int threads);

/// next = z moved from phi to phi_next along the network's output; copy: the same in bfloat16, if it is given.
bool ddim_step(
    const Layout& layout, const Sink& next, const std::optional<Sink>& copy, const Source& z, const Source& out,
    const double* phi, const double* phi_next, Prediction prediction, std::optional<double> clip, int threads);

/// result = the sum of at most kMaxTerms heads, each times its factor, in their order; 0 without any.
void linear_combination(
    const Layout& layout, const Sink& result, const std::vector<CombinedHead>& terms, int threads);

/// The gradients of `ddim_step`; angles are those of a call that was in order. z and out are read with a clip only.
void ddim_step_backward(
    const Layout& layout, const std::optional<Sink>& grad_z, const std::optional<Sink>& grad_out, const Source& grad,
    const Source& z, const Source& out, const double* phi, const double* phi_next, Prediction prediction,
    std::optional<double> clip, int threads);

/// The one-step target of a teacher's steps.
bool distillation_target(
    const Layout& layout, const Sink& target, const Source& z, const Teacher& teacher, Prediction target_type,
    int threads);

/// loss (samples,) in the layout's dtype and, if grad is given, its gradient for pred.
bool distillation_loss(
    const Layout& layout, void* loss, const std::optional<Sink>& grad, const Source& pred, const Source& z,
    const Teacher& teacher, const Objective& objective, int threads);
bool prediction_loss(
    const Layout& layout, void* loss, const std::optional<Sink>& grad, const Source& pred, const Source& z,
    const Source& target, const double* phi, Prediction target_type, const Objective& objective, int threads);

/// The 2-norm of all gradients together.
double gradient_norm(const std::vector<Gradient>& grads, int threads);

/// One update of all parameters, float32 or float64 each of them.
void adamw_ema(const std::vector<Parameter>& parameters, DType dtype, const AdamW& adamw, int threads);

/// body(a float or a double) by the dtype of states: the argument's type is what counts.
template <class Body>
void for_state_type(DType dtype, Body&& body) {
  if (dtype == DType::float64) {
    body(double{});
  } else {
    body(float{});
  }
}

template <class Body>
void for_state_type(const Layout& layout, Body&& body) {
  for_state_type(layout.dtype, body);
}

}  // namespace progdistill
