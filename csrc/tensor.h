#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <vector>

#include "dlpack_abi.h"
#include "images.h"

namespace progdistill {

/// Takes torch.Tensor's exchange API, through which tensors are read from now on.
/// Throws ValueError for a capsule of another kind or an unknown ABI version.
void set_dlpack_exchange_api(pybind11::capsule capsule);

/// The stream that torch currently works on; throws RuntimeError where no exchange API has been set.
void* current_stream(int32_t device_type, int32_t device_index);

/// An argument: a torch tensor, or a description (data pointer, shape, strides, (dtype code, bits)), in whose tuple
/// the memory's owner may follow. It borrows memory, shape and strides: use it within the call, and shape and strides
/// only under the GIL.
class Tensor {
 public:
  /// Throws TypeError for anything that is neither, and for dtypes that no operation takes.
  Tensor(std::string name, pybind11::handle object);
  Tensor(const Tensor&) = delete;
  Tensor(Tensor&&) = default;

  const std::string& name() const { return name_; }
  void* data() const { return data_; }
  DType dtype() const { return dtype_; }
  int ndim() const { return ndim_; }
  int64_t size(int dim) const { return shape_[dim]; }
  int64_t stride(int dim) const { return strides_[dim]; }
  int64_t count() const { return count_; }
  int64_t bytes() const;
  dlpack::Device device() const { return device_; }
  bool is_description() const { return is_description_; }
  std::string shape_text() const;

  bool is_contiguous() const;
  /// Dense with the channels (dimension 1 of 4 or 5) running fastest.
  bool is_channels_last() const;

 private:
  void read_tensor(pybind11::handle object);
  void read_description(const pybind11::tuple& description);
  void set_dtype(dlpack::DataType dtype);
  void check_memory();
  template <class DimOf>
  bool is_dense(DimOf dim_of) const;

  std::string name_;
  void* data_ = nullptr;
  DType dtype_ = DType::float32;
  int ndim_ = 0;
  const int64_t* shape_ = nullptr;
  const int64_t* strides_ = nullptr;
  int64_t count_ = 1;
  dlpack::Device device_{dlpack::kCpu, 0};
  bool is_description_ = false;
  std::vector<int64_t> owned_;  // a description's shape and strides
};

std::string text(DType dtype);
std::string text(dlpack::Device device);

}  // namespace progdistill
