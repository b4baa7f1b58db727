#pragma once

// Means and sums of squared deviations, of parts and merged. Sums are shifted by a number of their own set, which is
// never much further from the mean than the deviation: nothing cancels, however large the mean.

#include "group_norm_chunks.cuh"

namespace progdistill::cuda {

/// Mean and sum of squared deviations of a set of numbers, from such of its parts. `first` is a part's mean.
struct Merged {
  double first, count = 0.0, sum = 0.0, square = 0.0;

  __device__ explicit Merged(double first) : first(first) {}
  __device__ void add(double count_of_part, double mean, double deviations) {
    const double away = mean - first;
    count += count_of_part;
    sum = fused(count_of_part, away, sum);
    square += fused(count_of_part * away, away, deviations);
  }
  __device__ double mean() const { return first + sum / count; }
  __device__ double deviations() const {
    const double left = square - sum * (sum / count);
    return left > 0.0 ? left : 0.0;
  }
  __device__ float rstd(float eps) const { return static_cast<float>(1.0 / square_root(deviations() / count + eps)); }
};

/// The same for single numbers of `Width` channels at once, shifted by the first.
template <int Width>
struct Moments {
  float first[Width], sum[Width] = {}, square[Width] = {};

  template <class Values>
  __device__ void add(const Values& values) {
#pragma unroll
    for (int i = 0; i < Width; ++i) {
      const float away = values[i] - first[i];
      sum[i] += away;
      square[i] = fused(away, away, square[i]);
    }
  }
  __device__ float mean(int i, float count) const { return first[i] + sum[i] / count; }
  __device__ float deviations(int i, float count) const {
    const float left = square[i] - sum[i] * (sum[i] / count);
    return left > 0.0f ? left : 0.0f;
  }
};

/// Merges what `rows` parts of a block have found of each channel, and that of the channels of each group: body(group,
/// merged). means, deviations: (rows, channels), written before a barrier; the channels' own replace the first row.
template <class PixelsOfRow, class Body>
__device__ void merge_groups(
    float* means, float* deviations, int channels, int of_group, int rows, int pixels, PixelsOfRow&& pixels_of_row,
    Body&& body) {
  for_each(channels, [&](int channel) {
    Merged merged(means[channel]);
    for (int row = 0; row < rows; ++row) {
      merged.add(pixels_of_row(row), means[row * channels + channel], deviations[row * channels + channel]);
    }
    means[channel] = merged.mean();
    deviations[channel] = merged.deviations();
  });
  __syncthreads();
  for_each(channels / of_group, [&](int group) {
    Merged merged(means[group * of_group]);
    for (int channel = group * of_group; channel < (group + 1) * of_group; ++channel) {
      merged.add(pixels, means[channel], deviations[channel]);
    }
    body(group, merged);
  });
}

/// What the norm makes of Width numbers.
template <class Element, int Width>
__device__ Packed<Element, Width> normalised(
    const Packed<Element, Width>& u, const Affine<Width>& affine, bool silu) {
  Packed<Element, Width> result;
#pragma unroll
  for (int i = 0; i < Width; ++i) {
    const float v = fused(u[i] + affine.offset[i], affine.gain[i], affine.bias[i]);
    result.set(i, silu ? v * sigmoid<Element>(v) : v);
  }
  return result;
}

}  // namespace progdistill::cuda
