#pragma once

// Sums of channels_last images, with zeros below and to the right of them, as launchers.h says of all CUDA kernels. Null
// pointers: left out.

#include <cstdint>

#include "channel_values.h"
#include "host_device.h"
#include "images.h"
#include "queue.h"

namespace progdistill::cuda {

/// Images (samples, height, width, channels), float32 or bfloat16; padded ones have `padding` more rows and columns. A
/// padded sample has less than 2^31 elements.
struct PaddedSumSize {
  int64_t samples;
  int height;
  int width;
  int channels;
  int padding;
  DType dtype;

  PD_HOST_DEVICE int pixels() const { return height * width; }
  PD_HOST_DEVICE int padded_width() const { return width + padding; }
  PD_HOST_DEVICE int padded_pixels() const { return (height + padding) * padded_width(); }
};

/// u = (x + residual) + shift in float, rounded once; padded is u and zeros.
struct PaddedSum {
  void* u;
  void* padded;
  const void* x;
  const void* residual;
  ChannelValues shift;
};

/// du = dsum + dpadded without its last rows and columns. dsum may be null.
struct PaddedSumBackward {
  void* du;
  const void* dsum;
  const void* dpadded;
};

int padded_sum(const PaddedSumSize& size, const PaddedSum& tensors, const Queue& queue);
int padded_sum_backward(const PaddedSumSize& size, const PaddedSumBackward& tensors, const Queue& queue);

}  // namespace progdistill::cuda
