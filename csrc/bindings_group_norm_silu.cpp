#include "bindings_group_norm_silu.h"

#include "group_norm.h"
#include "image_arguments.h"
#include "run.h"

namespace py = pybind11;

namespace progdistill {
namespace {

using cuda::GroupNormSize;

/// The tensors of one call, checked against its x and skip.
class NormArguments : public ImageArguments {
 public:
  NormArguments(const Run& run, py::handle x, py::handle skip, int64_t groups, int tile_bytes)
      : ImageArguments(run, "group_norm_silu", "x", x) {
    const int64_t others = skip.is_none() ? 0 : four_dimensional("skip", skip).size(1), all = channels() + others;
    if (channels() < 1 || all > cuda::kMostChannels) {
      throw py::value_error(
          "x has " + std::to_string(channels()) + " channels, skip " + std::to_string(others) +
          "; the kernels take 1 to " + std::to_string(cuda::kMostChannels) + " in all (backend=\"reference\" takes any number)");
    }
    if (groups < 1 || all % groups != 0) {
      throw py::value_error(
          "groups is " + std::to_string(groups) + ", which does not divide the " + std::to_string(all) + " channels");
    }
    check_size(all * height() * width(), std::to_string(all) + " channels with skip");
    size_ = {samples(), static_cast<int>(height() * width()), static_cast<int>(channels()), static_cast<int>(others),
             static_cast<int>(groups), dtype(), tile_bytes};
  }

  const GroupNormSize& size() const { return size_; }

 private:
  GroupNormSize size_{};
};

int64_t workspace_size(const GroupNormSize& size, bool backward) {
  if constexpr (kHasCuda) return cuda::group_norm_workspace(size, backward);
  throw std::runtime_error("the extension was built without CUDA kernels");
}

int64_t call_workspace(
    py::handle x, py::handle skip, int64_t groups, bool backward, int tile_bytes, py::handle how) {
  const Run run(how, x);
  return workspace_size(NormArguments(run, x, skip, groups, tile_bytes).size(), backward);
}

void call_forward(
    py::handle y, py::handle sum, py::handle mean, py::handle rstd, py::handle x, py::handle skip, py::handle residual,
    py::handle shift, py::handle weight, py::handle bias, py::handle scale_shift, int64_t groups, double eps, bool silu,
    int tile_bytes, py::handle workspace, py::handle how) {
  const Run run(how, x);
  const NormArguments arguments(run, x, skip, groups, tile_bytes);
  const GroupNormSize& size = arguments.size();
  const int64_t all = size.all_channels();
  cuda::GroupNormForward tensors{};
  tensors.y = arguments.image("y", y, all);
  tensors.mean = arguments.floats("mean", mean, size.samples * groups);
  tensors.rstd = arguments.floats("rstd", rstd, size.samples * groups);
  tensors.x = arguments.image("x", x, size.channels);
  tensors.skip = arguments.maybe_image("skip", skip, size.skip_channels);
  tensors.residual = arguments.maybe_image("residual", residual, size.channels);
  const bool needs_sum = tensors.residual != nullptr;
  tensors.sum = needs_sum ? arguments.image("sum", sum, size.channels)
                          : arguments.maybe_image("sum", sum, size.channels);
  tensors.shift = arguments.maybe_values("shift", shift, size.channels);
  tensors.weight = arguments.values("weight", weight, all);
  tensors.bias = arguments.values("bias", bias, all);
  tensors.scale_shift = arguments.maybe_values("scale_shift", scale_shift, 2 * all);
  tensors.eps = static_cast<float>(eps);
  tensors.silu = silu;
  float* const room = arguments.floats("workspace", workspace, workspace_size(size, false));
  if constexpr (kHasCuda) {
    raise_if_failed(cuda::group_norm_silu(size, tensors, room, run.queue()), "group_norm_silu");
  }
}

void call_backward(
    py::handle du, py::handle dskip, py::handle dweight, py::handle dbias, py::handle dshift, py::handle dscale_shift,
    py::handle dy, py::handle du_bypass, py::handle dskip_bypass, py::handle u, py::handle skip, py::handle shift,
    py::handle weight, py::handle bias, py::handle scale_shift, py::handle mean, py::handle rstd, int64_t groups,
    bool silu, int tile_bytes, py::handle workspace, py::handle how) {
  const Run run(how, u);
  const NormArguments arguments(run, u, skip, groups, tile_bytes);
  const GroupNormSize& size = arguments.size();
  const int64_t all = size.all_channels();
  cuda::GroupNormBackward tensors{};
  tensors.du = arguments.image("du", du, size.channels);
  tensors.dweight = arguments.floats("dweight", dweight, all);
  tensors.dbias = arguments.floats("dbias", dbias, all);
  tensors.dshift = arguments.maybe_floats("dshift", dshift, size.samples * size.channels);
  tensors.dy = arguments.image("dy", dy, all);
  tensors.du_bypass = arguments.maybe_image("du_bypass", du_bypass, size.channels);
  tensors.dskip_bypass = arguments.maybe_image("dskip_bypass", dskip_bypass, size.skip_channels);
  tensors.u = arguments.image("u", u, size.channels);
  tensors.skip = arguments.maybe_image("skip", skip, size.skip_channels);
  if (tensors.skip != nullptr) tensors.dskip = arguments.image("dskip", dskip, size.skip_channels);
  tensors.shift = arguments.maybe_values("shift", shift, size.channels);
  tensors.weight = arguments.values("weight", weight, all);
  tensors.bias = arguments.values("bias", bias, all);
  tensors.scale_shift = arguments.maybe_values("scale_shift", scale_shift, 2 * all);
  if (tensors.scale_shift.data != nullptr) {
    tensors.dscale_shift = arguments.floats("dscale_shift", dscale_shift, size.samples * 2 * all);
  }
  tensors.mean = arguments.floats("mean", mean, size.samples * groups);
  tensors.rstd = arguments.floats("rstd", rstd, size.samples * groups);
  tensors.silu = silu;
  float* const room = arguments.floats("workspace", workspace, workspace_size(size, true));
  if constexpr (kHasCuda) {
    raise_if_failed(cuda::group_norm_silu_backward(size, tensors, room, run.queue()), "group_norm_silu_backward");
  }
}

}  // namespace

void bind_group_norm_silu(py::module_& module) {
  module.def("group_norm_workspace", &call_workspace);
  module.def("group_norm_silu", &call_forward);
  module.def("group_norm_silu_backward", &call_backward);
}

}  // namespace progdistill
