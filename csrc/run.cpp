#include "run.h"

#include <string>

#include "tensor.h"

#if defined(PD_HAS_CUDA)
#include <cuda_runtime_api.h>
#endif

namespace py = pybind11;

namespace progdistill {

Run::Run(py::handle how, py::handle first_tensor) {
  if (py::isinstance<py::int_>(how)) {
    threads_ = how.cast<int>();
    return;
  }
  if (!kHasCuda) throw std::runtime_error("the extension was built without CUDA kernels");
  if (!how.is_none()) {
    const auto [device, stream] = how.cast<std::pair<int, uintptr_t>>();
    device_ = {dlpack::kCuda, device};
    stream_ = reinterpret_cast<void*>(stream);
    return;
  }
  const Tensor tensor("the first argument", first_tensor);
  if (tensor.is_description() || tensor.device().type != dlpack::kCuda) {
    throw py::value_error("expected CUDA tensors, or descriptions together with (device index, stream pointer)");
  }
  device_ = tensor.device();
  stream_ = current_stream(dlpack::kCuda, device_.index);
}

void raise_if_failed(int code, const char* operation) {
#if defined(PD_HAS_CUDA)
  if (code == cudaSuccess) return;
  throw std::runtime_error(
      std::string(operation) + ": CUDA says " + cudaGetErrorString(static_cast<cudaError_t>(code)));
#else
  (void)code, (void)operation;
#endif
}

}  // namespace progdistill
