#include "arguments.h"

#include <algorithm>

#include "block.h"
#include "huge_pages.h"

namespace py = pybind11;

namespace progdistill {

Prediction prediction_of(int index, const char* name) {
  if (index < 0 || index >= kPredictions) {
    throw py::value_error(std::string(name) + " is " + std::to_string(index) + "; expected 0 to 3");
  }
  return static_cast<Prediction>(index);
}

Weighting weighting_of(int index) {
  if (index < 0 || index >= kWeightings) {
    throw py::value_error("weighting is " + std::to_string(index) + "; expected 0 to 4");
  }
  return static_cast<Weighting>(index);
}

LossType loss_type_of(int index) {
  if (index < 0 || index >= kLossTypes) {
    throw py::value_error("loss_type is " + std::to_string(index) + "; expected 0 to 2");
  }
  return static_cast<LossType>(index);
}

void check_device(const Tensor& tensor, dlpack::Device device) {
  if (tensor.is_description()) return;
  dlpack::Device own = tensor.device();
  if (own.type == dlpack::kPinnedByCuda) own = {dlpack::kCpu, 0};
  if (own.type != device.type || own.index != device.index) {
    throw py::value_error(
        tensor.name() + " is on " + text(own) + "; expected " + text(device) + ", like the other arguments");
  }
}

const Tensor& Arguments::keep(std::string name, py::handle object) {
  const Tensor& tensor = tensors_.emplace_back(std::move(name), object);
  check_device(tensor, device_);
  return tensor;
}

const Tensor& Arguments::keep_image(std::string name, py::handle object) {
  const Tensor& tensor = keep(std::move(name), object);
  images_.push_back(&tensor);
  return tensor;
}

bool Arguments::fits_state(const Tensor& tensor, int heads) const {
  if (tensor.ndim() != state_->ndim()) return false;
  for (int dim = 0; dim < tensor.ndim(); ++dim) {
    if (tensor.size(dim) != (dim == 1 ? heads : 1) * state_->size(dim)) return false;
  }
  return true;
}

const Tensor& Arguments::state(const char* name, py::handle object) {
  const Tensor& tensor = keep_image(name, object);
  if (tensor.dtype() != DType::float32 && tensor.dtype() != DType::float64) {
    throw py::type_error(tensor.name() + " is " + text(tensor.dtype()) + "; states are float32 or float64");
  }
  if (tensor.ndim() < 2) {
    throw py::value_error(tensor.name() + " has shape " + tensor.shape_text() + "; expected (B, C, ...)");
  }
  if (state_ == nullptr) {
    state_ = &tensor;
    return tensor;
  }
  if (tensor.dtype() != state_->dtype()) {
    throw py::type_error(
        tensor.name() + " is " + text(tensor.dtype()) + ", " + state_->name() + " is " + text(state_->dtype()));
  }
  if (!fits_state(tensor, 1)) {
    throw py::value_error(
        tensor.name() + " has shape " + tensor.shape_text() + ", " + state_->name() + " has " + state_->shape_text());
  }
  return tensor;
}

const Tensor& Arguments::output(std::string name, py::handle object, int heads) {
  const Tensor& tensor = keep_image(std::move(name), object);
  interleaved_ |= heads > 1;
  if (!fits_state(tensor, heads)) {
    throw py::value_error(
        tensor.name() + " has shape " + tensor.shape_text() + "; with " + std::to_string(heads) +
        " head(s) it must fit " + state_->name() + " of shape " + state_->shape_text());
  }
  const bool half = tensor.dtype() == DType::bfloat16 && state_->dtype() == DType::float32;
  if (tensor.dtype() != state_->dtype() && !half) {
    throw py::type_error(
        tensor.name() + " is " + text(tensor.dtype()) + "; beside a " + text(state_->dtype()) +
        " state outputs have its dtype, or bfloat16 beside float32");
  }
  return tensor;
}

const Tensor& Arguments::array(const char* name, py::handle object, DType dtype) {
  const Tensor& tensor = keep(name, object);
  if (tensor.dtype() != dtype) {
    throw py::type_error(tensor.name() + " is " + text(tensor.dtype()) + "; expected " + text(dtype));
  }
  if (!tensor.is_contiguous()) {
    throw py::value_error(tensor.name() + " has shape " + tensor.shape_text() + "; it must be contiguous");
  }
  return tensor;
}

void* Arguments::loss(const char* name, py::handle object) {
  const Tensor& tensor = keep(name, object);
  if (tensor.dtype() != state_->dtype()) {
    throw py::type_error(tensor.name() + " is " + text(tensor.dtype()) + "; expected " + text(state_->dtype()));
  }
  if (tensor.ndim() != 1 || tensor.size(0) != state_->size(0) || !tensor.is_contiguous()) {
    throw py::value_error(
        tensor.name() + " has shape " + tensor.shape_text() + "; expected a contiguous one of shape (" +
        std::to_string(state_->size(0)) + ",)");
  }
  return tensor.data();
}

const double* Arguments::angles(const char* name, py::handle object, std::optional<int64_t> rows) {
  const Tensor& tensor = keep(name, object);
  if (tensor.dtype() != DType::float64) {
    throw py::type_error(tensor.name() + " is " + text(tensor.dtype()) + "; angles are float64");
  }
  const int64_t samples = state_->size(0);
  const bool fits = rows ? tensor.ndim() == 2 && tensor.size(0) == *rows && tensor.size(1) == samples
                         : tensor.ndim() == 1 && tensor.size(0) == samples;
  if (!fits || !tensor.is_contiguous()) {
    throw py::value_error(
        tensor.name() + " has shape " + tensor.shape_text() + "; expected contiguous angles of shape (" +
        (rows ? std::to_string(*rows) + ", " : "") + std::to_string(samples) + (rows ? ")" : ",)"));
  }
  return static_cast<const double*>(tensor.data());
}

Sink Arguments::sink(const Tensor& tensor, int heads) const {
  if (device_.type == dlpack::kCpu) prefer_huge_pages(tensor.data(), tensor.bytes());
  return {tensor.data(), tensor.dtype(), heads};
}

Layout Arguments::layout() const {
  const auto all = [&](auto is) { return std::all_of(images_.begin(), images_.end(), is); };
  const bool contiguous = all([](const Tensor* tensor) { return tensor->is_contiguous(); });
  if (!contiguous && !all([](const Tensor* tensor) { return tensor->is_channels_last(); })) {
    throw py::value_error(
        "states and outputs must be dense in one common order, contiguous or channels_last; pass "
        "tensor.contiguous(memory_format=...)");
  }
  if (!contiguous && interleaved_ && device_.type == dlpack::kCpu && state_->size(1) > kBlock) {
    throw py::value_error(
        "two-headed outputs in channels_last order have " + std::to_string(state_->size(1)) + " channels a head; the C++ "
        "kernels take " + std::to_string(kBlock) + " at most: pass contiguous tensors");
  }
  const int64_t samples = state_->size(0), elements = samples > 0 ? state_->count() / samples : 0;
  return {samples, elements, state_->size(1), !contiguous, state_->dtype()};
}

}  // namespace progdistill
