#pragma once

// The gradient of group normalisation in two passes over the images and a last one over sums. With h = (u - mean) rstd,
// v = h p + q (Affine: p = weight (1 + scale)), y = silu(v) and g = dy silu'(v):
//
//     du = rstd (p g - m1 - h m2) + dsum,   m1, m2: the means of p g and p g h over a group's numbers.
//
// The first pass adds up g and g h of each chunk and channel; the gradients of everything but the images are sums of
// these. Only mean and rstd are kept from the forward pass: v is formed anew in both passes.

#include "group_norm_chunks.cuh"

namespace progdistill::cuda {

/// What the passes leave in memory for the next.
struct BackwardSums {
  float* of_groups;    // (samples, chunks, 2, groups): sums of p g and p g h over a chunk
  float* of_channels;  // (samples, chunks, 2, all channels): of g and g h
  float* of_samples;   // (samples, 2, all channels): of (1 + scale) g and (1 + scale) g h
  float* of_du;        // (samples, chunks, channels)

  BackwardSums(float* workspace, const GroupNormSize& size, const Chunks& chunks) {
    const int64_t all = size.all_channels();
    of_groups = workspace;
    of_channels = of_groups + size.samples * chunks.count * 2 * size.groups;
    of_samples = of_channels + size.samples * chunks.count * 2 * all;
    of_du = of_samples + size.samples * 2 * all;
  }
  static int64_t count(const GroupNormSize& size, const Chunks& chunks) {
    const int64_t all = size.all_channels();
    return size.samples * (chunks.count * (2 * (size.groups + all) + size.channels) + 2 * all);
  }
};

/// g = dy silu'(v).
template <class Element>
__device__ inline float through_silu(float dy, float v, bool silu) {
  if (!silu) return dy;
  const float s = sigmoid<Element>(v);
  return dy * s * fused(v, 1.0f - s, 1.0f);
}

/// Adds up rows x channels numbers to the first row.
__device__ inline float sum_of_rows(const float* values, int channels, int channel, int rows) {
  double sum = 0.0;
  for (int row = 0; row < rows; ++row) sum += values[row * channels + channel];
  return static_cast<float>(sum);
}

/// body(g, u + offset, u's number in the loop, pixel) for this thread's pixels of a column.
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
      float g[Width], centred[Width];
#pragma unroll
      for (int i = 0; i < Width; ++i) {
        centred[i] = own[k][i] + affine.offset[i];
        g[i] = through_silu<Element>(slope[k][i], fused(centred[i], affine.gain[i], affine.bias[i]), silu);
      }
      body(g, centred, from + k * rows);
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
  tables.fill(tensors, size, tensors.shift, tensors.mean + chunk.sample * size.groups, rstd, chunk.sample);
  __syncthreads();
  for_each_column(grid, [&](int column, int row) {
    const int channel = column * Width;
    const Affine<Width> affine(tables, channel);
    float sum[Width] = {}, product[Width] = {};
    for_each_pixel<Element, Width>(
        lane<const Element>(tensors.dy, size, chunk.sample, channels, channel),
        lane<const Element>(tensors.u, tensors.skip, size, chunk.sample, channel), affine, tensors.silu,
        chunk.begin + row, chunk.end, grid.rows, [&](const float(&g)[Width], const float(&centred)[Width], int) {
#pragma unroll
          for (int i = 0; i < Width; ++i) {
            sum[i] += g[i];
            product[i] = fused(g[i], centred[i], product[i]);
          }
        });
#pragma unroll
    for (int i = 0; i < Width; ++i) {
      of_g[row * channels + channel + i] = sum[i];
      of_gh[row * channels + channel + i] = product[i];
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
  __syncthreads();
  float* const group_sums = sums.of_groups + chunk.number * 2 * size.groups;
  for_each(size.groups, [&](int group) {
    double g = 0.0, gh = 0.0;
    for (int channel = group * of_group; channel < (group + 1) * of_group; ++channel) {
      g += of_g[channel];
      gh += of_gh[channel];
    }
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

/// What the chunks say of a sample's channels: for the sums over all samples, and for scale and shift_after.
__device__ inline void write_sample_sums(
    const GroupNormSize& size, const GroupNormBackward& tensors, const Chunks& chunks, const BackwardSums& sums,
    int64_t sample) {
  const int channels = size.all_channels();
  const float* const parts = sums.of_channels + sample * chunks.count * 2 * channels;
  for_each(channels, [&](int channel) {
    const auto g = static_cast<float>(sum_of_chunks(parts, chunks.count, 2 * channels, channel));
    const auto gh = static_cast<float>(sum_of_chunks(parts, chunks.count, 2 * channels, channels + channel));
    const float factor = one_plus_scale(tensors, sample, channel);
    sums.of_samples[(2 * sample) * channels + channel] = factor * g;
    sums.of_samples[(2 * sample + 1) * channels + channel] = factor * gh;
    if (tensors.dscale_shift == nullptr) return;
    float* const to = tensors.dscale_shift + 2 * sample * channels + channel;
    to[0] = fused(read(tensors.weight, 0, channel), gh, read(tensors.bias, 0, channel) * g);
    to[channels] = g;
  });
}

template <class Element, int Width>
__global__ void __launch_bounds__(kThreads, 2) group_norm_gradient_kernel(
    const __grid_constant__ GroupNormSize size, const __grid_constant__ GroupNormBackward tensors,
    const __grid_constant__ Chunks chunks, const __grid_constant__ BackwardSums sums) {
  const Chunk chunk(from_the_end(), chunks, size);
  const Grid grid = grid_of<Width>(size);
  const int channels = size.all_channels(), of_group = channels / size.groups;
  const float* const mean = tensors.mean + chunk.sample * size.groups;
  const float* const rstd = tensors.rstd + chunk.sample * size.groups;
  const AffineTables tables(dynamic_shared(), channels);
  const Table constants{dynamic_shared() + 3 * channels}, slopes{dynamic_shared() + 4 * channels};
  float* const m1 = dynamic_shared() + 5 * channels;  // times rstd
  float* const m2 = m1 + size.groups;                 // times rstd squared
  const float* const parts = sums.of_groups + chunk.sample * chunks.count * 2 * size.groups;
  for_each(size.groups, [&](int group) {
    const double factor = rstd[group] / (static_cast<double>(size.pixels) * of_group);
    const double g = sum_of_chunks(parts, chunks.count, 2 * size.groups, group);
    const double gh = sum_of_chunks(parts, chunks.count, 2 * size.groups, size.groups + group);
    m1[group] = static_cast<float>(factor * g);
    m2[group] = static_cast<float>(factor * rstd[group] * gh);
  });
  tables.fill(tensors, size, tensors.shift, mean, rstd, chunk.sample);
  if (chunk.index == 0) write_sample_sums(size, tensors, chunks, sums, chunk.sample);
  __syncthreads();
  for_each(channels, [&](int channel) {
    constants[channel] = m1[channel / of_group];
    slopes[channel] = m2[channel / of_group];
  });
  __syncthreads();
  float* const of_du = m2 + size.groups;  // of each row and channel of x
  for_each_column(grid, [&](int column, int row) {
    const int channel = column * Width;
    const Affine<Width> affine(tables, channel);
    const auto to = lane<Element>(tensors.du, tensors.dskip, size, chunk.sample, channel);
    Lane<const Element> dsum{};
    if (channel < size.channels) dsum = lane<const Element>(tensors.dsum, size, chunk.sample, size.channels, channel);
    float constant[Width], slope[Width], total[Width] = {};
    constants.take(constant, channel);
    slopes.take(slope, channel);
    for_each_pixel<Element, Width>(
        lane<const Element>(tensors.dy, size, chunk.sample, channels, channel),
        lane<const Element>(tensors.u, tensors.skip, size, chunk.sample, channel), affine, tensors.silu,
        chunk.begin + row, chunk.end, grid.rows,
        [&](const float(&g)[Width], const float(&centred)[Width], int pixel) {
          Packed<Element, Width> passed{}, result;
          if (dsum) passed.load(dsum.at(pixel));
#pragma unroll
          for (int i = 0; i < Width; ++i) {
            const float du = fused(g[i], affine.gain[i], -fused(centred[i], slope[i], constant[i])) + passed[i];
            total[i] += du;
            result.set(i, du);
          }
          result.store(to.at(pixel));
        });
    if (tensors.dshift == nullptr || channel >= size.channels) return;
#pragma unroll
    for (int i = 0; i < Width; ++i) of_du[row * size.channels + channel + i] = total[i];
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
