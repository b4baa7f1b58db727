#pragma once

// Two passes over the images: each chunk's mean and sum of squared deviations of every group, and then, with those of
// all chunks merged, the normalised images.

#include "group_norm_moments.cuh"

namespace progdistill::cuda {

/// Adds this thread's pixels of [begin, end) in a column whose sum is not written.
template <class Element, int Width>
__device__ void add_column(
    Moments<Width>& moments, const Lane<const Element>& x, const float (&shift)[Width], int begin, int end, int rows) {
  constexpr int kLoads = kBatch<Element>;
  Packed<Element, Width> own[kLoads];
  own[0].load(x.at(begin));
#pragma unroll
  for (int i = 0; i < Width; ++i) moments.first[i] = own[0][i] + shift[i];
  for (int from = begin; from < end; from += kLoads * rows) {
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      if (from + k * rows < end) own[k].load(x.at(from + k * rows));
    }
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      if (from + k * rows >= end) break;
      float u[Width];
#pragma unroll
      for (int i = 0; i < Width; ++i) u[i] = own[k][i] + shift[i];
      moments.add(u);
    }
  }
}

/// The same, writing the sum, with a residual if it is not null.
template <class Element, int Width>
__device__ void add_sum_column(
    Moments<Width>& moments, const Lane<Element>& sum, const Lane<const Element>& x,
    const Lane<const Element>& residual, const float (&shift)[Width], int begin, int end, int rows) {
  constexpr int kLoads = kBatch<Element> / 2;  // of two tensors
  Packed<Element, Width> own[kLoads], other[kLoads] = {};
  own[0].load(x.at(begin));
  if (residual) other[0].load(residual.at(begin));
#pragma unroll
  for (int i = 0; i < Width; ++i) moments.first[i] = own[0][i] + other[0][i] + shift[i];
  for (int from = begin; from < end; from += kLoads * rows) {
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      if (from + k * rows >= end) break;
      own[k].load(x.at(from + k * rows));
      if (residual) other[k].load(residual.at(from + k * rows));
    }
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      if (from + k * rows >= end) break;
      Packed<Element, Width> rounded;
#pragma unroll
      for (int i = 0; i < Width; ++i) rounded.set(i, own[k][i] + other[k][i] + shift[i]);
      rounded.store(sum.at(from + k * rows));
      moments.add(rounded);
    }
  }
}

/// Adds this thread's pixels of a chunk, of which there must be some, in a column of u or skip.
template <class Element, int Width>
__device__ void add_any_column(
    Moments<Width>& moments, const GroupNormSize& size, const GroupNormForward& tensors, const Table& shifts,
    const Chunk& chunk, int channel, int row, int rows) {
  float shift[Width];
  shifts.take(shift, channel);
  const auto x = lane<const Element>(tensors.x, tensors.skip, size, chunk.sample, channel);
  if (channel < size.channels && tensors.sum != nullptr) {
    const auto residual = lane<const Element>(tensors.residual, size, chunk.sample, size.channels, channel);
    const auto sum = lane<Element>(tensors.sum, size, chunk.sample, size.channels, channel);
    add_sum_column(moments, sum, x, residual, shift, chunk.begin + row, chunk.end, rows);
  } else {
    add_column(moments, x, shift, chunk.begin + row, chunk.end, rows);
  }
}

