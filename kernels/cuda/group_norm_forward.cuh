#pragma once

// Two passes over the images: each chunk's mean and sum of squared deviations of every group, and then, with those of
// all chunks merged, the normalised images. Sums are shifted by a number of their own set, which is never much further
// from the mean than the deviation: nothing cancels, however large the mean.

#include "group_norm_chunks.cuh"

namespace progdistill::cuda {

/// Mean and sum of squared deviations of a set of numbers, from such of its parts. `first` is a part's mean.
struct Merged {
  float first, count = 0.0f, sum = 0.0f, square = 0.0f;

  __device__ explicit Merged(float first) : first(first) {}
  __device__ void add(float count_of_part, float mean, float deviations) {
    const float away = mean - first;
    count += count_of_part;
    sum = fused(count_of_part, away, sum);
    square += fused(count_of_part * away, away, deviations);
  }
  __device__ float mean() const { return first + sum / count; }
  __device__ float deviations() const {
    const float left = square - sum * (sum / count);
    return left > 0.0f ? left : 0.0f;
  }
};

/// The same for single numbers of `Width` channels at once.
template <int Width>
struct Moments {
  float first[Width], sum[Width], square[Width];
  int count = 0;

  __device__ void add(const float (&value)[Width]) {
    if (count++ == 0) {
#pragma unroll
      for (int i = 0; i < Width; ++i) {
        first[i] = value[i];
        sum[i] = square[i] = 0.0f;
      }
      return;
    }
#pragma unroll
    for (int i = 0; i < Width; ++i) {
      const float away = value[i] - first[i];
      sum[i] += away;
      square[i] = fused(away, away, square[i]);
    }
  }
  __device__ float mean(int i) const { return first[i] + sum[i] / static_cast<float>(count); }
  __device__ float deviations(int i) const {
    const float left = square[i] - sum[i] * (sum[i] / static_cast<float>(count));
    return left > 0.0f ? left : 0.0f;
  }
};

/// A column of u: read, summed where there is a residual, then written as rounded.
template <class Element, int Width>
struct Summed {
  Lane<const Element> x, residual;
  Lane<Element> sum;
  float shift[Width] = {};

  __device__ Summed(const GroupNormSize& size, const GroupNormForward& tensors, int64_t sample, int channel)
      : x(lane<const Element>(tensors.x, tensors.skip, size, sample, channel)), residual{}, sum{} {
    if (channel >= size.channels) return;
    residual = lane<const Element>(tensors.residual, size, sample, size.channels, channel);
    sum = lane<Element>(tensors.sum, size, sample, size.channels, channel);
    if (tensors.shift.data != nullptr) read(shift, tensors.shift, sample, channel);
  }

  /// Adds this thread's pixels of [begin, end).
  __device__ void add_to(Moments<Width>& moments, int64_t begin, int64_t end, int rows) const {
    constexpr int kLoads = kBatch<Element>;
    for (int64_t from = begin; from < end; from += kLoads * rows) {
      Packed<Element, Width> own[kLoads], other[kLoads];
#pragma unroll
      for (int k = 0; k < kLoads; ++k) {
        if (from + k * rows < end) own[k].load(x.at(from + k * rows));
      }
      if (residual) {
#pragma unroll
        for (int k = 0; k < kLoads; ++k) {
          if (from + k * rows < end) other[k].load(residual.at(from + k * rows));
        }
      }
#pragma unroll
      for (int k = 0; k < kLoads; ++k) {
        if (from + k * rows < end) add_pixel(moments, own[k], other[k], from + k * rows);
      }
    }
  }

 private:
  using Pixel = Packed<Element, Width>;

