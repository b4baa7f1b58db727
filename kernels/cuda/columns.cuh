#pragma once

// How a block of threads walks over channels_last images. A thread keeps to a column of `Width` neighbouring channels, 8
// (16 bytes of bfloat16, twice 16 of float) where numbers of channels and pointers allow, else 1, and goes from pixel to
// pixel; `rows` threads share a column.

#include <type_traits>

#include "channel_values.h"
#include "elements.cuh"
#include "host_device.h"

namespace progdistill::cuda {

/// Width channels of a pixel as they lie in memory: few registers until they are looked at. The intrinsics say that it
/// is the device's memory, which the compiler does not always see.
template <class Element, int Width>
struct Packed {
  static constexpr int kPerVector = 16 / sizeof(Element);
  Words words[Width / kPerVector];

  __device__ void load(const Element* from) {
#pragma unroll
    for (int v = 0; v < Width / kPerVector; ++v) {
      const uint4 whole = __ldcg(reinterpret_cast<const uint4*>(from) + v);
      words[v] = {{whole.x, whole.y, whole.z, whole.w}};
    }
  }
  __device__ void store(Element* to) const {
#pragma unroll
    for (int v = 0; v < Width / kPerVector; ++v) {
      const Words& from = words[v];
      __stwb(reinterpret_cast<uint4*>(to) + v, uint4{from.word[0], from.word[1], from.word[2], from.word[3]});
    }
  }
  __device__ float operator[](int i) const {
    return as_state<float>(cut<Element>(words[i / kPerVector], i % kPerVector));
  }
  /// In rising order of i: the first half of a word clears the second.
  __device__ void set(int i, float value) {
    put(words[i / kPerVector], i % kPerVector, as_element<Element>(value));
  }
};

template <class Element>
struct Packed<Element, 1> {
  Element element;

  __device__ void load(const Element* from) { element = *from; }
  __device__ void store(Element* to) const { *to = element; }
  __device__ float operator[](int) const { return as_state<float>(element); }
  __device__ void set(int, float value) { element = as_element<Element>(value); }
};

/// Loads under way at a time in a thread, for each tensor.
template <class Element>
constexpr int kBatch = 8 / static_cast<int>(sizeof(Element));

/// Channels of one column in one tensor: where they lie in the sample's first pixel, and how far it is to the next.
/// Null: this tensor has no part in the column. A sample's elements are counted in 32 bits.
template <class Element>
struct Lane {
  Element* first;
  int stride;

  __device__ explicit operator bool() const { return first != nullptr; }
  __device__ Element* at(int pixel) const { return first + pixel * stride; }
};

/// The column from `channel` on in a tensor of so many pixels and channels a sample; null if the tensor is.
template <class Element, class Data>
__device__ Lane<Element> lane(Data* data, int64_t sample, int pixels, int channels, int channel) {
  Element* const start = static_cast<Element*>(data);
  return {start == nullptr ? nullptr : start + sample * pixels * channels + channel, channels};
}

__device__ inline float read(const ChannelValues& values, int64_t sample, int channel) {
  const int64_t from = sample * values.stride + channel;
  return values.is_bfloat16 ? float_of_bfloat16(static_cast<const uint16_t*>(values.data)[from])
                            : static_cast<const float*>(values.data)[from];
}

/// A number of every channel in shared memory, formed once by the block: threads that formed their own would read more
/// of them than of the images.
struct Table {
  float* values;

  __device__ float& operator[](int channel) const { return values[channel]; }
  template <int Width>
  __device__ void take(float (&into)[Width], int channel) const {
    load_unit(into, values + channel);
  }
};

/// How the threads of a block share the columns of its tile.
struct Grid {
  int columns;  // of the tile
  int across;   // threads side by side, each on a column at a time
  int rows;     // threads on a column

  PD_HOST_DEVICE Grid(int columns, int threads)
      : columns(columns), across(columns < threads ? columns : threads), rows(threads / across) {}
  int threads() const { return (across * rows + 31) / 32 * 32; }
};

/// body(column, row) for this thread's columns. The last threads of a block may have none.
template <class Body>
__device__ void for_each_column(const Grid& grid, Body&& body) {
  const int row = threadIdx.x / grid.across;
  if (row >= grid.rows) return;
  for (int column = threadIdx.x % grid.across; column < grid.columns; column += grid.across) body(column, row);
}

/// body(i) for i < count, shared by the threads of the block.
template <class Body>
__device__ void for_each(int count, Body&& body) {
  for (int i = threadIdx.x; i < count; i += blockDim.x) body(i);
}

/// Calls body(Element{}, width constant) for a dtype, float32 or bfloat16, and for vectors or not.
template <class Body>
int for_element_and_width(DType dtype, bool vectors, Body&& body) {
  using Wide = std::integral_constant<int, kWidth>;
  using Narrow = std::integral_constant<int, 1>;
  if (dtype == DType::bfloat16) return vectors ? body(uint16_t{}, Wide{}) : body(uint16_t{}, Narrow{});
  return vectors ? body(float{}, Wide{}) : body(float{}, Narrow{});
}

}  // namespace progdistill::cuda
