#pragma once

#include <pybind11/pybind11.h>

#include "dlpack_abi.h"
#include "launchers.h"

namespace progdistill {

#if defined(PD_HAS_CUDA)
constexpr bool kHasCuda = true;
#else
constexpr bool kHasCuda = false;
#endif

/// Where a call runs: on CPU threads, or on a stream of a CUDA device. Python says which (native.run): a number of
/// threads; a (device index, stream pointer); or None for the device of the first tensor and torch's current stream.
class Run {
 public:
  /// Throws RuntimeError for CUDA where the extension has none, ValueError for tensors that are elsewhere.
  Run(pybind11::handle how, pybind11::handle first_tensor);

  bool on_cuda() const { return device_.type == dlpack::kCuda; }
  int threads() const { return threads_; }
  dlpack::Device device() const { return device_; }
  cuda::Queue queue() const { return {device_.index, stream_}; }

 private:
  dlpack::Device device_{dlpack::kCpu, 0};
  int threads_ = 0;
  void* stream_ = nullptr;
};

/// Throws RuntimeError with CUDA's words unless `code`, a cudaError_t, says that all is well.
void raise_if_failed(int code, const char* operation);

}  // namespace progdistill
