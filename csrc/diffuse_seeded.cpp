#include "angles.h"
#include "block.h"
#include "ops.h"
#include "watch.h"

namespace progdistill {
namespace {

constexpr int64_t kNormals = kBlock + 4;  // of a block's elements, and those that share a counter with the first

/// Where normals come from: an image's seed, and what all images of a call share.
struct Stream {
  uint64_t seed;
  uint64_t step;
  uint32_t stream;
};

/// The normals of elements [first, first + n), n <= kBlock: the first of them, within `buffer`.
const float* normals(const Stream& stream, int64_t first, int64_t n, float (&buffer)[kNormals]) {
  const int64_t before = first % 4, counters = (before + n + 3) / 4;
  loops().normal(buffer, stream.seed, static_cast<uint32_t>(first / 4), stream.stream, stream.step, counters);
  return buffer + before;
}

/// Noise of a block of a channels_last sample: each channel's pixels are a run of elements in contiguous order.
template <class T>
void fill_by_channels(T* noise, const Stream& stream, const Layout& layout, const Block& block) {
  const int64_t channels = layout.channels, pixels = layout.elements / channels;
  float buffer[kNormals];
  for (int64_t channel = 0; channel < channels; ++channel) {
    // The block's elements of this channel: block.first + i with (block.first + i) % channels == channel.
    const int64_t i0 = (channel - block.first % channels + channels) % channels;
    if (i0 >= block.size) continue;
    const int64_t pixel = (block.first + i0) / channels, count = (block.size - i0 + channels - 1) / channels;
    const float* values = normals(stream, channel * pixels + pixel, count, buffer);
    for (int64_t k = 0; k < count; ++k) noise[i0 + k * channels] = values[k];
  }
}

template <class T>
void fill(T* noise, const Stream& stream, const Layout& layout, const Block& block) {
  if (layout.channels_last) return fill_by_channels(noise, stream, layout, block);
  float buffer[kNormals];
  const float* values = normals(stream, block.first, block.size, buffer);
  for (int64_t i = 0; i < block.size; ++i) noise[i] = values[i];
}

}  // namespace

bool diffuse_seeded(
    const Layout& layout, const Sink& z, const Source& x, const int64_t* seeds, int64_t step, uint32_t stream,
    const double* phi, int threads) {
  struct Coefficients {
    SineCosine by;
    Stream from;
  };
  Watch watch;
  for_state_type(layout, [&](auto zero) {
    using T = decltype(zero);
    for_each_block<T>(
        layout, Blocks(layout, false), threads,
        [&](int64_t b) {
          watch.angle(phi[b]);
          const Stream from{static_cast<uint64_t>(seeds[b]), static_cast<uint64_t>(step), stream};
          return Coefficients{sine_and_cosine(phi[b]), from};
        },
        [&](const Coefficients& of, const Block& block, Scratch<T>& scratch) {
          fill(scratch.x, of.from, layout, block);
          Sum<T> sum(layout, block, scratch);
          sum.add(x, 0, of.by.cos);
          sum.add(scratch.x, of.by.sin);
          T* to = destination<T>(z, 0, layout, block, scratch.state);
          sum.write(to);
          commit(z, layout, block, &to);
        });
  });
  return watch.all_well();
}

}  // namespace progdistill
