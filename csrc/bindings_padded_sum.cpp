#include "bindings_padded_sum.h"

#include "image_arguments.h"
#include "padded_sum.h"
#include "run.h"

namespace py = pybind11;

namespace progdistill {
namespace {

cuda::PaddedSumSize padded_size(const ImageArguments& arguments, int64_t padding) {
  if (padding != 0 && padding != 1) {
    throw py::value_error("padding is " + std::to_string(padding) + "; the kernels take 0 or 1");
  }
  const int64_t padded = (arguments.height() + padding) * (arguments.width() + padding);
  const bool is_empty = arguments.height() * arguments.width() == 0;
  arguments.check_size(is_empty ? 0 : padded * arguments.channels(), "with padding " + std::to_string(padding));
  return {arguments.samples(), static_cast<int>(arguments.height()), static_cast<int>(arguments.width()),
          static_cast<int>(arguments.channels()), static_cast<int>(padding), arguments.dtype()};
}

void call_padded_sum(
    py::handle u, py::handle padded, py::handle x, py::handle residual, py::handle shift, int64_t padding,
    py::handle how) {
  const Run run(how, x);
  const ImageArguments arguments(run, "padded_sum", "x", x);
  const cuda::PaddedSumSize size = padded_size(arguments, padding);
  cuda::PaddedSum tensors{};
  tensors.u = arguments.maybe_image("u", u, size.channels);
  tensors.padded = arguments.maybe_image("padded", padded, size.channels, padding);
  tensors.x = arguments.image("x", x, size.channels);
  tensors.residual = arguments.maybe_image("residual", residual, size.channels);
  tensors.shift = arguments.maybe_values("shift", shift, size.channels);
  if constexpr (kHasCuda) raise_if_failed(cuda::padded_sum(size, tensors, run.queue()), "padded_sum");
}

void call_padded_sum_backward(
    py::handle du, py::handle dsum, py::handle dpadded, int64_t padding, py::handle how) {
  const Run run(how, du);
  const ImageArguments arguments(run, "padded_sum", "du", du);
  const cuda::PaddedSumSize size = padded_size(arguments, padding);
  cuda::PaddedSumBackward tensors{};
  tensors.du = arguments.image("du", du, size.channels);
  tensors.dsum = arguments.maybe_image("dsum", dsum, size.channels);
  tensors.dpadded = arguments.image("dpadded", dpadded, size.channels, padding);
  if constexpr (kHasCuda) raise_if_failed(cuda::padded_sum_backward(size, tensors, run.queue()), "padded_sum_backward");
}

}  // namespace

void bind_padded_sum(py::module_& module) {
  module.def("padded_sum", &call_padded_sum);
  module.def("padded_sum_backward", &call_padded_sum_backward);
}

}  // namespace progdistill
