#include "tensor.h"

#include <pybind11/stl.h>

#include <array>
#include <limits>

namespace py = pybind11;

namespace progdistill {
namespace {

const dlpack::ExchangeApi* exchange_api = nullptr;

/// Whether the exchange API was made for objects of this type. Known types are kept (and kept alive): torch.Tensor and
/// Parameter are nearly all that ever comes.
bool speaks_exchange_api(PyTypeObject* type) {
  static std::array<PyTypeObject*, 4> known{};
  static size_t count = 0;
  for (size_t i = 0; i < count; ++i) {
    if (known[i] == type) return true;
  }
  const py::handle handle(reinterpret_cast<PyObject*>(type));
  const py::object capsule = py::getattr(handle, "__dlpack_c_exchange_api__", py::none());
  if (!PyCapsule_IsValid(capsule.ptr(), dlpack::kCapsuleName)) return false;
  if (count < known.size()) {
    Py_INCREF(type);
    known[count++] = type;
  }
  return true;
}

int item_size(DType dtype) { return dtype == DType::bfloat16 ? 2 : dtype == DType::float32 ? 4 : 8; }

}  // namespace

void set_dlpack_exchange_api(py::capsule capsule) {
  if (!PyCapsule_IsValid(capsule.ptr(), dlpack::kCapsuleName)) {
    throw py::value_error("expected torch.Tensor.__dlpack_c_exchange_api__, a capsule named dlpack_exchange_api");
  }
  auto* api = static_cast<dlpack::ExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), dlpack::kCapsuleName));
  while (api != nullptr && api->major != dlpack::kMajorVersion) api = api->older;
  if (api == nullptr || api->tensor_from_object == nullptr) {
    throw py::value_error("this torch offers no DLPack exchange API of version 1 that lends tensors");
  }
  capsule.inc_ref();  // the table must outlive every call
  exchange_api = api;
}

void* current_stream(int32_t device_type, int32_t device_index) {
  if (exchange_api == nullptr) throw std::runtime_error("no exchange API: pass the stream's pointer");
  void* stream = nullptr;
  if (exchange_api->current_work_stream(device_type, device_index, &stream) != 0) throw py::error_already_set();
  return stream;
}

Tensor::Tensor(std::string name, py::handle object) : name_(std::move(name)) {
  if (PyTuple_Check(object.ptr())) {
    read_description(py::reinterpret_borrow<py::tuple>(object));
  } else {
    read_tensor(object);
  }
  check_memory();
}

void Tensor::read_tensor(py::handle object) {
  if (exchange_api == nullptr || !speaks_exchange_api(Py_TYPE(object.ptr()))) {
    throw py::type_error(
        name_ + " is " + std::string(py::str(py::type::of(object))) +
        "; expected a torch.Tensor or a tuple (data pointer, shape, strides, (dtype code, bits))");
  }
  dlpack::Tensor borrowed{};
  if (exchange_api->tensor_from_object(object.ptr(), &borrowed) != 0) throw py::error_already_set();
  data_ = static_cast<char*>(borrowed.data) + borrowed.byte_offset;
  ndim_ = borrowed.ndim;
  shape_ = borrowed.shape;
  strides_ = borrowed.strides;
  device_ = borrowed.device;
  if (strides_ == nullptr && ndim_ > 0) throw py::value_error(name_ + " comes without strides");
  set_dtype(borrowed.dtype);
}

void Tensor::read_description(const py::tuple& description) {
  if (description.size() != 4 && description.size() != 5) {
    throw py::type_error(name_ + " must be described by (data pointer, shape, strides, (dtype code, bits)[, owner])");
  }
  const auto shape = description[1].cast<std::vector<int64_t>>();
  const auto strides = description[2].cast<std::vector<int64_t>>();
  const auto dtype = description[3].cast<std::pair<uint8_t, uint8_t>>();
  if (shape.size() != strides.size()) {
    throw py::value_error(
        name_ + " is described by " + std::to_string(shape.size()) + " sizes but " + std::to_string(strides.size()) +
        " strides");
  }
  data_ = reinterpret_cast<void*>(description[0].cast<uintptr_t>());
  ndim_ = static_cast<int>(shape.size());
  is_description_ = true;
  owned_ = shape;
  owned_.insert(owned_.end(), strides.begin(), strides.end());
  shape_ = owned_.data();
  strides_ = owned_.data() + ndim_;
  set_dtype({dtype.first, dtype.second, 1});
}

