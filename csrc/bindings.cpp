#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <cstdlib>
#include <tuple>

#include "arguments.h"
#include "build_info.h"
#include "loops/loops.h"
#include "ops.h"

#if defined(PD_HAS_CUDA)
#include "bindings_cuda.h"
#endif

namespace py = pybind11;

namespace progdistill {
namespace {

using MaybeDouble = std::optional<double>;
/// prediction_type, weighting, min_snr_gamma, loss_type, huber_c, grad_scale: LossOptions of ops/loss_options.py.
using Options = std::tuple<int, int, double, int, double, double>;

Objective read_objective(const Options& options) {
  const auto [prediction_type, weighting, min_snr_gamma, loss_type, huber_c, grad_scale] = options;
  return {prediction_of(prediction_type, "prediction_type"),
          weighting_of(weighting),
          min_snr_gamma,
          loss_type_of(loss_type),
          huber_c,
          grad_scale};
}

Teacher read_teacher(
    Arguments& arguments, const py::list& outs, py::handle phis, int prediction_type, MaybeDouble clip) {
  const int steps = static_cast<int>(outs.size());
  if (steps < 1 || steps > kMaxSteps) {
    throw py::value_error(
        "outs holds " + std::to_string(steps) + " teacher outputs; the C++ kernels take 1 to " +
        std::to_string(kMaxSteps) + " (backend=\"reference\" takes any number)");
  }
  Teacher teacher{{}, nullptr, prediction_of(prediction_type, "the teacher's prediction type"), clip};
  const int count = heads(teacher.prediction);
  for (int j = 0; j < steps; ++j) {
    const Tensor& out = arguments.output("outs[" + std::to_string(j) + "]", outs[j], count);
    teacher.outs.push_back(source(out, count));
  }
  teacher.phis = arguments.angles("phis", phis, steps + 1);
  return teacher;
}

/// The gradient for `pred`, in its dtype.
std::optional<Sink> read_gradient(Arguments& arguments, py::handle object, const Tensor& pred, int heads) {
  if (object.is_none()) return std::nullopt;
  const Tensor& grad = arguments.output("grad", object, heads);
  if (grad.dtype() != pred.dtype()) {
    throw py::type_error("grad is " + text(grad.dtype()) + ", pred is " + text(pred.dtype()));
  }
  return sink(grad, heads);
}

void call_normal(py::handle out, py::handle seeds, int64_t step, int64_t stream, int threads) {
  const Tensor to("out", out), from("seeds", seeds);
  if (to.dtype() != DType::float32) throw py::type_error("out is " + text(to.dtype()) + "; expected float32");
  if (from.dtype() != DType::int64) throw py::type_error("seeds is " + text(from.dtype()) + "; expected int64");
  if (to.device().type == dlpack::kCuda || from.device().type == dlpack::kCuda) {
    throw py::value_error("out and seeds must be on the CPU");
  }
  if (from.ndim() != 1 || to.ndim() < 1 || to.size(0) != from.size(0)) {
    throw py::value_error("out " + to.shape_text() + " and seeds " + from.shape_text() + " must be (B, ...) and (B,)");
  }
  if (!to.is_contiguous() || !from.is_contiguous()) throw py::value_error("out and seeds must be contiguous");
  if (stream < 0 || stream >= int64_t{1} << 32) {
    throw py::value_error("stream is " + std::to_string(stream) + "; it must lie in [0, 2^32)");
  }
  const int64_t samples = from.size(0), count = samples > 0 ? to.count() / samples : 0;
  if (count > int64_t{1} << 34) throw py::value_error("a sample has at most 2^34 elements");
  py::gil_scoped_release unlocked;
  normal(
      static_cast<float*>(to.data()), static_cast<const int64_t*>(from.data()), samples, count, step,
      static_cast<uint32_t>(stream), threads);
}

bool call_diffuse(py::handle z, py::handle x, py::handle noise, py::handle phi, int threads) {
  Arguments arguments;
  const Source clean = source(arguments.state("x", x)), random = source(arguments.state("noise", noise));
  const Sink to = sink(arguments.state("z", z));
  const double* angles = arguments.angles("phi", phi);
  const Layout layout = arguments.layout();
  py::gil_scoped_release unlocked;
  return diffuse(layout, to, clean, random, angles, threads);
}

bool call_ddim_step(
    py::handle z_next, py::handle z, py::handle out, py::handle phi, py::handle phi_next, int prediction_type,
    MaybeDouble clip, int threads) {
  Arguments arguments;
  const Prediction prediction = prediction_of(prediction_type, "prediction_type");
  const int count = heads(prediction);
  const Source state = source(arguments.state("z", z));
  const Source output = source(arguments.output("out", out, count), count);
  const Sink next = sink(arguments.state("z_next", z_next));
  const double *from = arguments.angles("phi", phi), *to = arguments.angles("phi_next", phi_next);
  const Layout layout = arguments.layout();
  py::gil_scoped_release unlocked;
  return ddim_step(layout, next, state, output, from, to, prediction, clip, threads);
}

bool call_distillation_target(
    py::handle target, py::handle z, const py::list& outs, py::handle phis, int prediction_type, int target_type,
    MaybeDouble clip, int threads) {
  Arguments arguments;
  const Prediction wanted = prediction_of(target_type, "target_type");
  const Source state = source(arguments.state("z", z));
  const Teacher teacher = read_teacher(arguments, outs, phis, prediction_type, clip);
  const Tensor& result = arguments.output("target", target, heads(wanted));
  if (result.dtype() != arguments.first_state().dtype()) throw py::type_error("target must have the dtype of z");
  const Layout layout = arguments.layout();
  py::gil_scoped_release unlocked;
  return distillation_target(layout, sink(result, heads(wanted)), state, teacher, wanted, threads);
}

bool call_distillation_loss(
    py::handle loss, py::handle grad, py::handle pred, py::handle z, const py::list& outs, py::handle phis,
    int teacher_type, MaybeDouble clip, const Options& options, int threads) {
  Arguments arguments;
  const Objective objective = read_objective(options);
  const int count = heads(objective.prediction);
  const Source state = source(arguments.state("z", z));
  const Tensor& own = arguments.output("pred", pred, count);
  const std::optional<Sink> slope = read_gradient(arguments, grad, own, count);
  const Teacher teacher = read_teacher(arguments, outs, phis, teacher_type, clip);
  void* losses = arguments.loss("loss", loss);
  const Layout layout = arguments.layout();
  py::gil_scoped_release unlocked;
  return distillation_loss(layout, losses, slope, source(own, count), state, teacher, objective, threads);
}

bool call_prediction_loss(
    py::handle loss, py::handle grad, py::handle pred, py::handle z, py::handle target, py::handle phi,
    int target_type, const Options& options, int threads) {
  Arguments arguments;
  const Objective objective = read_objective(options);
  const Prediction wanted = prediction_of(target_type, "target_type");
  const int count = heads(objective.prediction);
  const Source state = source(arguments.state("z", z));
  const Tensor& own = arguments.output("pred", pred, count);
  const std::optional<Sink> slope = read_gradient(arguments, grad, own, count);
  const Source goal = source(arguments.output("target", target, heads(wanted)), heads(wanted));
  const double* angles = arguments.angles("phi", phi);
  void* losses = arguments.loss("loss", loss);
  const Layout layout = arguments.layout();
  py::gil_scoped_release unlocked;
  return prediction_loss(layout, losses, slope, source(own, count), state, goal, angles, wanted, objective, threads);
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  choose_loops(std::getenv("PROGDISTILL_CPU_CAPABILITY"));
  module.doc() =
      "The compiled kernels of progdistill.ops, results first. Every argument is checked for memory safety; where "
      "angles are taken, the return value says whether they and the coefficients are in order.";
  module.def("set_dlpack_exchange_api", &set_dlpack_exchange_api);
  module.def("build_info", &build_info);
  module.def("normal", &call_normal);
  module.def("diffuse", &call_diffuse);
  module.def("ddim_step", &call_ddim_step);
  module.def("distillation_target", &call_distillation_target);
  module.def("distillation_loss", &call_distillation_loss);
  module.def("prediction_loss", &call_prediction_loss);
#if defined(PD_HAS_CUDA)
  bind_cuda(module);
#endif
}

}  // namespace progdistill
