#pragma once

#include <pybind11/pybind11.h>

namespace progdistill {

/// Adds the optimizer's kernels to the module.
void bind_optimizer(pybind11::module_& module);

}  // namespace progdistill
