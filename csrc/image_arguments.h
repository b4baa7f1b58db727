#pragma once

// The tensors of operations on channels_last images, of which there are CUDA kernels only. Checks everything that memory
// safety rests on.

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "channel_values.h"
#include "images.h"
#include "run.h"
#include "tensor.h"

namespace progdistill {

/// Reads the tensors of one call and checks them against its first image. `maybe_...` give null for None. Violations
/// throw ValueError or TypeError.
class ImageArguments {
 public:
  /// `first`, called `name`: (B, C, H, W), float32 or bfloat16.
  ImageArguments(const Run& run, const char* operation, const char* name, pybind11::handle first);

  int64_t samples() const { return samples_; }
  int64_t channels() const { return channels_; }
  int64_t height() const { return height_; }
  int64_t width() const { return width_; }
  DType dtype() const { return dtype_; }

  /// Samples of so many elements are what kernels count in 32 bits; `what` they are made of.
  void check_size(int64_t elements, const std::string& what) const;

  /// (B, channels, H + padding, W + padding) in the first image's dtype, dense in channels_last order.
  void* image(const char* name, pybind11::handle object, int64_t channels, int64_t padding = 0) const;
  void* maybe_image(const char* name, pybind11::handle object, int64_t channels, int64_t padding = 0) const;

  /// Contiguous float32, at least so many numbers.
  float* floats(const char* name, pybind11::handle object, int64_t count) const;
  float* maybe_floats(const char* name, pybind11::handle object, int64_t count) const;

  /// Contiguous (columns,), (1, columns) or (B, columns); float32, or as the first image.
  cuda::ChannelValues values(const char* name, pybind11::handle object, int64_t columns) const;
  cuda::ChannelValues maybe_values(const char* name, pybind11::handle object, int64_t columns) const;

 protected:
  Tensor four_dimensional(const char* name, pybind11::handle object) const;

 private:
  Tensor on_device(const char* name, pybind11::handle object) const;

  const Run& run_;
  std::string first_name_, first_shape_;
  DType dtype_;
  int64_t samples_, channels_, height_, width_;
};

}  // namespace progdistill
