#pragma once

// CUDA's words for a compiler that knows none of them: kernels/cuda compiled with these headers runs on the CPU, one
// block after the other, its threads as coroutines that change places at barriers and shuffles. What this shows is what
// the code computes and where it reads and writes; speed, and races that only hardware has, it cannot show.

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static
#define __grid_constant__
#define __launch_bounds__(...)
#define __noinline__

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

using cudaError_t = int;
using cudaStream_t = void*;
constexpr cudaError_t cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9;
constexpr cudaError_t cudaErrorLaunchFailure = 719;

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  void* attrs = nullptr;
  unsigned numAttrs = 0;
};

namespace cuda_on_cpu {

enum class Barrier { none, warp, block };

/// Lets the other threads of the warp or block come as far.
void wait(Barrier barrier);

/// Where the current thread's lane, and another lane, put a value to be read by their warp.
void* slot_of(unsigned lane);
unsigned current_lane();
void next_slots();

/// The block's shared memory of dynamicSmemBytes; NaNs where nobody has written.
void* dynamic_shared();

/// Copies of the current thread, of which nothing is to be seen before they are finished.
void copy_later(void* to, const void* from, size_t bytes);
void commit_copies();
void finish_copies();

/// Runs body(context) once for every thread of every block; a barrier that not all of its threads reach is an error.
cudaError_t run(const cudaLaunchConfig_t& config, void (*body)(void*), void* context);

template <class T>
T exchanged(T value, unsigned from) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  std::memcpy(slot_of(current_lane()), &value, sizeof(T));
  wait(Barrier::warp);
  std::memcpy(&value, slot_of(from), sizeof(T));
  next_slots();
  return value;
}

/// An address that a GPU would not take for 16 bytes, which this machine does, ends the process.
template <class Vector>
Vector* aligned(Vector* address) {
  if (reinterpret_cast<uintptr_t>(address) % sizeof(Vector) == 0) return address;
  std::fprintf(stderr, "16 bytes are read or written at %p: misaligned address\n", static_cast<const void*>(address));
  std::abort();
}

}  // namespace cuda_on_cpu

inline float __expf(float x) { return std::exp(x); }
inline float __fdividef(float x, float y) { return x / y; }

inline uint4 __ldcg(const uint4* from) { return *cuda_on_cpu::aligned(from); }
inline void __stwb(uint4* to, uint4 value) { *cuda_on_cpu::aligned(to) = value; }

inline void __syncthreads() { cuda_on_cpu::wait(cuda_on_cpu::Barrier::block); }

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return cuda_on_cpu::exchanged(value, cuda_on_cpu::current_lane() ^ mask);
}

// tests/simulated_gpu has them: a launch on a stream that captures becomes a node of the graph.
extern "C" __attribute__((weak)) int simulated_gpu_captures(void* stream);
extern "C" __attribute__((weak)) int simulated_gpu_enqueue(void* stream, void (*call)(void*), void* argument);

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(
    const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), Arguments&&... arguments) {
  auto launch = [config = *config, kernel, values = std::tuple<Parameters...>(std::forward<Arguments>(arguments)...)] {
    auto thread = [&] { std::apply(kernel, values); };
    return cuda_on_cpu::run(config, [](void* context) { (*static_cast<decltype(thread)*>(context))(); }, &thread);
  };
  if (simulated_gpu_captures == nullptr || !simulated_gpu_captures(config->stream)) return launch();
  using Launch = decltype(launch);
  return simulated_gpu_enqueue(
      config->stream, [](void* node) { (*static_cast<Launch*>(node))(); }, new Launch(launch));
}

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
inline cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int bytes) {
  return bytes <= 227 * 1024 ? cudaSuccess : cudaErrorInvalidValue;
}
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorLaunchFailure ? "a barrier was not reached by all threads" : "invalid launch";
}
