#include "image_arguments.h"

#include "arguments.h"

namespace py = pybind11;

namespace progdistill {

ImageArguments::ImageArguments(const Run& run, const char* operation, const char* name, py::handle first)
    : run_(run), first_name_(name) {
  if (!run.on_cuda()) throw py::value_error(std::string(operation) + " has no kernel for CPU tensors");
  const Tensor image = four_dimensional(name, first);
  dtype_ = image.dtype();
  if (dtype_ != DType::float32 && dtype_ != DType::bfloat16) {
    throw py::type_error(first_name_ + " is " + text(dtype_) + "; expected float32 or bfloat16");
  }
  first_shape_ = image.shape_text();
  samples_ = image.size(0);
  channels_ = image.size(1);
  height_ = image.size(2);
  width_ = image.size(3);
}

void ImageArguments::check_size(int64_t elements, const std::string& what) const {
  if (elements >= 1 && elements <= INT32_MAX) return;
  throw py::value_error(
      first_name_ + " has shape " + first_shape_ + ", " + what +
      "; the kernels take samples of 1 to 2^31 - 1 elements (backend=\"reference\" takes any)");
}

void* ImageArguments::image(const char* name, py::handle object, int64_t channels, int64_t padding) const {
  const Tensor tensor = four_dimensional(name, object);
  if (tensor.dtype() != dtype_) {
    throw py::type_error(tensor.name() + " is " + text(tensor.dtype()) + ", " + first_name_ + " is " + text(dtype_));
  }
  const int64_t height = height_ + padding, width = width_ + padding;
  const bool fits = tensor.size(0) == samples_ && tensor.size(1) == channels && tensor.size(2) == height &&
                    tensor.size(3) == width;
  if (!fits || !tensor.is_channels_last()) {
    throw py::value_error(
        tensor.name() + " has shape " + tensor.shape_text() + "; expected (" + std::to_string(samples_) + ", " +
        std::to_string(channels) + ", " + std::to_string(height) + ", " + std::to_string(width) +
        "), dense in channels_last order");
  }
  return tensor.data();
}

void* ImageArguments::maybe_image(const char* name, py::handle object, int64_t channels, int64_t padding) const {
  return object.is_none() ? nullptr : image(name, object, channels, padding);
}

float* ImageArguments::floats(const char* name, py::handle object, int64_t count) const {
  const Tensor tensor = on_device(name, object);
  if (tensor.dtype() != DType::float32) {
    throw py::type_error(tensor.name() + " is " + text(tensor.dtype()) + "; expected float32");
  }
  if (tensor.count() < count || !tensor.is_contiguous()) {
    throw py::value_error(
        tensor.name() + " has shape " + tensor.shape_text() + "; expected " + std::to_string(count) +
        " contiguous elements");
  }
  return static_cast<float*>(tensor.data());
}

float* ImageArguments::maybe_floats(const char* name, py::handle object, int64_t count) const {
  return object.is_none() ? nullptr : floats(name, object, count);
}

cuda::ChannelValues ImageArguments::values(const char* name, py::handle object, int64_t columns) const {
  const Tensor tensor = on_device(name, object);
  if (tensor.dtype() != DType::float32 && tensor.dtype() != dtype_) {
    throw py::type_error(tensor.name() + " is " + text(tensor.dtype()) + "; expected float32, or as " + first_name_);
  }
  const int64_t rows = tensor.ndim() == 2 ? tensor.size(0) : 1;
  const bool fits = (tensor.ndim() == 1 || tensor.ndim() == 2) && tensor.size(tensor.ndim() - 1) == columns;
  if (!fits || (rows != 1 && rows != samples_) || !tensor.is_contiguous()) {
    throw py::value_error(
        tensor.name() + " has shape " + tensor.shape_text() + "; expected (1, " + std::to_string(columns) + ") or (" +
        std::to_string(samples_) + ", " + std::to_string(columns) + "), contiguous");
  }
  return {tensor.data(), tensor.dtype() == DType::bfloat16, rows == 1 ? 0 : columns};
}

cuda::ChannelValues ImageArguments::maybe_values(const char* name, py::handle object, int64_t columns) const {
  return object.is_none() ? cuda::ChannelValues{} : values(name, object, columns);
}

Tensor ImageArguments::on_device(const char* name, py::handle object) const {
  Tensor tensor(name, object);
  check_device(tensor, run_.device());
  return tensor;
}

Tensor ImageArguments::four_dimensional(const char* name, py::handle object) const {
  Tensor tensor = on_device(name, object);
  if (tensor.ndim() != 4) {
    throw py::value_error(tensor.name() + " has shape " + tensor.shape_text() + "; expected (B, C, H, W)");
  }
  return tensor;
}

}  // namespace progdistill
