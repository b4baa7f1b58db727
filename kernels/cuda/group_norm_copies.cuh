#pragma once

// Tiles of images in shared memory. Only the thread that has copied a number there looks at it: no barrier is needed.

#include <cuda_pipeline.h>

#include "group_norm_chunks.cuh"

namespace progdistill::cuda {

/// A thread's column of a tile in shared memory, (pixels, channels) as in the image, but for float32, of which the
/// second vectors of all columns follow the first ones: neighbouring threads meet neighbouring banks.
template <class Element, int Width>
struct KeptColumn {
  static constexpr int kVectors = Width * sizeof(Element) / sizeof(uint4);
  uint4* first;
  int columns, vectors;  // of a pixel, and in all columns

  __device__ KeptColumn(void* tile, int columns, int pixels, int column)
      : first(static_cast<uint4*>(tile) + column), columns(columns), vectors(columns * pixels) {}

  __device__ Packed<Element, Width> operator[](int pixel) const {
    Packed<Element, Width> value;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) value.words[v] = load_words(first + pixel * columns + v * vectors);
    return value;
  }
  __device__ void put(int pixel, const Packed<Element, Width>& value) const {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) store_words(first + pixel * columns + v * vectors, value.words[v]);
  }
  /// Begins to copy pixels [begin, end): all are under way at once, and there are none to be held in registers.
  __device__ void copy(const Lane<const Element>& from, int begin, int end, int rows) const {
    for (int pixel = begin; pixel < end; pixel += rows) {
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        uint4* const to = first + pixel * columns + v * vectors;
        __pipeline_memcpy_async(to, reinterpret_cast<const uint4*>(from.at(pixel)) + v, sizeof(uint4));
      }
    }
    __pipeline_commit();
  }
  /// Waits for this thread's copies.
  static __device__ void wait() { __pipeline_wait_prior(0); }
};

template <class Element>
struct KeptColumn<Element, 1> {
  Element* first;
  int columns;

  __device__ KeptColumn(void* tile, int columns, int, int column)
      : first(static_cast<Element*>(tile) + column), columns(columns) {}

  __device__ Packed<Element, 1> operator[](int pixel) const { return {first[pixel * columns]}; }
  __device__ void put(int pixel, const Packed<Element, 1>& value) const { first[pixel * columns] = value.element; }
  __device__ void copy(const Lane<const Element>& from, int begin, int end, int rows) const {
    constexpr int kLoads = 8;
    for (int pixel = begin; pixel < end; pixel += kLoads * rows) {
      Packed<Element, 1> own[kLoads];
#pragma unroll
      for (int k = 0; k < kLoads; ++k) {
        if (pixel + k * rows < end) own[k].load(from.at(pixel + k * rows));
      }
#pragma unroll
      for (int k = 0; k < kLoads; ++k) {
        if (pixel + k * rows < end) put(pixel + k * rows, own[k]);
      }
    }
  }
  static __device__ void wait() {}
};

}  // namespace progdistill::cuda
