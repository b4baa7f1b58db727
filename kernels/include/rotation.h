#pragma once

// The rotation algebra: every operation as per-sample coefficients of a few tensors.
//
// A variance-preserving state is a rotation, z = cos(phi) x + sin(phi) eps, and v = cos(phi) eps - sin(phi) x is its
// derivative by the angle (Salimans & Ho 2022, appendix D). Conversions, DDIM steps, the K-step target and the
// weighted losses are linear in z and the network outputs, with coefficients that depend on the angles alone. All of
// it is double: differences of angles are formed before anything is rounded. Twin of ops/rotation.py.

#include <cmath>

#include "angles.h"

namespace progdistill {

constexpr int kMaxSteps = 16;  // teacher steps within one step of a student
constexpr int kMaxHeads = 2;

// Numbered as in ops/names.py.
enum class Prediction : int { epsilon, sample, v_prediction, sample_epsilon };
enum class Weighting : int { constant, snr, truncated_snr, snr_plus_one, min_snr };
constexpr int kPredictions = 4;
constexpr int kWeightings = 5;

enum class Quantity : int { x, eps, v };

/// How many images side by side a network's output holds.
PD_HOST_DEVICE inline int heads(Prediction prediction) { return prediction == Prediction::sample_epsilon ? 2 : 1; }

/// The quantity in which a network's error is measured (two-headed networks: v).
PD_HOST_DEVICE inline Quantity domain(Prediction prediction) {
  switch (prediction) {
    case Prediction::epsilon:
      return Quantity::eps;
    case Prediction::sample:
      return Quantity::x;
    default:
      return Quantity::v;
  }
}

/// value = z * state + sum over heads of output[head] * (that head's tensor).
struct Form {
  double z;
  double output[kMaxHeads];
};

/// One DDIM step: unclipped, and by way of a clipped x (z_of_clipped * state + x_of_clipped * clip(x)).
struct StepForm {
  Form direct;
  Form x;
  double z_of_clipped;
  double x_of_clipped;
};

/// target = z * state + sum_j (output[j][head] * outs[j][head] + excess[j] * (x_j - clip(x_j))).
struct TargetForm {
  double z;
  double output[kMaxSteps][kMaxHeads];
  double excess[kMaxSteps];
};

/// residual = scale * (sum over heads of output[head] * pred[head] - target).
struct LossScale {
  double scale;
  double output[kMaxHeads];
};

/// (c_z, c) with `to` = c_z z + c `from`.
PD_HOST_DEVICE inline void convert(Quantity from, Quantity to, double sin, double cos, double* c_z, double* c) {
  *c_z = 0.0;
  *c = 1.0;
  if (from == to) return;
  if (from == Quantity::v) {
    *c_z = to == Quantity::x ? cos : sin;
    *c = to == Quantity::x ? -sin : cos;
  } else if (from == Quantity::x) {
    *c_z = (to == Quantity::v ? cos : 1.0) / sin;
    *c = (to == Quantity::v ? -1.0 : -cos) / sin;
  } else {
    *c_z = (to == Quantity::v ? -sin : 1.0) / cos;
    *c = (to == Quantity::v ? 1.0 : -sin) / cos;
  }
}

/// How `quantity` follows from z and an output of `prediction` at angle phi.
PD_HOST_DEVICE inline Form prediction_form(Prediction prediction, Quantity quantity, double phi) {
  const auto [sin, cos] = sine_and_cosine(phi);
  Form form;
  double factor;
  convert(domain(prediction), quantity, sin, cos, &form.z, &factor);
  // Two heads: v = cos eps - sin x needs no division at either end.
  const bool both = prediction == Prediction::sample_epsilon;
  form.output[0] = both ? factor * -sin : factor;
  form.output[1] = both ? factor * cos : 0.0;
  return form;
}

/// DDIM from phi to phi_next, z' = cos(h) z - sin(h) v with h = phi - phi_next (paper eq. 38), cancelled by hand for
/// x and eps outputs. The way through a clipped x, with eps recomputed from it, is the same for every prediction.
PD_HOST_DEVICE inline StepForm step_form(Prediction prediction, double phi, double phi_next) {
  const double h = phi - phi_next, sin = sine(phi), sin_h = sine(h);
  StepForm form;
  form.z_of_clipped = sine(phi_next) / sin;
  form.x_of_clipped = sin_h / sin;
  form.x = prediction_form(prediction, Quantity::x, phi);
  if (prediction == Prediction::sample) {
    form.direct = {form.z_of_clipped, {form.x_of_clipped, 0.0}};
  } else if (prediction == Prediction::epsilon) {
    const double cos = cosine(phi);
    form.direct = {cosine(phi_next) / cos, {-sin_h / cos, 0.0}};
  } else {
    const Form v = prediction_form(prediction, Quantity::v, phi);
    form.direct = {cosine(h), {-sin_h * v.output[0], -sin_h * v.output[1]}};
  }
  return form;
}

/// v of one step as a combination of the v of K steps: z_K = prod cos(h_j) z - sum_j sin(h_j) prod_{l>j} cos(h_l) v_j,
/// solved for v. Returns the coefficient of z, (prod cos(h_j) - cos H) / -sin H without its cancellation.
PD_HOST_DEVICE inline double compose_v(const double* phis, int steps, double* weights) {
  const double total = sine(phis[0] - phis[steps]);
  double excess = 0.0, later = 1.0;
  for (int j = 1; j < steps; ++j) {
    const double step = phis[j] - phis[j + 1];
    excess = excess * cosine(step) - sine(phis[0] - phis[j]) * sine(step);
  }
  for (int j = steps - 1; j >= 0; --j) {
    const double step = phis[j] - phis[j + 1];
    weights[j] = sine(step) * later / total;
    later *= cosine(step);
  }
  return excess / total;
}

/// x (or eps) of one step as a mean of the x (eps) of K steps: weights sin(phi_j - phi_{j+1}) e_0 e_K / (sin(phi_0 -
/// phi_K) e_j e_{j+1}), e = sin (cos). The quotients that are 1 even where e is 0 are left out.
PD_HOST_DEVICE inline void compose_mean(Quantity quantity, const double* phis, int steps, double* weights) {
  double end[kMaxSteps + 1];
  for (int j = 0; j <= steps; ++j) end[j] = quantity == Quantity::x ? sine(phis[j]) : cosine(phis[j]);
  const double total = sine(phis[0] - phis[steps]);
  for (int j = 0; j < steps; ++j) {
    weights[j] = sine(phis[j] - phis[j + 1]) / total;
    if (j > 0) weights[j] *= end[0] / end[j];
    if (j < steps - 1) weights[j] *= end[steps] / end[j + 1];
  }
}

/// The one-step prediction at phis[0] that lands where `steps` <= kMaxSteps teacher steps through phis[0..steps]
/// land: the paper's eq. 43 with the state cancelled out, composed in the teacher's own quantity, then converted.
PD_HOST_DEVICE inline TargetForm target_form(
    Prediction prediction, Quantity quantity, const double* phis, int steps) {
  const Quantity native = domain(prediction);
  double weights[kMaxSteps], native_z = 0.0, c_z, factor;
  if (native == Quantity::v) {
    native_z = compose_v(phis, steps, weights);
  } else {
    compose_mean(native, phis, steps, weights);
  }
  const auto [sin, cos] = sine_and_cosine(phis[0]);
  convert(native, quantity, sin, cos, &c_z, &factor);
  TargetForm form;
  form.z = c_z + factor * native_z;
  for (int j = 0; j < steps; ++j) {
    const Form own = prediction_form(prediction, native, phis[j]);
    const double weight = factor * weights[j];
    for (int head = 0; head < kMaxHeads; ++head) form.output[j][head] = weight * own.output[head];
    // Clipping replaces x by x - d; at fixed z that moves v by d / sin and eps by d cos / sin.
    const double moved = native == Quantity::x   ? -1.0
                         : native == Quantity::v ? 1.0 / sine(phis[j])
                                                 : cosine(phis[j]) / sine(phis[j]);
    form.excess[j] = weight * moved;
  }
  return form;
}

/// What multiplies the squared error of `quantity` under a weighting (the paper's eq. 10 and its relatives), one table
/// cancelled symbolically: in v it is sin^2, cos^2, their maximum, 1 and min(cos^2, gamma sin^2); x divides by sin^2,
/// eps by cos^2.
PD_HOST_DEVICE inline double squared_factor(Weighting weighting, Quantity quantity, double phi, double gamma) {
  const auto [sin, cos] = sine_and_cosine(phi);
  const double sin2 = sin * sin, cos2 = cos * cos;
  const bool v = quantity == Quantity::v, x = quantity == Quantity::x;
  const double snr = cos2 / sin2, inverse_snr = sin2 / cos2;
  switch (weighting) {
    case Weighting::constant:
      return v ? sin2 : x ? 1.0 : inverse_snr;
    case Weighting::snr:
      return v ? cos2 : x ? snr : 1.0;
    case Weighting::truncated_snr:
      return v ? ::fmax(sin2, cos2) : ::fmax(x ? snr : inverse_snr, 1.0);
    case Weighting::snr_plus_one:
      return v ? 1.0 : 1.0 / (x ? sin2 : cos2);
    default:
      return v ? ::fmin(cos2, gamma * sin2) : x ? ::fmin(snr, gamma) : ::fmin(gamma * inverse_snr, 1.0);
  }
}

/// The residual's scale and the coefficients of the network's heads in its own quantity.
PD_HOST_DEVICE inline LossScale loss_scale(Prediction prediction, Weighting weighting, double phi, double gamma) {
  const Quantity quantity = domain(prediction);
  const Form own = prediction_form(prediction, quantity, phi);
  return {::sqrt(squared_factor(weighting, quantity, phi, gamma)), {own.output[0], own.output[1]}};
}

}  // namespace progdistill
