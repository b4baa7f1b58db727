#pragma once

// The gradient of group normalisation in two passes over the images and a last one over sums. The first pass adds up g
// and g h of each chunk and channel.

#include "group_norm_gradient.cuh"

namespace progdistill::cuda {

/// What the passes leave in memory for the next. Of no chunks: of_samples alone.
struct BackwardSums {
  float* of_groups;    // (samples, chunks, 2, groups): sums of p g and p g h over a chunk
  float* of_channels;  // (samples, chunks, 2, all channels): of g and g h
  float* of_samples;   // (samples, 2, all channels): of (1 + scale) g and (1 + scale) g h
  float* of_du;        // (samples, chunks, channels)

  BackwardSums(float* workspace, const GroupNormSize& size, int chunks) {
    const int64_t all = size.all_channels();
    of_groups = workspace;
    of_channels = of_groups + size.samples * chunks * 2 * size.groups;
    of_samples = of_channels + size.samples * chunks * 2 * all;
    of_du = of_samples + size.samples * 2 * all;
  }
  static int64_t count(const GroupNormSize& size, int chunks) {
    const int64_t all = size.all_channels();
    return size.samples * (chunks * (2 * (size.groups + all) + size.channels) + 2 * all);
  }
};

/// body(slopes, pixel) for this thread's pixels of a column.
template <class Element, int Width, class Body>
__device__ void for_each_pixel(
    const Lane<const Element>& dy, const Lane<const Element>& u, const Affine<Width>& affine, bool silu, int begin,
    int end, int rows, Body&& body) {
  constexpr int kLoads = kBatch<Element> / 2;  // of two tensors
  for (int from = begin; from < end; from += kLoads * rows) {
    Packed<Element, Width> slope[kLoads], own[kLoads];
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      if (from + k * rows >= end) break;
      slope[k].load(dy.at(from + k * rows));
      own[k].load(u.at(from + k * rows));
    }
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      if (from + k * rows >= end) break;
      body(Slopes<Width>(slope[k], own[k], affine, silu), from + k * rows);
    }
  }
}

template <class Element, int Width>
__global__ void __launch_bounds__(kThreads, 2) group_norm_sums_kernel(
    const __grid_constant__ GroupNormSize size, const __grid_constant__ GroupNormBackward tensors,
    const __grid_constant__ Chunks chunks, const __grid_constant__ BackwardSums sums) {
  const Chunk chunk(blockIdx.x, chunks, size);
  const Grid grid = grid_of<Width>(size);
  const int channels = size.all_channels(), of_group = channels / size.groups;
  const float* const rstd = tensors.rstd + chunk.sample * size.groups;
  const AffineTables tables(dynamic_shared(), channels);
  float* const of_g = dynamic_shared() + 3 * channels;  // of each row and channel, then of each channel; then times p
  float* const of_gh = of_g + grid.rows * channels;
  tables.fill(tensors, size, tensors.shift, chunk.sample, 0, channels);
  tables.normalise(tensors.mean + chunk.sample * size.groups, rstd, of_group, channels);
  __syncthreads();
  for_each_column(grid, [&](int column, int row) {
    const int channel = column * Width;
    const Affine<Width> affine(tables, channel);
    SlopeSums<Width> own;
    for_each_pixel<Element, Width>(
        lane<const Element>(tensors.dy, size, chunk.sample, channels, channel),
        lane<const Element>(tensors.u, tensors.skip, size, chunk.sample, channel), affine, tensors.silu,
        chunk.begin + row, chunk.end, grid.rows, [&](const Slopes<Width>& slopes, int) { own.add(slopes); });
#pragma unroll
    for (int i = 0; i < Width; ++i) {
      of_g[row * channels + channel + i] = own.g[i];
      of_gh[row * channels + channel + i] = own.product[i];
    }
  });
  __syncthreads();
  float* const own = sums.of_channels + chunk.number * 2 * channels;
  for_each(channels, [&](int channel) {
    const float g = sum_of_rows(of_g, channels, channel, grid.rows);
    const float gh = sum_of_rows(of_gh, channels, channel, grid.rows) * rstd[channel / of_group];
    own[channel] = g;
    own[channels + channel] = gh;
    const float p = read(tensors.weight, 0, channel) * one_plus_scale(tensors, chunk.sample, channel);
    of_g[channel] = p * g;
    of_gh[channel] = p * gh;
  });
  float* const group_sums = sums.of_groups + chunk.number * 2 * size.groups;
  sum_groups(of_g, of_gh, channels, of_group, [&](int group, double g, double gh) {
    group_sums[group] = static_cast<float>(g);
    group_sums[size.groups + group] = static_cast<float>(gh);
  });
}

/// Adds up the chunks of one sample: number i of each chunk's `stride`.
__device__ inline double sum_of_chunks(const float* from, int chunks, int64_t stride, int i) {
  double sum = 0.0;
#pragma unroll 8
  for (int chunk = 0; chunk < chunks; ++chunk) sum += from[chunk * stride + i];
  return sum;
}

/// What the chunks say of a sample's channels.
__device__ inline void write_sample_sums(
    const GroupNormSize& size, const GroupNormBackward& tensors, const Chunks& chunks, const BackwardSums& sums,
    int64_t sample) {
  const int channels = size.all_channels();
  const float* const parts = sums.of_channels + sample * chunks.count * 2 * channels;
  for_each(channels, [&](int channel) {
    const auto g = static_cast<float>(sum_of_chunks(parts, chunks.count, 2 * channels, channel));
    const auto gh = static_cast<float>(sum_of_chunks(parts, chunks.count, 2 * channels, channels + channel));
    write_channel_sums(size, tensors, sums.of_samples, sample, channel, g, gh);
  });
}

