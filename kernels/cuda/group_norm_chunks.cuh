#pragma once

// How group normalisation cuts a sample into chunks of pixels, and what its kernels know of a channel.

#include "channel_tiles.cuh"

namespace progdistill::cuda {

/// Chunks hold about so many elements, and a sample has at most so many chunks: all later blocks add up their sums.
constexpr int kChunkElements = 32768;
constexpr int kMostChunks = 64;

/// The chunks of pixels that the blocks of a sample do; by the size of a sample alone.
struct Chunks {
  int pixels;  // of a chunk; the last may have fewer
  int count;

  explicit Chunks(const GroupNormSize& size) {
    const int64_t wanted = (int64_t{size.pixels} * size.all_channels() + kChunkElements - 1) / kChunkElements;
    const int at_most = wanted < kMostChunks ? static_cast<int>(wanted) : kMostChunks;
    pixels = (size.pixels + at_most - 1) / at_most;
    count = (size.pixels + pixels - 1) / pixels;
  }
  /// How many pixels a chunk has.
  __device__ int pixels_of(int chunk, const GroupNormSize& size) const {
    const int left = size.pixels - chunk * pixels;
    return left < pixels ? left : pixels;
  }
};

/// The pixels that a block does. `number` counts the chunks of all samples.
struct Chunk {
  int64_t number, sample;
  int index, begin, end;

  __device__ Chunk(int64_t number, const Chunks& chunks, const GroupNormSize& size)
      : number(number),
        sample(number / chunks.count),
        index(static_cast<int>(number % chunks.count)),
        begin(index * chunks.pixels),
        end(begin + chunks.pixels_of(index, size)) {}
};

/// The chunks of a second pass go backwards: what the first has read last may still be in the L2 cache.
__device__ inline int64_t from_the_end() { return int64_t{gridDim.x} - 1 - blockIdx.x; }

/// The factor that scale_shift puts on a channel of the norm.
template <class Tensors>
__device__ inline float one_plus_scale(const Tensors& tensors, int64_t sample, int channel) {
  return tensors.scale_shift.data == nullptr ? 1.0f : 1.0f + read(tensors.scale_shift, sample, channel);
}

/// What a norm makes of u: (u + offset) gain + bias, where u itself lacks its shift.
struct AffineTables {
  Table offset;  // shift - mean
  Table gain;    // rstd weight (1 + scale)
  Table bias;    // bias (1 + scale) + shift_after

  __device__ AffineTables(float* room, int channels) : offset{room}, gain{room + channels}, bias{room + 2 * channels} {}

  /// For `count` channels from `first` on, and as if each had mean 0 and deviation 1.
  template <class Tensors>
  __device__ void fill(
      const Tensors& tensors, const GroupNormSize& size, const ChannelValues& shift, int64_t sample, int first,
      int count) const {
    for_each(count, [&](int i) {
      const int channel = first + i;
      const float factor = one_plus_scale(tensors, sample, channel);
      const float after = tensors.scale_shift.data == nullptr
                              ? 0.0f
                              : read(tensors.scale_shift, sample, size.all_channels() + channel);
      offset[i] = shift.data != nullptr && channel < size.channels ? read(shift, sample, channel) : 0.0f;
      gain[i] = read(tensors.weight, 0, channel) * factor;
      bias[i] = fused(read(tensors.bias, 0, channel), factor, after);
    });
  }
  /// u has its shift already. This and the next: each thread does the channels that it has filled.
  __device__ void drop_shift(int count) const {
    for_each(count, [&](int i) { offset[i] = 0.0f; });
  }
  /// mean and rstd are those of the groups of these channels.
  __device__ void normalise(const float* mean, const float* rstd, int of_group, int count) const {
    for_each(count, [&](int i) {
      offset[i] -= mean[i / of_group];
      gain[i] *= rstd[i / of_group];
    });
  }
};

/// The same in a thread's column.
template <int Width>
struct Affine {
  float offset[Width], gain[Width], bias[Width];

  __device__ Affine(const AffineTables& tables, int channel) {
    tables.offset.take(offset, channel);
    tables.gain.take(gain, channel);
    tables.bias.take(bias, channel);
  }
};

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
