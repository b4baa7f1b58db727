#pragma once

// The gradient of group normalisation. With h = (u - mean) rstd, v = h p + q (Affine: p = weight (1 + scale)),
// y = silu(v) and g = dy silu'(v):
//
//     du = rstd (p g - m1 - h m2) + du_bypass,   m1, m2: the means of p g and p g h over a group's numbers.
//
// and dskip likewise. The gradients of everything but the images are sums of g and g h, too. Only mean and rstd are kept
// from the forward pass: v is formed anew wherever it is needed.

#include "group_norm_chunks.cuh"

namespace progdistill::cuda {

/// g = dy silu'(v).
template <class Element>
__device__ inline float through_silu(float dy, float v, bool silu) {
  if (!silu) return dy;
  const float s = sigmoid<Element>(v);
  return dy * s * fused(v, 1.0f - s, 1.0f);
}

/// g, and u + offset = h / rstd, of Width channels of a pixel.
template <int Width>
struct Slopes {
  float g[Width], centred[Width];

  template <class Element>
  __device__ Slopes(
      const Packed<Element, Width>& dy, const Packed<Element, Width>& u, const Affine<Width>& affine, bool silu) {
#pragma unroll
    for (int i = 0; i < Width; ++i) {
      centred[i] = u[i] + affine.offset[i];
      g[i] = through_silu<Element>(dy[i], fused(centred[i], affine.gain[i], affine.bias[i]), silu);
    }
  }
};

/// Sums of g and g h / rstd over a thread's pixels.
template <int Width>
struct SlopeSums {
  float g[Width] = {}, product[Width] = {};

  __device__ void add(const Slopes<Width>& pixel) {
#pragma unroll
    for (int i = 0; i < Width; ++i) {
      g[i] += pixel.g[i];
      product[i] = fused(pixel.g[i], pixel.centred[i], product[i]);
    }
  }
};

/// What du takes from its group: constants[channel] = rstd m1, slopes[channel] = rstd^2 m2.
struct GroupTables {
  Table constants, slopes;

  __device__ GroupTables(float* room, int channels) : constants{room}, slopes{room + channels} {}

  /// g and gh: sums of p g and p g h over a group of `count` numbers.
  __device__ void fill(int first, int end, float rstd, double count, double g, double gh) const {
    const double factor = rstd / count;
    const auto constant = static_cast<float>(factor * g), slope = static_cast<float>(factor * rstd * gh);
    for (int channel = first; channel < end; ++channel) {
      constants[channel] = constant;
      slopes[channel] = slope;
    }
  }
};

/// du in a thread's column, and its sum over the pixels before rounding.
template <int Width>
struct InputGradient {
  const GroupTables& tables;
  int channel;
  float total[Width] = {};

  __device__ InputGradient(const GroupTables& tables, int channel) : tables(tables), channel(channel) {}
  /// `bypass` is du_bypass or dskip_bypass.
  template <class Element>
  __device__ Packed<Element, Width> of(
      const Slopes<Width>& pixel, const Affine<Width>& affine, const Packed<Element, Width>& bypass) {
    Packed<Element, Width> result;
    float constant[Width], slope[Width];
    tables.constants.take(constant, channel);
    tables.slopes.take(slope, channel);
#pragma unroll
    for (int i = 0; i < Width; ++i) {
      const float centred = fused(pixel.centred[i], slope[i], constant[i]);
      const float du = fused(pixel.g[i], affine.gain[i], -centred) + bypass[i];
      total[i] += du;
      result.set(i, du);
    }
    return result;
  }
};

/// Adds up rows x channels numbers to the first row.
__device__ inline float sum_of_rows(const float* values, int channels, int channel, int rows) {
  double sum = 0.0;
  for (int row = 0; row < rows; ++row) sum += values[row * channels + channel];
  return static_cast<float>(sum);
}

/// body(group, sum of p g, sum of p g h) from those of the channels, which threads have written before.
template <class Body>
__device__ void sum_groups(const float* of_pg, const float* of_pgh, int channels, int of_group, Body&& body) {
  __syncthreads();
  for_each(channels / of_group, [&](int group) {
    double g = 0.0, gh = 0.0;
    for (int channel = group * of_group; channel < (group + 1) * of_group; ++channel) {
      g += of_pg[channel];
      gh += of_pgh[channel];
    }
    body(group, g, gh);
  });
}

/// What sums of g and g h over a sample's pixels say of weight and bias, and of scale and shift_after. of_samples:
/// (samples, 2, all channels), sums of (1 + scale) g and (1 + scale) g h.
__device__ inline void write_channel_sums(
    const GroupNormSize& size, const GroupNormBackward& tensors, float* of_samples, int64_t sample, int channel,
    float g, float gh) {
  const int channels = size.all_channels();
  const float factor = one_plus_scale(tensors, sample, channel);
  of_samples[(2 * sample) * channels + channel] = factor * g;
  of_samples[(2 * sample + 1) * channels + channel] = factor * gh;
  if (tensors.dscale_shift == nullptr) return;
  float* const to = tensors.dscale_shift + 2 * sample * channels + channel;
  to[0] = fused(read(tensors.weight, 0, channel), gh, read(tensors.bias, 0, channel) * g);
  to[channels] = g;
}

}  // namespace progdistill::cuda