template <class Element, int Width>
__global__ void __launch_bounds__(kThreads, 2) group_norm_gradient_kernel(
    const __grid_constant__ GroupNormSize size, const __grid_constant__ GroupNormBackward tensors,
    const __grid_constant__ Chunks chunks, const __grid_constant__ BackwardSums sums) {
  const Chunk chunk(from_the_end(), chunks, size);
  const Grid grid = grid_of<Width>(size);
  const int channels = size.all_channels(), of_group = channels / size.groups;
  const float* const rstd = tensors.rstd + chunk.sample * size.groups;
  const AffineTables tables(dynamic_shared(), channels);
  const GroupTables of_groups(dynamic_shared() + 3 * channels, channels);
  const float* const parts = sums.of_groups + chunk.sample * chunks.count * 2 * size.groups;
  for_each(size.groups, [&](int group) {
    const double g = sum_of_chunks(parts, chunks.count, 2 * size.groups, group);
    const double gh = sum_of_chunks(parts, chunks.count, 2 * size.groups, size.groups + group);
    const double count = static_cast<double>(size.pixels) * of_group;
    of_groups.fill(group * of_group, (group + 1) * of_group, rstd[group], count, g, gh);
  });
  tables.fill(tensors, size, tensors.shift, chunk.sample, 0, channels);
  tables.normalise(tensors.mean + chunk.sample * size.groups, rstd, of_group, channels);
  if (chunk.index == 0) write_sample_sums(size, tensors, chunks, sums, chunk.sample);
  __syncthreads();
  float* const of_du = dynamic_shared() + 5 * channels;  // of each row and channel of x
  for_each_column(grid, [&](int column, int row) {
    const int channel = column * Width;
    const Affine<Width> affine(tables, channel);
    const auto to = lane<Element>(tensors.du, tensors.dskip, size, chunk.sample, channel);
    const auto bypass =
        lane<const Element>(tensors.du_bypass, tensors.dskip_bypass, size, chunk.sample, channel);
    InputGradient<Width> gradient(of_groups, channel);
    for_each_pixel<Element, Width>(
        lane<const Element>(tensors.dy, size, chunk.sample, channels, channel),
        lane<const Element>(tensors.u, tensors.skip, size, chunk.sample, channel), affine, tensors.silu,
        chunk.begin + row, chunk.end, grid.rows,
        [&](const Slopes<Width>& slopes, int pixel) {
          Packed<Element, Width> other{};
          if (bypass) other.load(bypass.at(pixel));
          gradient.of(slopes, affine, other).store(to.at(pixel));
        });
    if (tensors.dshift == nullptr || channel >= size.channels) return;
#pragma unroll
    for (int i = 0; i < Width; ++i) of_du[row * size.channels + channel + i] = gradient.total[i];
  });
  if (tensors.dshift == nullptr) return;
  __syncthreads();
  float* const shift_sums = sums.of_du + chunk.number * size.channels;
  for_each(size.channels, [&](int channel) {
    shift_sums[channel] = sum_of_rows(of_du, size.channels, channel, grid.rows);
  });
}

/// Adds up what the samples' sums say of weight and bias: 32 channels a block, its warps sharing the samples.
__device__ inline void sum_samples(
    const GroupNormSize& size, const GroupNormBackward& tensors, const float* of_samples, int first_channel) {
  constexpr int kWarps = kThreads / 32;
  __shared__ double of_warp[2][kWarps][32];
  const int channels = size.all_channels(), lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int channel = first_channel + lane;
  double g = 0.0, gh = 0.0;
  if (channel < channels) {
#pragma unroll 8
    for (int64_t sample = warp; sample < size.samples; sample += kWarps) {
      g += of_samples[2 * sample * channels + channel];
      gh += of_samples[(2 * sample + 1) * channels + channel];
    }
  }
  of_warp[0][warp][lane] = g;
  of_warp[1][warp][lane] = gh;
  __syncthreads();
  if (warp > 1 || channel >= channels) return;
  double sum = 0.0;
  for (int part = 0; part < kWarps; ++part) sum += of_warp[warp][part][lane];
  (warp == 0 ? tensors.dbias : tensors.dweight)[channel] = static_cast<float>(sum);
}

/// The first blocks do weight and bias, the others a number of dshift a thread.
__global__ void __launch_bounds__(kThreads) group_norm_last_sums_kernel(
    const __grid_constant__ GroupNormSize size, const __grid_constant__ GroupNormBackward tensors,
    const __grid_constant__ Chunks chunks, const __grid_constant__ BackwardSums sums) {
  const int64_t first_blocks = (size.all_channels() + 31) / 32;
  if (blockIdx.x < first_blocks) return sum_samples(size, tensors, sums.of_samples, static_cast<int>(blockIdx.x) * 32);
  const int64_t i = (blockIdx.x - first_blocks) * kThreads + threadIdx.x;
  if (i >= size.samples * size.channels) return;
  const int64_t sample = i / size.channels;
  tensors.dshift[i] = static_cast<float>(sum_of_chunks(
      sums.of_du + sample * chunks.count * size.channels, chunks.count, size.channels,
      static_cast<int>(i % size.channels)));
}

}  // namespace progdistill::cuda
