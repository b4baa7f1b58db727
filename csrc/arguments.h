#pragma once

// Turns Python arguments into what the kernels take, and checks everything that memory safety rests on. Values (angles
// in range, finite coefficients) are Python's affair: wrong ones give wrong numbers, not wrong accesses.

#include <pybind11/pybind11.h>

#include <deque>
#include <optional>

#include "images.h"
#include "objective.h"
#include "tensor.h"

namespace progdistill {

/// Throw ValueError for numbers that name nothing.
Prediction prediction_of(int index, const char* name);
Weighting weighting_of(int index);
LossType loss_type_of(int index);

/// Throws ValueError for a tensor that is elsewhere; descriptions do not say where they are.
void check_device(const Tensor& tensor, dlpack::Device device);

/// The tensors of one call: each method reads an argument and checks it against the first state; `layout` then finds
/// the one dense order that all images share. Violations throw ValueError or TypeError.
class Arguments {
 public:
  /// Descriptions are taken to be on that device: they do not say.
  explicit Arguments(dlpack::Device device = {dlpack::kCpu, 0}) : device_(device) {}

  /// float32 or float64 of shape (B, C, ...); later ones must agree with the first.
  const Tensor& state(const char* name, pybind11::handle object);
  /// The state's batch and image size, its channels once for each head; its dtype, or bfloat16 beside float32.
  const Tensor& output(std::string name, pybind11::handle object, int heads);
  /// Contiguous and of that dtype; its shape is the caller's affair.
  const Tensor& array(const char* name, pybind11::handle object, DType dtype);
  /// (B,) in the state's dtype.
  void* loss(const char* name, pybind11::handle object);
  /// float64 of shape (B,), or (rows, B).
  const double* angles(const char* name, pybind11::handle object, std::optional<int64_t> rows = std::nullopt);

  /// A result, of which nothing has been written yet.
  Sink sink(const Tensor& tensor, int heads = 1) const;

  Layout layout() const;
  const Tensor& first_state() const { return *state_; }

 private:
  const Tensor& keep(std::string name, pybind11::handle object);
  const Tensor& keep_image(std::string name, pybind11::handle object);
  bool fits_state(const Tensor& tensor, int heads) const;

  dlpack::Device device_;
  std::deque<Tensor> tensors_;
  std::vector<const Tensor*> images_;
  const Tensor* state_ = nullptr;
  bool interleaved_ = false;  // in channels_last order: an output has two heads
};

inline Source source(const Tensor& tensor, int heads = 1) { return {tensor.data(), tensor.dtype(), heads}; }

}  // namespace progdistill
