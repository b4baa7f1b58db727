#pragma once

#include <pybind11/pybind11.h>

namespace progdistill {

/// Adds the CPU kernels of gradients that are taken after their operation to the module.
void bind_backward(pybind11::module_& module);

}  // namespace progdistill
