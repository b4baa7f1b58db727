#pragma once

// Marks functions that host compilers and nvcc both compile.
#if defined(__CUDACC__)
#define PD_HOST_DEVICE __host__ __device__
#else
#define PD_HOST_DEVICE
#endif
