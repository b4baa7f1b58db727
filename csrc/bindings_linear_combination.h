#pragma once

#include <pybind11/pybind11.h>

namespace progdistill {

/// Adds the kernel of linear combinations to the module.
void bind_linear_combination(pybind11::module_& module);

}  // namespace progdistill
