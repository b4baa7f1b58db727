#include "bindings_draws.h"

#include <pybind11/stl.h>

#include <optional>

#include "ops.h"
#include "run.h"

namespace py = pybind11;

namespace progdistill {

Draw read_draw(
    Arguments& arguments, py::handle seeds, py::handle step, int64_t stream, int64_t samples, int64_t count) {
  const Tensor& from = arguments.array("seeds", seeds, DType::int64);
  const Tensor& when = arguments.array("step", step, DType::int64);
  if (from.ndim() != 1 || from.size(0) != samples) {
    throw py::value_error("seeds has shape " + from.shape_text() + "; expected (" + std::to_string(samples) + ",)");
  }
  if (when.count() != 1) throw py::value_error("step has shape " + when.shape_text() + "; expected one element");
  if (stream < 0 || stream >= int64_t{1} << 32) {
    throw py::value_error("stream is " + std::to_string(stream) + "; it must lie in [0, 2^32)");
  }
  if (count > int64_t{1} << 34) throw py::value_error("a sample has at most 2^34 elements");
  return {static_cast<const int64_t*>(from.data()), static_cast<const int64_t*>(when.data()),
          static_cast<uint32_t>(stream)};
}

namespace {

/// (B,), of that dtype.
const Tensor& read_row(Arguments& arguments, const char* name, py::handle object, DType dtype) {
  const Tensor& tensor = arguments.array(name, object, dtype);
  if (tensor.ndim() != 1) throw py::value_error(tensor.name() + " has shape " + tensor.shape_text() + "; expected (B,)");
  return tensor;
}

/// Integers below `high`, or without it numbers in [0, 1).
void call_draw(
    py::handle out, py::handle seeds, py::handle step, int64_t stream, std::optional<int64_t> high, py::handle how) {
  const Run run(how, out);
  Arguments arguments(run.device());
  const Tensor& to = read_row(arguments, "out", out, high ? DType::int64 : DType::float64);
  const int64_t samples = to.size(0);
  const Draw draw = read_draw(arguments, seeds, step, stream, samples, 1);
  auto* numbers = static_cast<double*>(to.data());
  auto* whole_numbers = static_cast<int64_t*>(to.data());
  if constexpr (kHasCuda) {
    if (run.on_cuda()) {
      const int code =
          high ? cuda::integers(whole_numbers, draw.seeds, samples, draw.step, draw.stream, *high, run.queue())
               : cuda::uniform(numbers, draw.seeds, samples, draw.step, draw.stream, run.queue());
      return raise_if_failed(code, "draw");
    }
  }
  py::gil_scoped_release unlocked;
  if (high) {
    integers(whole_numbers, draw.seeds, samples, *draw.step, draw.stream, *high, run.threads());
  } else {
    uniform(numbers, draw.seeds, samples, *draw.step, draw.stream, run.threads());
  }
}

void call_random_bits(py::handle out, py::handle numbers, int64_t key, int64_t counter_high, py::handle how) {
  const Run run(how, out);
  Arguments arguments(run.device());
  const Tensor& to = read_row(arguments, "out", out, DType::int64);
  const Tensor& from = read_row(arguments, "numbers", numbers, DType::int64);
  if (from.size(0) != to.size(0)) {
    throw py::value_error("numbers has shape " + from.shape_text() + "; expected that of out, " + to.shape_text());
  }
  auto* bits = static_cast<int64_t*>(to.data());
  const auto* given = static_cast<const int64_t*>(from.data());
  if constexpr (kHasCuda) {
    if (run.on_cuda()) {
      const int code = cuda::random_bits(bits, given, to.size(0), key, counter_high, run.queue());
      return raise_if_failed(code, "random_bits");
    }
  }
  py::gil_scoped_release unlocked;
  random_bits(bits, given, to.size(0), key, counter_high, run.threads());
}

}  // namespace

void bind_draws(py::module_& module) {
  module.def("draw", &call_draw);
  module.def("random_bits", &call_random_bits);
}

}  // namespace progdistill
