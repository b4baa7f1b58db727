#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "queue.h"

namespace progdistill::cuda {

/// Makes a device current for the length of a launch.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    error_ = cudaGetDevice(&before_);
    if (error_ != cudaSuccess || before_ == device) return;
    error_ = cudaSetDevice(device);
    changed_ = error_ == cudaSuccess;
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  cudaError_t error() const { return error_; }

 private:
  int before_ = 0;
  bool changed_ = false;
  cudaError_t error_;
};

/// Starts a kernel in one dimension on the queue's device and stream. No blocks, no launch.
template <class... Parameters, class... Arguments>
cudaError_t launch(
    void (*kernel)(Parameters...), int64_t blocks, int threads, const Queue& queue, const Arguments&... arguments) {
  if (blocks == 0) return cudaSuccess;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  const DeviceGuard guard(queue.device);
  if (guard.error() != cudaSuccess) return guard.error();
  cudaLaunchConfig_t config{};
  config.gridDim.x = static_cast<unsigned>(blocks);
  config.blockDim.x = static_cast<unsigned>(threads);
  config.stream = static_cast<cudaStream_t>(queue.stream);
  return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

}  // namespace progdistill::cuda
