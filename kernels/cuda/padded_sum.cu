#include "padded_sum.h"

#include "columns.cuh"
#include "tensor_chunks.cuh"

namespace progdistill::cuda {
namespace {

/// How a sample's pixels are shared: a thread does kBatch pixels of each of its columns. By the size of a sample alone.
template <class Element, int Width>
struct Blocks {
  Grid grid;
  uint32_t of_sample;

  Blocks(const PaddedSumSize& size, int pixels)
      : grid(size.channels / Width, kThreads), of_sample((pixels + pixels_of_one() - 1) / pixels_of_one()) {}
  PD_HOST_DEVICE uint32_t pixels_of_one() const { return grid.rows * kBatch<Element>; }

  /// body(sample, channel, first pixel) for this thread's columns; its other pixels follow at distances of grid.rows.
  /// Pixels are unsigned, because the last ones may lie beyond the largest sample.
  template <class Body>
  __device__ void for_each_column(Body&& body) const {
    const int64_t sample = blockIdx.x / of_sample;
    const uint32_t begin = blockIdx.x % of_sample * pixels_of_one();
    cuda::for_each_column(grid, [&](int column, int row) { body(sample, column * Width, begin + row); });
  }
};

/// Which pixel of the image lies at a pixel of the padded one; negative: none, but a zero.
__device__ inline int source_of(uint32_t padded_pixel, const PaddedSumSize& size) {
  const int pixel = static_cast<int>(padded_pixel);
  if (size.padding == 0) return pixel;
  const int row = pixel / size.padded_width(), column = pixel - row * size.padded_width();
  return row < size.height && column < size.width ? pixel - row * size.padding : -1;
}

/// Where a pixel of the image lies in the padded one.
__device__ inline int padded_of(uint32_t pixel, const PaddedSumSize& size) {
  return static_cast<int>(pixel) + static_cast<int>(pixel) / size.width * size.padding;
}

/// Numbers of neighbouring channels, by vectors where they lie so.
template <class Element, int Width>
__device__ void take(float (&into)[Width], const Element* from) {
  if (reinterpret_cast<uintptr_t>(from) % 16 == 0) return load_unit(into, from);
#pragma unroll
  for (int i = 0; i < Width; ++i) into[i] = as_state<float>(from[i]);
}

/// The shift of a column; -0 where there is none, for only that changes no number, -0 included.
template <int Width>
__device__ void take(float (&shift)[Width], const ChannelValues& values, int64_t sample, int channel) {
  const int64_t from = sample * values.stride + channel;
  if (values.data == nullptr) {
#pragma unroll
    for (int i = 0; i < Width; ++i) shift[i] = -0.0f;
  } else if (values.is_bfloat16) {
    take(shift, static_cast<const uint16_t*>(values.data) + from);
  } else {
    take(shift, static_cast<const float*>(values.data) + from);
  }
}

template <class Element, int Width>
__device__ Packed<Element, Width> zeros() {
  Packed<Element, Width> none;
#pragma unroll
  for (int i = 0; i < Width; ++i) none.set(i, 0.0f);
  return none;
}

template <class Element, int Width>
__global__ void __launch_bounds__(kThreads, 3) padded_sum_kernel(
    const __grid_constant__ PaddedSumSize size, const __grid_constant__ PaddedSum tensors,
    const __grid_constant__ Blocks<Element, Width> blocks) {
  constexpr int kLoads = kBatch<Element>;
  const uint32_t pixels = size.padded_pixels();
  blocks.for_each_column([&](int64_t sample, int channel, uint32_t first) {
    const auto x = lane<const Element>(tensors.x, sample, size.pixels(), size.channels, channel);
    const auto residual = lane<const Element>(tensors.residual, sample, size.pixels(), size.channels, channel);
    const auto u = lane<Element>(tensors.u, sample, size.pixels(), size.channels, channel);
    const auto padded = lane<Element>(tensors.padded, sample, size.padded_pixels(), size.channels, channel);
    Packed<Element, Width> own[kLoads], other[kLoads];
    int source[kLoads];
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      const uint32_t pixel = first + k * blocks.grid.rows;
      source[k] = pixel < pixels ? source_of(pixel, size) : -1;
      if (source[k] < 0) continue;
      own[k].load(x.at(source[k]));
      if (residual) other[k].load(residual.at(source[k]));
    }
    float shift[Width];
    take(shift, tensors.shift, sample, channel);
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      const uint32_t pixel = first + k * blocks.grid.rows;
      if (pixel >= pixels) break;
      Packed<Element, Width> sum = zeros<Element, Width>();
      if (source[k] >= 0) {
#pragma unroll
        for (int i = 0; i < Width; ++i) sum.set(i, (residual ? own[k][i] + other[k][i] : own[k][i]) + shift[i]);
        if (u) sum.store(u.at(source[k]));
      }
      if (padded) sum.store(padded.at(static_cast<int>(pixel)));
    }
  });
}

