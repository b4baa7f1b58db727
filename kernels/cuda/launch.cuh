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

/// The shared memory that a block was launched with.
__device__ inline float* dynamic_shared() {
#if defined(__CUDACC__)
  extern __shared__ uint4 room[];
  return reinterpret_cast<float*>(room);
#else
  return static_cast<float*>(cuda_on_cpu::dynamic_shared());
#endif
}

/// Starts a kernel in one dimension on the queue's device and stream, with so many bytes of shared memory a block. No
/// blocks, no launch.
template <class... Parameters, class... Arguments>
cudaError_t launch_with_shared(
    void (*kernel)(Parameters...), int64_t blocks, int threads, size_t shared_bytes, const Queue& queue,
    const Arguments&... arguments) {
  if (blocks == 0) return cudaSuccess;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  const DeviceGuard guard(queue.device);
  if (guard.error() != cudaSuccess) return guard.error();
  cudaLaunchConfig_t config{};
  config.gridDim.x = static_cast<unsigned>(blocks);
  config.blockDim.x = static_cast<unsigned>(threads);
  config.dynamicSmemBytes = shared_bytes;
  if (shared_bytes > 48 * 1024) {  // more has to be asked for
    const auto bytes = static_cast<int>(shared_bytes);
    const cudaError_t error = cudaFuncSetAttribute(
        reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error != cudaSuccess) return error;
  }
  config.stream = static_cast<cudaStream_t>(queue.stream);
  return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

template <class... Parameters, class... Arguments>
cudaError_t launch(
    void (*kernel)(Parameters...), int64_t blocks, int threads, const Queue& queue, const Arguments&... arguments) {
  return launch_with_shared(kernel, blocks, threads, 0, queue, arguments...);
}

}  // namespace progdistill::cuda
