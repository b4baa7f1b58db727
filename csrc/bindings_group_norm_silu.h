#pragma once

#include <pybind11/pybind11.h>

namespace progdistill {

/// Adds the kernels of group normalisation to the module.
void bind_group_norm_silu(pybind11::module_& module);

}  // namespace progdistill
