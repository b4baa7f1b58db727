#pragma once

#include <optional>
#include <vector>

#include "images.h"
#include "rotation.h"

namespace progdistill {

/// A teacher's steps: outs[j] was made at phis[j * samples + sample], the last angle is where they lead.
struct Teacher {
  std::vector<Source> outs;  // at most kMaxSteps
  const double* phis;
  Prediction prediction;
  std::optional<double> clip;
};

}  // namespace progdistill
