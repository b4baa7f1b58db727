#pragma once

// How group normalisation cuts a sample into chunks of pixels, and what its kernels know of a channel.

#include "channel_tiles.cuh"

namespace progdistill::cuda {

/// Chunks hold about so many elements, and a sample has at most so many chunks: all later blocks add up their sums.
constexpr int kChunkElements = 32768;
constexpr int kMostChunks = 64;

/// The chunks of pixels that the blocks of a sample do; by the size of a sample alone.
struct Chunks {
  int64_t pixels;  // of a chunk; the last may have fewer
  int64_t count;

  explicit Chunks(const GroupNormSize& size) {
    const int64_t wanted = (size.pixels * size.all_channels() + kChunkElements - 1) / kChunkElements;
    const int64_t at_most = wanted < kMostChunks ? wanted : kMostChunks;
    pixels = (size.pixels + at_most - 1) / at_most;
    count = (size.pixels + pixels - 1) / pixels;
  }
  /// How many pixels a chunk has.
  __device__ int64_t pixels_of(int64_t chunk, const GroupNormSize& size) const {
    const int64_t left = size.pixels - chunk * pixels;
    return left < pixels ? left : pixels;
  }
};

/// The pixels that a block does.
struct Chunk {
  int64_t sample, index, begin, end;

  __device__ Chunk(const Chunks& chunks, const GroupNormSize& size)
      : sample(blockIdx.x / chunks.count),
        index(blockIdx.x % chunks.count),
        begin(index * chunks.pixels),
        end(begin + chunks.pixels_of(index, size)) {}
};

/// What a norm makes of u in a column: (u + offset) gain + bias, where u itself lacks its shift.
template <int Width>
struct Affine {
  float offset[Width];  // shift - mean
  float gain[Width];    // rstd weight (1 + scale)
  float bias[Width];    // bias (1 + scale) + shift_after

  /// mean and rstd are those of a sample's groups.
  template <class Tensors>
  __device__ Affine(
      const Tensors& tensors, const GroupNormSize& size, const ChannelValues& shift, const float* mean,
      const float* rstd, int64_t sample, int channel) {
    const int of_group = size.all_channels() / size.groups;
    float scale[Width] = {}, added[Width] = {};
    read(gain, tensors.weight, 0, channel);
    read(bias, tensors.bias, 0, channel);
    if (tensors.scale_shift.data != nullptr) {
      read(scale, tensors.scale_shift, sample, channel);
      read(added, tensors.scale_shift, sample, size.all_channels() + channel);
    }
    if (shift.data != nullptr && channel < size.channels) {
      read(offset, shift, sample, channel);
    } else {
#pragma unroll
      for (int i = 0; i < Width; ++i) offset[i] = 0.0f;
    }
#pragma unroll
    for (int i = 0; i < Width; ++i) {
      const int group = (channel + i) / of_group;
      offset[i] -= mean[group];
      gain[i] *= rstd[group] * (1.0f + scale[i]);
      bias[i] = fused(bias[i], 1.0f + scale[i], added[i]);
    }
  }
};

/// The factor that scale_shift puts on a channel of the norm.
template <class Tensors>
__device__ inline float one_plus_scale(const Tensors& tensors, int64_t sample, int channel) {
  return tensors.scale_shift.data == nullptr ? 1.0f : 1.0f + read(tensors.scale_shift, sample, channel);
}

/// 1 / (1 + exp(-v)). For bfloat16 by instructions that miss a few of float's last bits, which are far below its own.
template <class Element>
__device__ inline float sigmoid(float v) {
  if constexpr (sizeof(Element) == 2) return __fdividef(1.0f, 1.0f + __expf(-v));
  return 1.0f / (1.0f + expf(-v));
}

/// Threads of a block share columns so; grids of the same size in all kernels.
template <int Width>
PD_HOST_DEVICE inline Grid grid_of(const GroupNormSize& size) {
  return Grid(size.all_channels() / Width, kThreads);
}

}  // namespace progdistill::cuda
