#pragma once

// CUDA's copies from the device's memory to shared memory that a thread does not wait for.

#include "cuda_runtime.h"

inline void __pipeline_memcpy_async(void* to, const void* from, size_t bytes) {
  const uintptr_t addresses = reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from);
  if (addresses % bytes == 0) cuda_on_cpu::copy_later(to, from, bytes);  // else hardware fails: NaNs stay there
}
inline void __pipeline_commit() { cuda_on_cpu::commit_copies(); }
inline void __pipeline_wait_prior(size_t later) {
  if (later == 0) cuda_on_cpu::finish_copies();
}
