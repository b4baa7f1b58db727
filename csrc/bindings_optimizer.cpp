#include "bindings_optimizer.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "arguments.h"
#include "ops.h"
#include "run.h"

namespace py = pybind11;

namespace progdistill {
namespace {

/// beta1, beta2, eps, weight_decay.
using Constants = std::tuple<double, double, double, double>;

/// Dense, whichever dimension runs fastest.
bool is_dense(const Tensor& tensor) {
  if (tensor.is_contiguous() || tensor.is_channels_last()) return true;
  std::vector<int> dims;
  for (int dim = 0; dim < tensor.ndim(); ++dim) {
    if (tensor.size(dim) != 1) dims.push_back(dim);
  }
  std::sort(dims.begin(), dims.end(), [&](int a, int b) { return tensor.stride(a) < tensor.stride(b); });
  int64_t expected = 1;
  for (const int dim : dims) {
    if (tensor.stride(dim) != expected) return false;
    expected *= tensor.size(dim);
  }
  return true;
}

/// Equal sizes, and elements in the same order in memory.
bool lie_alike(const Tensor& a, const Tensor& b) {
  if (a.ndim() != b.ndim()) return false;
  for (int dim = 0; dim < a.ndim(); ++dim) {
    if (a.size(dim) != b.size(dim)) return false;
    if (a.size(dim) > 1 && a.stride(dim) != b.stride(dim) && a.count() > 0) return false;
  }
  return true;
}

Tensor dense_tensor(std::string name, py::handle object, const Run& run) {
  Tensor tensor(std::move(name), object);
  check_device(tensor, run.device());
  if (!is_dense(tensor)) {
    throw py::value_error(tensor.name() + " has shape " + tensor.shape_text() + " with gaps in memory; it must be dense");
  }
  return tensor;
}

Gradient gradient(const Tensor& tensor) {
  if (tensor.dtype() == DType::int64) {
    throw py::type_error(tensor.name() + " is int64; expected float32, float64 or bfloat16");
  }
  return {tensor.data(), tensor.dtype(), tensor.count()};
}

void call_gradient_norm(py::handle norm, const py::list& grads, py::handle partials, py::handle how) {
  const Run run(how, norm);
  Arguments arguments(run.device());
  std::vector<Gradient> all;
  bool any_float64 = false;
  for (size_t i = 0; i < grads.size(); ++i) {
    all.push_back(gradient(dense_tensor("grads", grads[i], run)));
    any_float64 |= all.back().dtype == DType::float64;
  }
  const DType dtype = any_float64 ? DType::float64 : DType::float32;
  const Tensor& result = arguments.array("norm", norm, dtype);
  if (result.count() != 1) throw py::value_error("norm has shape " + result.shape_text() + "; expected one element");
  if constexpr (kHasCuda) {
    if (run.on_cuda()) {
      const Tensor& sums = arguments.array("partials", partials, DType::float64);
      const int64_t needed = cuda::gradient_norm_partials(all);
      if (sums.count() < needed) {
        throw py::value_error(
            "partials has shape " + sums.shape_text() + "; expected at least (" + std::to_string(needed) + ",)");
      }
      const int code = cuda::gradient_norm(result.data(), dtype, static_cast<double*>(sums.data()), all, run.queue());
      return raise_if_failed(code, "gradient_norm");
    }
  }
  double value;
  {
    py::gil_scoped_release unlocked;
    value = gradient_norm(all, run.threads());
  }
  if (dtype == DType::float64) {
    *static_cast<double*>(result.data()) = value;
  } else {
    *static_cast<float*>(result.data()) = static_cast<float>(value);
  }
}

/// The lists of a call of adamw_ema; emas and twins may be empty. Errors name the list: Python finds the index.
class ParameterLists {
 public:
  ParameterLists(const py::list& params, const Run& run) : params_(params), run_(run) {}

  void read(
      const py::list& grads, const py::list& exp_avgs, const py::list& exp_avg_sqs, const py::list& emas,
      const py::list& twins) {
    for (const auto& [name, list] :
         {std::pair{"grads", &grads}, {"exp_avgs", &exp_avgs}, {"exp_avg_sqs", &exp_avg_sqs}}) {
      check_length(name, *list);
    }
    if (!emas.empty()) check_length("emas", emas);
    if (!twins.empty()) check_length("twins", twins);
    for (size_t i = 0; i < params_.size(); ++i) {
      const Tensor param = dense_tensor("params", params_[i], run_);
      check_param(param, i);
      const Tensor grad = beside(param, "grads", grads, i, DType::bfloat16);
      Parameter& own = parameters.emplace_back();
      own.param = param.data();
      own.grad = gradient(grad);
      own.exp_avg = beside(param, "exp_avgs", exp_avgs, i).data();
      own.exp_avg_sq = beside(param, "exp_avg_sqs", exp_avg_sqs, i).data();
      if (!emas.empty()) own.ema = beside(param, "emas", emas, i).data();
      if (!twins.empty()) own.twin = twin_of(param, twins, i).data();
    }
  }

