#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <cstdlib>
#include <tuple>

#include "arguments.h"
#include "bindings_backward.h"
#include "bindings_draws.h"
#include "bindings_group_norm_silu.h"
#include "bindings_linear_combination.h"
#include "bindings_optimizer.h"
#include "bindings_padded_sum.h"
#include "build_info.h"
#include "loops/loops.h"
#include "ops.h"
#include "run.h"

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
  return arguments.sink(grad, heads);
}

/// Where a CUDA kernel leaves the partial sums of samples that more than one block works on.
double* read_partials(Arguments& arguments, py::handle object, const Layout& layout) {
  const int64_t chunks = cuda::chunks_per_sample(layout.elements);
  if (chunks <= 1) return nullptr;
  const Tensor& partials = arguments.array("partials", object, DType::float64);
  if (partials.count() < layout.samples * chunks) {
    throw py::value_error(
        "partials has shape " + partials.shape_text() + "; expected at least (" + std::to_string(layout.samples) +
        ", " + std::to_string(chunks) + ")");
  }
  return static_cast<double*>(partials.data());
}

/// Work put on a stream. CUDA kernels look at no values: the caller hears that all is well.
bool launched(int code, const char* operation) {
  raise_if_failed(code, operation);
  return true;
}

bool call_normal(py::handle out, py::handle seeds, py::handle step, int64_t stream, py::handle how) {
  const Run run(how, out);
  Arguments arguments(run.device());
  const Tensor& to = arguments.array("out", out, DType::float32);
  if (to.ndim() < 1) throw py::value_error("out " + to.shape_text() + " must be (B, ...)");
  const int64_t samples = to.size(0), count = samples > 0 ? to.count() / samples : 0;
  const Draw draw = read_draw(arguments, seeds, step, stream, samples, count);
  auto* numbers = static_cast<float*>(arguments.sink(to).data);
  if constexpr (kHasCuda) {
    if (run.on_cuda()) {
      return launched(
          cuda::normal(numbers, draw.seeds, samples, count, draw.step, draw.stream, run.queue()), "normal");
    }
  }
  py::gil_scoped_release unlocked;
  normal(numbers, draw.seeds, samples, count, *draw.step, draw.stream, run.threads());
  return true;
}

bool call_diffuse(py::handle z, py::handle x, py::handle noise, py::handle phi, py::handle how) {
  const Run run(how, x);
  Arguments arguments(run.device());
  const Source clean = source(arguments.state("x", x)), random = source(arguments.state("noise", noise));
  const Sink to = arguments.sink(arguments.state("z", z));
  const double* angles = arguments.angles("phi", phi);
  const Layout layout = arguments.layout();
  if constexpr (kHasCuda) {
    if (run.on_cuda()) return launched(cuda::diffuse(layout, to, clean, random, angles, run.queue()), "diffuse");
  }
  py::gil_scoped_release unlocked;
  return diffuse(layout, to, clean, random, angles, run.threads());
}

bool call_diffuse_seeded(
    py::handle z, py::handle x, py::handle seeds, py::handle step, int64_t stream, py::handle phi, py::handle how) {
  const Run run(how, x);
  Arguments arguments(run.device());
  const Source clean = source(arguments.state("x", x));
  const Sink to = arguments.sink(arguments.state("z", z));
  const double* angles = arguments.angles("phi", phi);
  const Layout layout = arguments.layout();
  const Draw draw = read_draw(arguments, seeds, step, stream, layout.samples, layout.elements);
  if constexpr (kHasCuda) {
    if (run.on_cuda()) {
      return launched(
          cuda::diffuse_seeded(layout, to, clean, draw.seeds, draw.step, draw.stream, angles, run.queue()),
          "diffuse_seeded");
    }
  }
  py::gil_scoped_release unlocked;
  return diffuse_seeded(layout, to, clean, draw.seeds, *draw.step, draw.stream, angles, run.threads());
}

/// A second place for a result, in bfloat16.
std::optional<Sink> read_copy(Arguments& arguments, py::handle object) {
  if (object.is_none()) return std::nullopt;
  const Tensor& copy = arguments.output("copy", object, 1);
  if (copy.dtype() != DType::bfloat16) throw py::type_error("copy is " + text(copy.dtype()) + "; expected bfloat16");
  return arguments.sink(copy);
}

