#pragma once

#include <cuda_runtime.h>

#include <cstdint>

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

inline bool is_aligned_16(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

/// 16 bytes of T. They move as one uint4: a struct of smaller members would be loaded piece by piece.
template <class T>
struct Vector {
  static constexpr int kSize = 16 / sizeof(T);
  union {
    uint4 whole;
    T part[kSize];
  };
};

}  // namespace progdistill::cuda