  std::vector<Parameter> parameters;
  DType dtype = DType::float32;

 private:
  void check_length(const char* name, const py::list& list) const {
    if (list.size() == params_.size()) return;
    throw py::value_error(
        std::string(name) + " holds " + std::to_string(list.size()) + " tensors, params " +
        std::to_string(params_.size()));
  }

  void check_param(const Tensor& param, size_t index) {
    if (param.dtype() != DType::float32 && param.dtype() != DType::float64) {
      throw py::type_error(param.name() + " is " + text(param.dtype()) + "; parameters are float32 or float64");
    }
    if (index == 0) dtype = param.dtype();
    if (param.dtype() != dtype) {
      throw py::type_error(param.name() + " is " + text(param.dtype()) + ", params[0] is " + text(dtype));
    }
  }

  /// A tensor that lies as the parameter does, in its dtype or, beside float32, in `other`.
  Tensor beside(
      const Tensor& param, const char* name, const py::list& list, size_t index,
      std::optional<DType> other = std::nullopt) const {
    Tensor tensor = alike(param, name, list, index);
    const bool fits = tensor.dtype() == dtype || (other == tensor.dtype() && dtype == DType::float32);
    if (!fits) throw py::type_error(tensor.name() + " is " + text(tensor.dtype()) + " beside " + text(dtype));
    return tensor;
  }

  Tensor twin_of(const Tensor& param, const py::list& twins, size_t index) const {
    Tensor tensor = alike(param, "twins", twins, index);
    if (tensor.dtype() != DType::bfloat16 || dtype != DType::float32) {
      throw py::type_error(tensor.name() + " is " + text(tensor.dtype()) + "; twins are bfloat16, of float32 parameters");
    }
    return tensor;
  }

  Tensor alike(const Tensor& param, const char* name, const py::list& list, size_t index) const {
    Tensor tensor(name, list[index]);
    check_device(tensor, run_.device());
    if (!lie_alike(param, tensor)) {
      throw py::value_error(
          tensor.name() + " of shape " + tensor.shape_text() + " does not lie in memory as " + param.name() +
          " of shape " + param.shape_text());
    }
    return tensor;
  }

  const py::list& params_;
  const Run& run_;
};

/// A Python number, or a tensor of one element whose value is read by the kernel.
Number read_number(const char* name, py::handle object, const Run& run, bool whole = false) {
  if (PyFloat_Check(object.ptr()) || PyLong_Check(object.ptr())) return {object.cast<double>(), nullptr, {}};
  const Tensor tensor(name, object);
  check_device(tensor, run.device());
  const bool fits = whole ? tensor.dtype() == DType::int64
                          : tensor.dtype() == DType::float32 || tensor.dtype() == DType::float64;
  if (!fits || tensor.count() != 1) {
    throw py::type_error(
        tensor.name() + " is " + text(tensor.dtype()) + " of shape " + tensor.shape_text() + "; expected a number or " +
        (whole ? "one int64 element" : "one float32 or float64 element"));
  }
  return {0.0, tensor.data(), tensor.dtype()};
}

void call_adamw_ema(
    const py::list& params, const py::list& grads, const py::list& exp_avgs, const py::list& exp_avg_sqs,
    const py::list& emas, const py::list& twins, py::handle step, py::handle lr, const Constants& constants,
    py::handle grad_norm, std::optional<double> max_norm, py::handle ema_decay, py::handle how) {
  if (params.empty()) return;
  const Run run(how, params[0]);
  ParameterLists lists(params, run);
  lists.read(grads, exp_avgs, exp_avg_sqs, emas, twins);
  AdamW adamw{};
  adamw.lr = read_number("lr", lr, run);
  adamw.step = read_number("step", step, run, true);
  std::tie(adamw.beta1, adamw.beta2, adamw.eps, adamw.weight_decay) = constants;
  adamw.clips = max_norm.has_value();
  if (adamw.clips) {
    adamw.grad_norm = read_number("grad_norm", grad_norm, run);
    adamw.max_norm = *max_norm;
  }
  adamw.averages = !emas.empty();
  if (adamw.averages) adamw.ema_decay = read_number("ema_decay", ema_decay, run);
  if constexpr (kHasCuda) {
    if (run.on_cuda()) {
      return raise_if_failed(cuda::adamw_ema(lists.parameters, lists.dtype, adamw, run.queue()), "adamw_ema");
    }
  }
  py::gil_scoped_release unlocked;
  adamw_ema(lists.parameters, lists.dtype, adamw, run.threads());
}

}  // namespace

void bind_optimizer(py::module_& module) {
  module.attr("gradient_norm_chunk") = cuda::kChunk;
  module.def("gradient_norm", &call_gradient_norm);
  module.def("adamw_ema", &call_adamw_ema);
}

}  // namespace progdistill