bool call_ddim_step(
    py::handle z_next, py::handle copy, py::handle z, py::handle out, py::handle phi, py::handle phi_next, int prediction_type,
    MaybeDouble clip, py::handle how) {
  const Run run(how, z);
  Arguments arguments(run.device());
  const Prediction prediction = prediction_of(prediction_type, "prediction_type");
  const int count = heads(prediction);
  const Source state = source(arguments.state("z", z));
  const Source output = source(arguments.output("out", out, count), count);
  const Sink next = arguments.sink(arguments.state("z_next", z_next));
  const std::optional<Sink> twin = read_copy(arguments, copy);
  const double *from = arguments.angles("phi", phi), *to = arguments.angles("phi_next", phi_next);
  const Layout layout = arguments.layout();
  if constexpr (kHasCuda) {
    if (run.on_cuda()) {
      return launched(
          cuda::ddim_step(layout, next, twin, state, output, from, to, prediction, clip, run.queue()), "ddim_step");
    }
  }
  py::gil_scoped_release unlocked;
  return ddim_step(layout, next, twin, state, output, from, to, prediction, clip, run.threads());
}

bool call_distillation_target(
    py::handle target, py::handle z, const py::list& outs, py::handle phis, int prediction_type, int target_type,
    MaybeDouble clip, py::handle how) {
  const Run run(how, z);
  Arguments arguments(run.device());
  const Prediction wanted = prediction_of(target_type, "target_type");
  const Source state = source(arguments.state("z", z));
  const Teacher teacher = read_teacher(arguments, outs, phis, prediction_type, clip);
  const Tensor& result = arguments.output("target", target, heads(wanted));
  if (result.dtype() != arguments.first_state().dtype()) throw py::type_error("target must have the dtype of z");
  const Sink to = arguments.sink(result, heads(wanted));
  const Layout layout = arguments.layout();
  if constexpr (kHasCuda) {
    if (run.on_cuda()) {
      return launched(
          cuda::distillation_target(layout, to, state, teacher, wanted, run.queue()), "distillation_target");
    }
  }
  py::gil_scoped_release unlocked;
  return distillation_target(layout, to, state, teacher, wanted, run.threads());
}

bool call_distillation_loss(
    py::handle loss, py::handle grad, py::handle pred, py::handle z, const py::list& outs, py::handle phis,
    int teacher_type, MaybeDouble clip, const Options& options, py::handle partials, py::handle how) {
  const Run run(how, z);
  Arguments arguments(run.device());
  const Objective objective = read_objective(options);
  const int count = heads(objective.prediction);
  const Source state = source(arguments.state("z", z));
  const Tensor& own = arguments.output("pred", pred, count);
  const std::optional<Sink> slope = read_gradient(arguments, grad, own, count);
  const Teacher teacher = read_teacher(arguments, outs, phis, teacher_type, clip);
  void* losses = arguments.loss("loss", loss);
  const Layout layout = arguments.layout();
  if constexpr (kHasCuda) {
    if (run.on_cuda()) {
      double* sums = read_partials(arguments, partials, layout);
      return launched(
          cuda::distillation_loss(
              layout, losses, sums, slope, source(own, count), state, teacher, objective, run.queue()),
          "distillation_loss");
    }
  }
  py::gil_scoped_release unlocked;
  return distillation_loss(layout, losses, slope, source(own, count), state, teacher, objective, run.threads());
}

bool call_prediction_loss(
    py::handle loss, py::handle grad, py::handle pred, py::handle z, py::handle target, py::handle phi,
    int target_type, const Options& options, py::handle partials, py::handle how) {
  const Run run(how, z);
  Arguments arguments(run.device());
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
  if constexpr (kHasCuda) {
    if (run.on_cuda()) {
      double* sums = read_partials(arguments, partials, layout);
      return launched(
          cuda::prediction_loss(
              layout, losses, sums, slope, source(own, count), state, goal, angles, wanted, objective, run.queue()),
          "prediction_loss");
    }
  }
  py::gil_scoped_release unlocked;
  return prediction_loss(
      layout, losses, slope, source(own, count), state, goal, angles, wanted, objective, run.threads());
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  choose_loops(std::getenv("PROGDISTILL_CPU_CAPABILITY"));
  module.doc() =
      "The compiled kernels of progdistill.ops, results first. Every argument is checked for memory safety. On the CPU "
      "the return value says whether angles and coefficients are in order; on CUDA nobody looks.";
  module.def("set_dlpack_exchange_api", &set_dlpack_exchange_api);
  module.def("build_info", &build_info);
  module.def("chunks_per_sample", &cuda::chunks_per_sample);
  module.def("normal", &call_normal);
  module.def("diffuse", &call_diffuse);
  module.def("diffuse_seeded", &call_diffuse_seeded);
  module.def("ddim_step", &call_ddim_step);
  module.def("distillation_target", &call_distillation_target);
  module.def("distillation_loss", &call_distillation_loss);
  module.def("prediction_loss", &call_prediction_loss);
  bind_backward(module);
  bind_draws(module);
  bind_linear_combination(module);
  bind_optimizer(module);
  bind_group_norm_silu(module);
  bind_padded_sum(module);
}

}  // namespace progdistill
