#include "group_norm_backward.cuh"
#include "group_norm_forward.cuh"
#include "tensor_chunks.cuh"

namespace progdistill::cuda {
namespace {

/// Calls body(Element{}, width constant) for the dtype, and for vectors where channels and pointers allow.
template <class Body>
int for_element_and_width(const GroupNormSize& size, bool aligned, Body&& body) {
  using Wide = std::integral_constant<int, kWidth>;
  using Narrow = std::integral_constant<int, 1>;
  const bool vectors = aligned && size.channels % kWidth == 0 && size.skip_channels % kWidth == 0;
  if (size.dtype == DType::bfloat16) return vectors ? body(uint16_t{}, Wide{}) : body(uint16_t{}, Narrow{});
  return vectors ? body(float{}, Wide{}) : body(float{}, Narrow{});
}

bool is_valid(const GroupNormSize& size) {
  const int channels = size.all_channels();
  return size.pixels > 0 && size.channels > 0 && channels <= kMostChannels && size.groups > 0 &&
         channels % size.groups == 0 && int64_t{size.pixels} * channels <= INT32_MAX &&
         (size.dtype == DType::float32 || size.dtype == DType::bfloat16);
}

constexpr size_t bytes_of(int64_t floats) { return static_cast<size_t>(floats) * sizeof(float); }

}  // namespace

int64_t group_norm_workspace(const GroupNormSize& size, bool backward) {
  const Chunks chunks(size);
  return backward ? BackwardSums::count(size, chunks) : size.samples * chunks.count * 2 * size.groups;
}

int group_norm_silu(
    const GroupNormSize& size, const GroupNormForward& tensors, float* workspace, const Queue& queue) {
  if (!is_valid(size)) return cudaErrorInvalidValue;
  const Chunks chunks(size);
  const bool aligned = is_aligned(tensors.x) && is_aligned(tensors.skip) && is_aligned(tensors.residual) &&
                       is_aligned(tensors.sum) && is_aligned(tensors.y);
  return for_element_and_width(size, aligned, [&](auto element, auto width) {
    using Element = decltype(element);
    const Grid grid = grid_of<width()>(size);
    const int64_t blocks = size.samples * chunks.count, channels = size.all_channels();
    const cudaError_t error = launch_with_shared(
        group_moments_kernel<Element, width()>, blocks, grid.threads(),
        bytes_of((1 + 2 * grid.rows) * channels), queue, size, tensors, chunks, workspace);
    if (error != cudaSuccess) return error;
    return launch_with_shared(
        group_norm_apply_kernel<Element, width()>, blocks, grid.threads(),
        bytes_of(3 * channels + 2 * size.groups), queue, size, tensors, chunks, static_cast<const float*>(workspace));
  });
}

int group_norm_silu_backward(
    const GroupNormSize& size, const GroupNormBackward& tensors, float* workspace, const Queue& queue) {
  if (!is_valid(size)) return cudaErrorInvalidValue;
  const Chunks chunks(size);
  const BackwardSums sums(workspace, size, chunks);
  const bool aligned = is_aligned(tensors.dy) && is_aligned(tensors.dsum) && is_aligned(tensors.u) &&
                       is_aligned(tensors.skip) && is_aligned(tensors.du) && is_aligned(tensors.dskip);
  return for_element_and_width(size, aligned, [&](auto element, auto width) {
    using Element = decltype(element);
    const Grid grid = grid_of<width()>(size);
    const int64_t blocks = size.samples * chunks.count, rows = grid.rows, channels = size.all_channels();
    cudaError_t error = launch_with_shared(
        group_norm_sums_kernel<Element, width()>, blocks, grid.threads(), bytes_of((3 + 2 * rows) * channels),
        queue, size, tensors, chunks, sums);
    if (error != cudaSuccess) return error;
    const int64_t shared = 5 * channels + 2 * size.groups + (tensors.dshift == nullptr ? 0 : rows * size.channels);
    error = launch_with_shared(
        group_norm_gradient_kernel<Element, width()>, blocks, grid.threads(), bytes_of(shared), queue, size, tensors,
        chunks, sums);
    if (error != cudaSuccess) return error;
    const int64_t shift_blocks =
        tensors.dshift == nullptr ? 0 : (size.samples * size.channels + kThreads - 1) / kThreads;
    return launch(
        group_norm_last_sums_kernel, (size.all_channels() + 31) / 32 + shift_blocks, kThreads, queue, size, tensors,
        chunks, sums);
  });
}

}  // namespace progdistill::cuda
