#include "bindings_cuda.h"

#include <cuda_runtime_api.h>
#include <pybind11/stl.h>

#include "arguments.h"
#include "diffuse.h"

namespace py = pybind11;

namespace progdistill {
namespace {

/// (device index, stream pointer), for a torch without the exchange API.
using Where = std::optional<std::pair<int, uintptr_t>>;

void raise_if_failed(int code, const char* operation) {
  if (code == cudaSuccess) return;
  throw std::runtime_error(
      std::string(operation) + ": CUDA says " + cudaGetErrorString(static_cast<cudaError_t>(code)));
}

struct Queue {
  dlpack::Device device;
  void* stream;
};

/// Where to launch: as given, else where the first tensor lies and on torch's current stream.
Queue queue_for(py::handle first, const Where& where) {
  if (where) return {{dlpack::kCuda, where->first}, reinterpret_cast<void*>(where->second)};
  const Tensor tensor("the first argument", first);
  if (tensor.is_description() || tensor.device().type != dlpack::kCuda) {
    throw py::value_error("expected CUDA tensors, or descriptions together with (device index, stream pointer)");
  }
  return {tensor.device(), current_stream(dlpack::kCuda, tensor.device().index)};
}

void call_diffuse(py::handle z, py::handle x, py::handle noise, py::handle phi, const Where& where) {
  const Queue queue = queue_for(x, where);
  Arguments arguments(queue.device);
  const Tensor &clean = arguments.state("x", x), &random = arguments.state("noise", noise);
  const Tensor& to = arguments.state("z", z);
  const double* angles = arguments.angles("phi", phi);
  const Layout layout = arguments.layout();
  raise_if_failed(
      cuda::diffuse(
          to.data(), clean.data(), random.data(), angles, layout.samples, layout.elements,
          layout.dtype == DType::float64 ? 64 : 32, queue.device.index, queue.stream),
      "diffuse");
}

}  // namespace

void bind_cuda(py::module_& module) { module.def("diffuse_cuda", &call_diffuse); }

}  // namespace progdistill
