#pragma once

#include <pybind11/pybind11.h>

namespace progdistill {

/// What was compiled, and what is used of it on this machine.
pybind11::dict build_info();

}  // namespace progdistill
