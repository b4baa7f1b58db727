#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "arguments.h"

namespace progdistill {

/// Which random numbers: the words that a counter is made of, where they lie.
struct Draw {
  const int64_t* seeds;
  const int64_t* step;
  uint32_t stream;
};

/// For samples of `count` numbers each.
Draw read_draw(
    Arguments& arguments, pybind11::handle seeds, pybind11::handle step, int64_t stream, int64_t samples,
    int64_t count);

/// Adds the kernels that draw one number a sample to the module.
void bind_draws(pybind11::module_& module);

}  // namespace progdistill
