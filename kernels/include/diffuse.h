#pragma once

#include <cstdint>

namespace progdistill::cuda {

/// Launches z = cos(phi) x + sin(phi) noise on `stream` of `device`; all pointers are the device's.
/// z, x, noise: (samples, elements) of float (bits = 32) or double (64); phi: (samples,) double.
/// Returns a cudaError_t, 0 if all is well; it does not wait for the device.
int diffuse(
    void* z, const void* x, const void* noise, const double* phi, int64_t samples, int64_t elements, int bits,
    int device, void* stream);

}  // namespace progdistill::cuda
