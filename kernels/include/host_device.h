#pragma once

// Marks functions that host compilers and nvcc both compile.
#if defined(__CUDACC__)
#define PD_HOST_DEVICE __host__ __device__
#else
#define PD_HOST_DEVICE
#endif

// The same for what the CPU loops use too: they are compiled for several instruction sets, and the linker must not merge
// their copies.
#define PD_LOCAL PD_HOST_DEVICE static inline
