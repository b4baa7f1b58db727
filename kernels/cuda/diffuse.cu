#include "diffuse.h"

#include <type_traits>

#include "launch.cuh"

namespace progdistill::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kUnitsPerThread = 4;

__device__ inline float fused(float a, float b, float c) { return fmaf(a, b, c); }
__device__ inline double fused(double a, double b, double c) { return fma(a, b, c); }

template <class T>
struct Rotation {
  T cos, sin;
};

/// One sample's rotation, formed in double by one thread and shared by its block.
template <class T>
__device__ Rotation<T> rotation_of(const double* phi, int64_t sample) {
  __shared__ Rotation<T> shared;
  if (threadIdx.x == 0) {
    double sin, cos;
    sincos(phi[sample], &sin, &cos);
    shared = {static_cast<T>(cos), static_cast<T>(sin)};
  }
  __syncthreads();
  return shared;
}

/// What a thread moves at a time: a vector, or one element where samples are no whole number of aligned vectors.
template <class T, bool Vectors>
using Unit = std::conditional_t<Vectors, uint4, T>;

template <class T>
__device__ T rotated(T x, T noise, Rotation<T> by) {
  return fused(by.sin, noise, by.cos * x);
}

template <class T>
__device__ uint4 rotated(uint4 x, uint4 noise, Rotation<T> by) {
  Vector<T> a{x}, b{noise}, z;
#pragma unroll
  for (int i = 0; i < Vector<T>::kSize; ++i) z.part[i] = rotated(a.part[i], b.part[i], by);
  return z.whole;
}

/// A block of threads does one chunk of one sample. All loads are under way before the rotation is waited for.
template <class T, bool Vectors>
__global__ void __launch_bounds__(kThreads) diffuse_kernel(
    Unit<T, Vectors>* __restrict__ z, const Unit<T, Vectors>* __restrict__ x,
    const Unit<T, Vectors>* __restrict__ noise, const double* __restrict__ phi, int64_t units, unsigned chunks) {
  const unsigned sample = blockIdx.x / chunks, chunk = blockIdx.x % chunks;
  const int64_t offset = sample * units, first = int64_t{chunk} * kThreads * kUnitsPerThread + threadIdx.x;
  Unit<T, Vectors> a[kUnitsPerThread], b[kUnitsPerThread];
#pragma unroll
  for (int k = 0; k < kUnitsPerThread; ++k) {
    const int64_t unit = first + k * kThreads;
    if (unit >= units) break;
    a[k] = x[offset + unit];
    b[k] = noise[offset + unit];
  }
  const Rotation<T> by = rotation_of<T>(phi, sample);
#pragma unroll
  for (int k = 0; k < kUnitsPerThread; ++k) {
    const int64_t unit = first + k * kThreads;
    if (unit < units) z[offset + unit] = rotated(a[k], b[k], by);
  }
}

template <class T, bool Vectors>
cudaError_t launch_units(
    void* z, const void* x, const void* noise, const double* phi, int64_t samples, int64_t units,
    cudaStream_t stream) {
  using U = Unit<T, Vectors>;
  const int64_t chunks = (units + kThreads * kUnitsPerThread - 1) / (kThreads * kUnitsPerThread);
  if (samples * chunks == 0) return cudaSuccess;
  if (samples * chunks > INT32_MAX) return cudaErrorInvalidConfiguration;
  diffuse_kernel<T, Vectors><<<static_cast<unsigned>(samples * chunks), kThreads, 0, stream>>>(
      static_cast<U*>(z), static_cast<const U*>(x), static_cast<const U*>(noise), phi, units,
      static_cast<unsigned>(chunks));
  return cudaGetLastError();
}

template <class T>
cudaError_t launch(
    void* z, const void* x, const void* noise, const double* phi, int64_t samples, int64_t elements,
    cudaStream_t stream) {
  constexpr int kSize = Vector<T>::kSize;
  const bool aligned = is_aligned_16(z) && is_aligned_16(x) && is_aligned_16(noise);
  return aligned && elements % kSize == 0
             ? launch_units<T, true>(z, x, noise, phi, samples, elements / kSize, stream)
             : launch_units<T, false>(z, x, noise, phi, samples, elements, stream);
}

}  // namespace

int diffuse(
    void* z, const void* x, const void* noise, const double* phi, int64_t samples, int64_t elements, int bits,
    int device, void* stream) {
  const DeviceGuard guard(device);
  if (guard.error() != cudaSuccess) return guard.error();
  auto* queue = static_cast<cudaStream_t>(stream);
  return bits == 64 ? launch<double>(z, x, noise, phi, samples, elements, queue)
                    : launch<float>(z, x, noise, phi, samples, elements, queue);
}

}  // namespace progdistill::cuda