  __device__ void add_pixel(Moments<Width>& moments, const Pixel& own, const Pixel& other, int64_t pixel) const {
    float value[Width];
#pragma unroll
    for (int i = 0; i < Width; ++i) value[i] = (residual ? own[i] + other[i] : own[i]) + shift[i];
    if (residual) {
      store_unit(sum.at(pixel), value);
#pragma unroll
      for (int i = 0; i < Width; ++i) value[i] = as_state<float>(as_element<Element>(value[i]));
    }
    moments.add(value);
  }
};

/// partials: (samples, chunks, 2, groups), a chunk's means and then its sums of squared deviations.
template <class Element, int Width>
__global__ void __launch_bounds__(kThreads) group_moments_kernel(
    const __grid_constant__ GroupNormSize size, const __grid_constant__ GroupNormForward tensors,
    const __grid_constant__ Chunks chunks, float* __restrict__ partials) {
  const Chunk chunk(chunks, size);
  const Grid grid = grid_of<Width>(size);
  const int channels = size.all_channels();
  float* const means = dynamic_shared();                       // of each row and channel, then of each channel
  float* const deviations = means + grid.rows * channels;
  for_each_column(grid, [&](int column, int row) {
    Moments<Width> moments;
    const Summed<Element, Width> summed(size, tensors, chunk.sample, column * Width);
    summed.add_to(moments, chunk.begin + row, chunk.end, grid.rows);
#pragma unroll
    for (int i = 0; i < Width; ++i) {
      if (moments.count == 0) break;
      means[row * channels + column * Width + i] = moments.mean(i);
      deviations[row * channels + column * Width + i] = moments.deviations(i);
    }
  });
  __syncthreads();
  const int64_t pixels = chunk.end - chunk.begin;
  for_each(channels, [&](int channel) {
    Merged merged(means[channel]);
    for (int row = 0; row < grid.rows && row < pixels; ++row) {
      const int64_t count = (pixels - row + grid.rows - 1) / grid.rows;
      merged.add(static_cast<float>(count), means[row * channels + channel], deviations[row * channels + channel]);
    }
    means[channel] = merged.mean();
    deviations[channel] = merged.deviations();
  });
  __syncthreads();
  float* const own = partials + blockIdx.x * int64_t{2} * size.groups;
  const int of_group = channels / size.groups;
  for_each(size.groups, [&](int group) {
    Merged merged(means[group * of_group]);
    for (int channel = group * of_group; channel < (group + 1) * of_group; ++channel) {
      merged.add(static_cast<float>(pixels), means[channel], deviations[channel]);
    }
    own[group] = merged.mean();
    own[size.groups + group] = merged.deviations();
  });
}

/// mean and rstd of a sample's groups from its chunks.
__device__ inline void merge_chunks(
    float* mean, float* rstd, const GroupNormSize& size, const Chunks& chunks, const float* partials, float eps) {
  const int of_group = size.all_channels() / size.groups;
  for_each(size.groups, [&](int group) {
    Merged merged(partials[group]);
#pragma unroll 4
    for (int64_t chunk = 0; chunk < chunks.count; ++chunk) {
      const float* const part = partials + chunk * 2 * size.groups + group;
      merged.add(static_cast<float>(chunks.pixels_of(chunk, size) * of_group), part[0], part[size.groups]);
    }
    mean[group] = merged.mean();
    rstd[group] = 1.0f / square_root(merged.deviations() / merged.count + eps);
  });
}

/// Writes y in a column.
template <class Element, int Width>
__device__ void apply_column(
    const Lane<const Element>& u, const Lane<Element>& y, const Affine<Width>& affine, bool silu, int64_t begin,
    int64_t end, int rows) {
  constexpr int kLoads = kBatch<Element>;
  for (int64_t from = begin; from < end; from += kLoads * rows) {
    Packed<Element, Width> own[kLoads];
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      if (from + k * rows < end) own[k].load(u.at(from + k * rows));
    }
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      if (from + k * rows >= end) break;
      float value[Width];
#pragma unroll
      for (int i = 0; i < Width; ++i) {
        value[i] = fused(own[k][i] + affine.offset[i], affine.gain[i], affine.bias[i]);
        if (silu) value[i] *= sigmoid<Element>(value[i]);
      }
      store_unit(y.at(from + k * rows), value);
    }
  }
}

template <class Element, int Width>
__global__ void __launch_bounds__(kThreads, 4) group_norm_apply_kernel(
    const __grid_constant__ GroupNormSize size, const __grid_constant__ GroupNormForward tensors,
    const __grid_constant__ Chunks chunks, const float* __restrict__ partials) {
  const Chunk chunk(chunks, size);
  const Grid grid = grid_of<Width>(size);
  float* const mean = dynamic_shared();
  float* const rstd = mean + size.groups;
  merge_chunks(mean, rstd, size, chunks, partials + chunk.sample * chunks.count * 2 * size.groups, tensors.eps);
  __syncthreads();
  if (chunk.index == 0) {
    for_each(size.groups, [&](int group) {
      tensors.mean[chunk.sample * size.groups + group] = mean[group];
      tensors.rstd[chunk.sample * size.groups + group] = rstd[group];
    });
  }
  const bool has_sum = tensors.residual != nullptr;
  const ChannelValues shift = has_sum ? ChannelValues{} : tensors.shift;
  for_each_column(grid, [&](int column, int row) {
    const int channel = column * Width;
    const Affine<Width> affine(tensors, size, shift, mean, rstd, chunk.sample, channel);
    const void* const x = has_sum ? tensors.sum : tensors.x;
    apply_column(
        lane<const Element>(x, tensors.skip, size, chunk.sample, channel),
        lane<Element>(tensors.y, size, chunk.sample, size.all_channels(), channel), affine, tensors.silu,
        chunk.begin + row, chunk.end, grid.rows);
  });
}

}  // namespace progdistill::cuda
