#include "group_norm_backward.cuh"
#include "group_norm_backward_once.cuh"
#include "group_norm_forward.cuh"
#include "group_norm_forward_once.cuh"
#include "tensor_chunks.cuh"

namespace progdistill::cuda {
namespace {

/// Calls body(Element{}, width constant) for the dtype, and for vectors where channels and pointers allow.
template <class Body>
int for_element_and_width(const GroupNormSize& size, bool aligned, Body&& body) {
  const bool vectors = aligned && size.channels % kWidth == 0 && size.skip_channels % kWidth == 0;
  return for_element_and_width(size.dtype, vectors, body);
}

bool is_valid(const GroupNormSize& size) {
  const int channels = size.all_channels();
  return size.pixels > 0 && size.channels > 0 && channels <= kMostChannels && size.groups > 0 &&
         channels % size.groups == 0 && int64_t{size.pixels} * channels <= INT32_MAX &&
         (size.dtype == DType::float32 || size.dtype == DType::bfloat16);
}

constexpr size_t bytes_of(int64_t floats) { return static_cast<size_t>(floats) * sizeof(float); }

bool is_aligned_for(const GroupNormForward& tensors) {
  return is_aligned(tensors.x) && is_aligned(tensors.skip) && is_aligned(tensors.residual) &&
         is_aligned(tensors.sum) && is_aligned(tensors.y);
}

bool is_aligned_for(const GroupNormBackward& tensors) {
  return is_aligned(tensors.dy) && is_aligned(tensors.du_bypass) && is_aligned(tensors.dskip_bypass) &&
         is_aligned(tensors.u) && is_aligned(tensors.skip) && is_aligned(tensors.du) && is_aligned(tensors.dskip);
}

/// Tensors of which a block holds a tile.
constexpr int kForwardImages = 1, kBackwardImages = 2;

template <class Element, int Width>
int forward_in_tiles(
    const GroupNormSize& size, const GroupNormForward& tensors, const Tiles& tiles, const Queue& queue) {
  const TileGrid grid(tiles.channels / Width, size.pixels);
  return launch_with_shared(
      group_norm_once_kernel<Element, Width>, size.samples * tiles.count, grid.threads(), tiles.shared_bytes, queue,
      size, tensors, tiles);
}

template <class Element, int Width>
int forward_in_chunks(
    const GroupNormSize& size, const GroupNormForward& tensors, float* workspace, const Queue& queue) {
  const Chunks chunks(size);
  const Grid grid = grid_of<Width>(size);
  const int64_t blocks = size.samples * chunks.count, channels = size.all_channels();
  const cudaError_t error = launch_with_shared(
      group_moments_kernel<Element, Width>, blocks, grid.threads(), bytes_of((1 + 2 * grid.rows) * channels), queue,
      size, tensors, chunks, workspace);
  if (error != cudaSuccess) return error;
  return launch_with_shared(
      group_norm_apply_kernel<Element, Width>, blocks, grid.threads(), bytes_of(3 * channels + 2 * size.groups), queue,
      size, tensors, chunks, static_cast<const float*>(workspace));
}

template <class Element, int Width>
int backward_in_tiles(
    const GroupNormSize& size, const GroupNormBackward& tensors, const Tiles& tiles, float* of_samples,
    const Queue& queue) {
  const TileGrid grid(tiles.channels / Width, size.pixels);
  return launch_with_shared(
      group_norm_gradient_once_kernel<Element, Width>, size.samples * tiles.count, grid.threads(), tiles.shared_bytes,
      queue, size, tensors, tiles, of_samples);
}

template <class Element, int Width>
int backward_in_chunks(
    const GroupNormSize& size, const GroupNormBackward& tensors, const Chunks& chunks, const BackwardSums& sums,
    const Queue& queue) {
  const Grid grid = grid_of<Width>(size);
  const int64_t blocks = size.samples * chunks.count, rows = grid.rows, channels = size.all_channels();
  const cudaError_t error = launch_with_shared(
      group_norm_sums_kernel<Element, Width>, blocks, grid.threads(), bytes_of((3 + 2 * rows) * channels), queue, size,
      tensors, chunks, sums);
  if (error != cudaSuccess) return error;
  const int64_t shared = 5 * channels + (tensors.dshift == nullptr ? 0 : rows * size.channels);
  return launch_with_shared(
      group_norm_gradient_kernel<Element, Width>, blocks, grid.threads(), bytes_of(shared), queue, size, tensors,
      chunks, sums);
}

}  // namespace

int64_t group_norm_workspace(const GroupNormSize& size, bool backward) {
  const Tiles tiles(size, backward ? kBackwardImages : kForwardImages);
  const int chunks = tiles.count > 0 ? 0 : Chunks(size).count;
  return backward ? BackwardSums::count(size, chunks) : size.samples * chunks * 2 * size.groups;
}

int group_norm_silu(
    const GroupNormSize& size, const GroupNormForward& tensors, float* workspace, const Queue& queue) {
  if (!is_valid(size)) return cudaErrorInvalidValue;
  const Tiles tiles(size, kForwardImages);
  return for_element_and_width(size, is_aligned_for(tensors), [&](auto element, auto width) {
    using Element = decltype(element);
    return tiles.count > 0 ? forward_in_tiles<Element, width()>(size, tensors, tiles, queue)
                           : forward_in_chunks<Element, width()>(size, tensors, workspace, queue);
  });
}

int group_norm_silu_backward(
    const GroupNormSize& size, const GroupNormBackward& tensors, float* workspace, const Queue& queue) {
  if (!is_valid(size)) return cudaErrorInvalidValue;
  const Tiles tiles(size, kBackwardImages);
  const bool whole = tiles.count > 0;
  const Chunks chunks(size);
  const BackwardSums sums(workspace, size, whole ? 0 : chunks.count);
  const int error = for_element_and_width(size, is_aligned_for(tensors), [&](auto element, auto width) {
    using Element = decltype(element);
    return whole ? backward_in_tiles<Element, width()>(size, tensors, tiles, sums.of_samples, queue)
                 : backward_in_chunks<Element, width()>(size, tensors, chunks, sums, queue);
  });
  if (error != cudaSuccess) return error;
  const int64_t shifts = whole || tensors.dshift == nullptr ? 0 : size.samples * size.channels;
  return launch(
      group_norm_last_sums_kernel, (size.all_channels() + 31) / 32 + (shifts + kThreads - 1) / kThreads, kThreads,
      queue, size, tensors, chunks, sums);
}

}  // namespace progdistill::cuda
