#pragma once

namespace progdistill::cuda {

/// Where to launch.
struct Queue {
  int device;
  void* stream;  // a cudaStream_t
};

}  // namespace progdistill::cuda
