#pragma once

// Group normalisation of channels_last images whose channels lie in two tensors, x and skip, as launchers.h says of all
// CUDA kernels. Null pointers: left out.

#include <cstdint>

#include "channel_values.h"
#include "host_device.h"
#include "images.h"
#include "queue.h"

namespace progdistill::cuda {

/// Images (samples, pixels, channels) and (samples, pixels, skip_channels), float32 or bfloat16; a sample has less than
/// 2^31 elements in both together.
struct GroupNormSize {
  int64_t samples;
  int pixels;
  int channels;
  int skip_channels;
  int groups;
  DType dtype;
  int tile_bytes;  // of shared memory for whole groups, to read each image once where they fit; 0: twice

  PD_HOST_DEVICE int all_channels() const { return channels + skip_channels; }
};

/// u = x + residual + shift, y = silu((1 + scale) norm(cat(u, skip)) + shift_after). u is written to `sum`, if that is
/// not null, and then normalised as rounded there; a residual needs it.
struct GroupNormForward {
  void* y;
  void* sum;
  float* mean;  // (samples, groups), as rstd
  float* rstd;
  const void* x;
  const void* skip;
  const void* residual;
  ChannelValues shift, weight, bias;
  ChannelValues scale_shift;  // the scales of all channels first
  float eps;
  bool silu;
};

/// Gradients, from that of y and, if not null, those that reach u and skip past the norm. `u` is the sum if there was
/// one, without a shift, or x.
struct GroupNormBackward {
  void* du;
  void* dskip;
  float* dweight;
  float* dbias;
  float* dshift;        // (samples, channels), may be null
  float* dscale_shift;  // (samples, 2 all_channels), may be null
  const void* dy;
  const void* du_bypass;
  const void* dskip_bypass;
  const void* u;
  const void* skip;
  ChannelValues shift, weight, bias, scale_shift;
  const float* mean;
  const float* rstd;
  bool silu;
};

/// The most channels that one image may have, of both tensors together.
constexpr int kMostChannels = 3072;

/// Numbers of `workspace` that the launchers need.
int64_t group_norm_workspace(const GroupNormSize& size, bool backward);

int group_norm_silu(
    const GroupNormSize& size, const GroupNormForward& tensors, float* workspace, const Queue& queue);
int group_norm_silu_backward(
    const GroupNormSize& size, const GroupNormBackward& tensors, float* workspace, const Queue& queue);

}  // namespace progdistill::cuda