/// partials: (samples, chunks, 2, groups), a chunk's means and then its sums of squared deviations.
template <class Element, int Width>
__global__ void __launch_bounds__(kThreads, 2) group_moments_kernel(
    const __grid_constant__ GroupNormSize size, const __grid_constant__ GroupNormForward tensors,
    const __grid_constant__ Chunks chunks, float* __restrict__ partials) {
  const Chunk chunk(blockIdx.x, chunks, size);
  const Grid grid = grid_of<Width>(size);
  const int channels = size.all_channels();
  const Table shifts{dynamic_shared()};
  float* const means = dynamic_shared() + channels;  // of each row and channel, then of each channel
  float* const deviations = means + grid.rows * channels;
  for_each(channels, [&](int channel) {
    const bool shifted = channel < size.channels && tensors.shift.data != nullptr;
    shifts[channel] = shifted ? read(tensors.shift, chunk.sample, channel) : 0.0f;
  });
  __syncthreads();
  const int pixels = chunk.end - chunk.begin;
  const auto pixels_of_row = [&](int row) { return (pixels - row + grid.rows - 1) / grid.rows; };
  for_each_column(grid, [&](int column, int row) {
    if (row >= pixels) return;
    Moments<Width> moments;
    add_any_column<Element>(moments, size, tensors, shifts, chunk, column * Width, row, grid.rows);
    const auto count = static_cast<float>(pixels_of_row(row));
#pragma unroll
    for (int i = 0; i < Width; ++i) {
      means[row * channels + column * Width + i] = moments.mean(i, count);
      deviations[row * channels + column * Width + i] = moments.deviations(i, count);
    }
  });
  __syncthreads();
  float* const own = partials + chunk.number * 2 * size.groups;
  const int rows = grid.rows < pixels ? grid.rows : pixels;
  merge_groups(
      means, deviations, channels, channels / size.groups, rows, pixels, pixels_of_row,
      [&](int group, const Merged& merged) {
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
    for (int chunk = 0; chunk < chunks.count; ++chunk) {
      const float* const part = partials + 2 * chunk * size.groups + group;
      merged.add(static_cast<double>(chunks.pixels_of(chunk, size)) * of_group, part[0], part[size.groups]);
    }
    mean[group] = merged.mean();
    rstd[group] = merged.rstd(eps);
  });
}

/// Writes y in a column.
template <class Element, int Width>
__device__ void apply_column(
    const Lane<const Element>& u, const Lane<Element>& y, const Affine<Width>& affine, bool silu, int begin,
    int end, int rows) {
  constexpr int kLoads = kBatch<Element>;
  for (int from = begin; from < end; from += kLoads * rows) {
    Packed<Element, Width> own[kLoads];
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      if (from + k * rows < end) own[k].load(u.at(from + k * rows));
    }
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      if (from + k * rows >= end) break;
      normalised(own[k], affine, silu).store(y.at(from + k * rows));
    }
  }
}

template <class Element, int Width>
__global__ void __launch_bounds__(kThreads, 3) group_norm_apply_kernel(
    const __grid_constant__ GroupNormSize size, const __grid_constant__ GroupNormForward tensors,
    const __grid_constant__ Chunks chunks, const float* __restrict__ partials) {
  const Chunk chunk(from_the_end(), chunks, size);
  const Grid grid = grid_of<Width>(size);
  const int channels = size.all_channels();
  const AffineTables tables(dynamic_shared(), channels);
  float* const mean = dynamic_shared() + 3 * channels;
  float* const rstd = mean + size.groups;
  merge_chunks(mean, rstd, size, chunks, partials + chunk.sample * chunks.count * 2 * size.groups, tensors.eps);
  __syncthreads();
  if (chunk.index == 0) {
    for_each(size.groups, [&](int group) {
      tensors.mean[chunk.sample * size.groups + group] = mean[group];
      tensors.rstd[chunk.sample * size.groups + group] = rstd[group];
    });
  }
  const bool has_sum = tensors.sum != nullptr;
  tables.fill(tensors, size, has_sum ? ChannelValues{} : tensors.shift, chunk.sample, 0, channels);
  tables.normalise(mean, rstd, channels / size.groups, channels);
  __syncthreads();
  for_each_column(grid, [&](int column, int row) {
    const int channel = column * Width;
    const void* const x = has_sum ? tensors.sum : tensors.x;
    apply_column(
        lane<const Element>(x, tensors.skip, size, chunk.sample, channel),
        lane<Element>(tensors.y, size, chunk.sample, channels, channel), Affine<Width>(tables, channel), tensors.silu,
        chunk.begin + row, chunk.end, grid.rows);
  });
}

}  // namespace progdistill::cuda
