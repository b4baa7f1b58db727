#pragma once

#include "loss_type.h"
#include "rotation.h"

namespace progdistill {

/// What becomes of a student's error: weighed, then squared or the like.
struct Objective {
  Prediction prediction;
  Weighting weighting;
  double min_snr_gamma;
  LossType type;
  double huber_c;
  double grad_scale;
};

}  // namespace progdistill