void Tensor::set_dtype(dlpack::DataType dtype) {
  const auto is = [&](int code, int bits) { return dtype.code == code && dtype.bits == bits && dtype.lanes == 1; };
  if (is(dlpack::kFloat, 32)) {
    dtype_ = DType::float32;
  } else if (is(dlpack::kFloat, 64)) {
    dtype_ = DType::float64;
  } else if (is(dlpack::kBfloat, 16)) {
    dtype_ = DType::bfloat16;
  } else if (is(dlpack::kInt, 64)) {
    dtype_ = DType::int64;
  } else {
    throw py::type_error(
        name_ + " has DLPack dtype code " + std::to_string(dtype.code) + " with " + std::to_string(dtype.bits) +
        " bits; operations take float32, float64, bfloat16 and int64");
  }
}

void Tensor::check_memory() {
  for (int dim = 0; dim < ndim_; ++dim) {
    if (shape_[dim] < 0) throw py::value_error(name_ + " has a negative size: " + shape_text());
    if (__builtin_mul_overflow(count_, shape_[dim], &count_)) {
      throw py::value_error(name_ + " has more elements than fit 64 bits: " + shape_text());
    }
  }
  if (count_ == 0) return;
  if (count_ > std::numeric_limits<int64_t>::max() / item_size(dtype_)) {
    throw py::value_error(name_ + " has more bytes than fit 64 bits: " + shape_text());
  }
  if (data_ == nullptr) throw py::value_error(name_ + " has no memory (is it a fake or meta tensor?)");
  if (reinterpret_cast<uintptr_t>(data_) % item_size(dtype_) != 0) {
    throw py::value_error(name_ + " is not aligned to its elements; pass " + name_ + ".clone()");
  }
}

int64_t Tensor::bytes() const { return count_ * item_size(dtype_); }

std::string Tensor::shape_text() const {
  std::string result = "(";
  for (int dim = 0; dim < ndim_; ++dim) result += (dim ? ", " : "") + std::to_string(shape_[dim]);
  return result + (ndim_ == 1 ? ",)" : ")");
}

bool Tensor::is_contiguous() const {
  return is_dense([this](int i) { return ndim_ - 1 - i; });
}

bool Tensor::is_channels_last() const {
  return (ndim_ == 4 || ndim_ == 5) && is_dense([this](int i) {
    return i == 0 ? 1 : i == ndim_ - 1 ? 0 : ndim_ - i;
  });
}

/// `dim_of(i)` names the dimension that runs i-th fastest.
template <class DimOf>
bool Tensor::is_dense(DimOf dim_of) const {
  if (count_ == 0) return true;
  int64_t expected = 1;
  for (int i = 0; i < ndim_; ++i) {
    const int dim = dim_of(i);
    if (shape_[dim] != 1 && strides_[dim] != expected) return false;
    expected *= shape_[dim];
  }
  return true;
}

std::string text(DType dtype) {
  switch (dtype) {
    case DType::float32:
      return "float32";
    case DType::float64:
      return "float64";
    case DType::bfloat16:
      return "bfloat16";
    default:
      return "int64";
  }
}

std::string text(dlpack::Device device) {
  const std::string index = ":" + std::to_string(device.index);
  switch (device.type) {
    case dlpack::kCpu:
      return "the CPU";
    case dlpack::kCuda:
      return "cuda" + index;
    default:
      return "DLPack device " + std::to_string(device.type) + index;
  }
}

}  // namespace progdistill
