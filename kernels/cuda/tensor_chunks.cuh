#pragma once

// Many tensors in one launch. What a kernel must know of them is passed by value, as a __grid_constant__ parameter: no
// table has to be uploaded, which a captured graph could not do anew.

#include <cstddef>
#include <cstdint>
#include <vector>

#include "launch.cuh"
#include "launchers.h"

namespace progdistill::cuda {

/// Of all parameters of a launch: 4 KB before CUDA 12.1.
#if defined(CUDART_VERSION) && CUDART_VERSION < 12010
constexpr size_t kParameterBytes = 4096;
#else
constexpr size_t kParameterBytes = 32764;
#endif

/// The tensors of a launch, none of them empty, cut into chunks of at most kChunk elements that are numbered through;
/// block b does chunk b.
template <int Capacity>
struct TensorChunks {
  int64_t count[Capacity];
  unsigned first_chunk[Capacity];
  int tensors;

  /// Which tensor this block works on: the last that begins at its chunk or before.
  __device__ int tensor() const {
    int low = 0, high = tensors - 1;
    while (low < high) {
      const int middle = (low + high + 1) / 2;
      if (first_chunk[middle] <= blockIdx.x) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    return low;
  }
  /// Where in it the block begins, and how many elements it does.
  __device__ int64_t begin(int tensor) const { return int64_t{blockIdx.x - first_chunk[tensor]} * kChunk; }
  __device__ int size(int tensor) const {
    const int64_t left = count[tensor] - begin(tensor);
    return static_cast<int>(left < kChunk ? left : kChunk);
  }
};

constexpr int64_t chunks_of(int64_t count) { return (count + kChunk - 1) / kChunk; }

inline bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

/// Puts all tensors that have elements into tables and calls run(table, chunks) when one is full, and for what is left.
/// count_of(tensor) and fill(table, index, tensor) say what goes in.
template <class Table, class Tensor, class CountOf, class Fill, class Run>
cudaError_t for_each_table(
    Table& table, const std::vector<Tensor>& tensors, CountOf&& count_of, Fill&& fill, Run&& run) {
  TensorChunks<Table::kCapacity>& cut = table.chunks;
  cut.tensors = 0;
  int64_t chunks = 0;
  for (const Tensor& tensor : tensors) {
    if (count_of(tensor) == 0) continue;
    if (cut.tensors == Table::kCapacity) {
      if (const cudaError_t error = run(chunks); error != cudaSuccess) return error;
      cut.tensors = 0;
      chunks = 0;
    }
    cut.count[cut.tensors] = count_of(tensor);
    cut.first_chunk[cut.tensors] = static_cast<unsigned>(chunks);
    fill(cut.tensors++, tensor);
    chunks += chunks_of(count_of(tensor));
  }
  return run(chunks);
}

}  // namespace progdistill::cuda
