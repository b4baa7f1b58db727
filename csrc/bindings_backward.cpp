#include "bindings_backward.h"

#include <pybind11/stl.h>

#include "arguments.h"
#include "ops.h"
#include "run.h"

namespace py = pybind11;

namespace progdistill {
namespace {

Run cpu_run(py::handle how, py::handle grad) {
  const Run run(how, grad);
  if (run.on_cuda()) throw py::value_error("these gradients have no CUDA kernel");
  return run;
}

std::optional<Sink> wanted_state(Arguments& arguments, const char* name, py::handle object) {
  if (object.is_none()) return std::nullopt;
  return arguments.sink(arguments.state(name, object));
}

void call_diffuse_backward(
    py::handle grad_x, py::handle grad_noise, py::handle grad, py::handle phi, py::handle how) {
  const Run run = cpu_run(how, grad);
  Arguments arguments(run.device());
  const Source from = source(arguments.state("grad", grad));
  const std::optional<Sink> to_x = wanted_state(arguments, "grad_x", grad_x);
  const std::optional<Sink> to_noise = wanted_state(arguments, "grad_noise", grad_noise);
  const double* angles = arguments.angles("phi", phi);
  const Layout layout = arguments.layout();
  py::gil_scoped_release unlocked;
  diffuse_backward(layout, to_x, to_noise, from, angles, run.threads());
}

void call_ddim_step_backward(
    py::handle grad_z, py::handle grad_out, py::handle grad, py::handle z, py::handle out, py::handle phi,
    py::handle phi_next, int prediction_type, std::optional<double> clip, py::handle how) {
  const Run run = cpu_run(how, grad);
  Arguments arguments(run.device());
  const Prediction prediction = prediction_of(prediction_type, "prediction_type");
  const int count = heads(prediction);
  const Source from = source(arguments.state("grad", grad));
  const std::optional<Sink> to_z = wanted_state(arguments, "grad_z", grad_z);
  std::optional<Sink> to_out;
  if (!grad_out.is_none()) to_out = arguments.sink(arguments.output("grad_out", grad_out, count), count);
  Source state{}, output{};
  if (clip) {
    state = source(arguments.state("z", z));
    output = source(arguments.output("out", out, count), count);
  }
  const double *begin = arguments.angles("phi", phi), *end = arguments.angles("phi_next", phi_next);
  const Layout layout = arguments.layout();
  py::gil_scoped_release unlocked;
  ddim_step_backward(layout, to_z, to_out, from, state, output, begin, end, prediction, clip, run.threads());
}

}  // namespace

void bind_backward(py::module_& module) {
  module.def("diffuse_backward", &call_diffuse_backward);
  module.def("ddim_step_backward", &call_ddim_step_backward);
}

}  // namespace progdistill