template <class Element, int Width>
__global__ void __launch_bounds__(kThreads, 3) padded_sum_gradient_kernel(
    const __grid_constant__ PaddedSumSize size, const __grid_constant__ PaddedSumBackward tensors,
    const __grid_constant__ Blocks<Element, Width> blocks) {
  constexpr int kLoads = kBatch<Element>;
  const uint32_t pixels = size.pixels();
  blocks.for_each_column([&](int64_t sample, int channel, uint32_t first) {
    const auto dsum = lane<const Element>(tensors.dsum, sample, size.pixels(), size.channels, channel);
    const auto dpadded = lane<const Element>(tensors.dpadded, sample, size.padded_pixels(), size.channels, channel);
    const auto du = lane<Element>(tensors.du, sample, size.pixels(), size.channels, channel);
    Packed<Element, Width> own[kLoads], other[kLoads];
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      const uint32_t pixel = first + k * blocks.grid.rows;
      if (pixel >= pixels) break;
      own[k].load(dpadded.at(padded_of(pixel, size)));
      if (dsum) other[k].load(dsum.at(static_cast<int>(pixel)));
    }
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      const uint32_t pixel = first + k * blocks.grid.rows;
      if (pixel >= pixels) break;
      Packed<Element, Width> sum = own[k];
      if (dsum) {
#pragma unroll
        for (int i = 0; i < Width; ++i) sum.set(i, other[k][i] + own[k][i]);
      }
      sum.store(du.at(static_cast<int>(pixel)));
    }
  });
}

bool is_valid(const PaddedSumSize& size) {
  const int64_t padded_pixels = (int64_t{size.height} + size.padding) * (int64_t{size.width} + size.padding);
  return size.height > 0 && size.width > 0 && size.channels > 0 && size.padding >= 0 &&
         padded_pixels * size.channels <= INT32_MAX && (size.dtype == DType::float32 || size.dtype == DType::bfloat16);
}

/// Whether vectors can be moved between all these tensors.
template <class... Data>
bool takes_vectors(const PaddedSumSize& size, Data*... data) {
  return size.channels % kWidth == 0 && (is_aligned(data) && ...);
}

}  // namespace

int padded_sum(const PaddedSumSize& size, const PaddedSum& tensors, const Queue& queue) {
  if (!is_valid(size)) return cudaErrorInvalidValue;
  const bool vectors = takes_vectors(size, tensors.x, tensors.residual, tensors.u, tensors.padded);
  return for_element_and_width(size.dtype, vectors, [&](auto element, auto width) {
    using Element = decltype(element);
    const Blocks<Element, width()> blocks(size, size.padded_pixels());
    return launch(
        padded_sum_kernel<Element, width()>, size.samples * blocks.of_sample, blocks.grid.threads(), queue, size,
        tensors, blocks);
  });
}

int padded_sum_backward(const PaddedSumSize& size, const PaddedSumBackward& tensors, const Queue& queue) {
  if (!is_valid(size)) return cudaErrorInvalidValue;
  const bool vectors = takes_vectors(size, tensors.dsum, tensors.dpadded, tensors.du);
  return for_element_and_width(size.dtype, vectors, [&](auto element, auto width) {
    using Element = decltype(element);
    const Blocks<Element, width()> blocks(size, size.pixels());
    return launch(
        padded_sum_gradient_kernel<Element, width()>, size.samples * blocks.of_sample, blocks.grid.threads(), queue,
        size, tensors, blocks);
  });
}

}  // namespace progdistill::cuda
