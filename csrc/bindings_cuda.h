#pragma once

#include <pybind11/pybind11.h>

namespace progdistill {

/// Adds the CUDA kernels to the module.
void bind_cuda(pybind11::module_& module);

}  // namespace progdistill
