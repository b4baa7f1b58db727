#pragma once

#include <pybind11/pybind11.h>

namespace progdistill {

/// Adds the kernels of padded sums to the module.
void bind_padded_sum(pybind11::module_& module);

}  // namespace progdistill
