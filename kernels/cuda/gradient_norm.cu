#include "block_sum.cuh"
#include "elements.cuh"
#include "tensor_chunks.cuh"

namespace progdistill::cuda {
namespace {

struct Table {
  static constexpr int kCapacity = (kParameterBytes - 64) / 22;
  TensorChunks<kCapacity> chunks;
  const void* data[kCapacity];
  unsigned char dtype[kCapacity];
  unsigned char aligned[kCapacity];  // to 16 bytes
};

template <class T, int Width>
__device__ double squares(const T (&values)[Width], double sum) {
#pragma unroll
  for (int i = 0; i < Width; ++i) {
    const double value = values[i];
    sum = fused(value, value, sum);
  }
  return sum;
}

/// This thread's part of the sum over `size` elements.
template <class T, class Element>
__device__ double thread_sum(const Element* from, int size, bool aligned) {
  const int whole = aligned ? size / kWidth * kWidth : 0;
  double sum = 0.0;
#pragma unroll 2
  for (int e = threadIdx.x * kWidth; e < whole; e += kThreads * kWidth) {
    T values[kWidth];
    load_unit(values, from + e);
    sum = squares(values, sum);
  }
  for (int e = whole + threadIdx.x; e < size; e += kThreads) {
    T value[1];
    load_unit(value, from + e);
    sum = squares(value, sum);
  }
  return sum;
}

__global__ void __launch_bounds__(kThreads)
    sum_of_squares_kernel(double* __restrict__ partials, const __grid_constant__ Table table) {
  const int tensor = table.chunks.tensor();
  const int64_t begin = table.chunks.begin(tensor);
  const int size = table.chunks.size(tensor);
  const void* data = table.data[tensor];
  const bool aligned = table.aligned[tensor];
  double sum;
  switch (static_cast<DType>(table.dtype[tensor])) {
    case DType::bfloat16:
      sum = thread_sum<float>(static_cast<const uint16_t*>(data) + begin, size, aligned);
      break;
    case DType::float64:
      sum = thread_sum<double>(static_cast<const double*>(data) + begin, size, aligned);
      break;
    default:
      sum = thread_sum<float>(static_cast<const float*>(data) + begin, size, aligned);
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

/// One block adds up the chunks, always in the same order.
template <class T>
__global__ void __launch_bounds__(kThreads)
    root_of_sum_kernel(T* __restrict__ norm, const double* __restrict__ partials, int64_t chunks) {
  double sum = 0.0;
#pragma unroll 8
  for (int64_t chunk = threadIdx.x; chunk < chunks; chunk += kThreads) sum += partials[chunk];
  sum = block_sum(sum);
  if (threadIdx.x == 0) *norm = static_cast<T>(square_root(sum));
}

}  // namespace

int64_t gradient_norm_partials(const std::vector<Gradient>& grads) {
  int64_t chunks = 0;
  for (const Gradient& grad : grads) chunks += chunks_of(grad.count);
  return chunks;
}

int gradient_norm(
    void* norm, DType dtype, double* partials, const std::vector<Gradient>& grads, const Queue& queue) {
  Table table;
  static_assert(sizeof(table) + sizeof(partials) <= kParameterBytes);
  int64_t done = 0;
  const cudaError_t error = for_each_table(
      table, grads, [](const Gradient& grad) { return grad.count; },
      [&](int i, const Gradient& grad) {
        table.data[i] = grad.data;
        table.dtype[i] = static_cast<unsigned char>(grad.dtype);
        table.aligned[i] = is_aligned(grad.data);
      },
      [&](int64_t chunks) {
        const cudaError_t failed = launch(sum_of_squares_kernel, chunks, kThreads, queue, partials + done, table);
        done += chunks;
        return failed;
      });
  if (error != cudaSuccess) return error;
  return dtype == DType::float64
             ? launch(root_of_sum_kernel<double>, 1, kThreads, queue, static_cast<double*>(norm), partials, done)
             : launch(root_of_sum_kernel<float>, 1, kThreads, queue, static_cast<float*>(norm), partials, done);
}

}  // namespace progdistill::cuda
