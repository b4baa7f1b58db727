#pragma once

#include <cstdint>

namespace progdistill {

enum class DType : int { float32, float64, bfloat16, int64 };

/// How the images of a call lie in memory: `samples` of `elements` each (all channels), in one dense order. In
/// channels_last order the channels run fastest, which interleaves the heads of a two-headed output.
struct Layout {
  int64_t samples;
  int64_t elements;
  int64_t channels;
  bool channels_last;
  DType dtype;  // of states: float32 or float64
};

/// A tensor (samples, heads * channels, ...) in that order: a state (one head, the layout's dtype) or a network output
/// (also bfloat16).
struct Source {
  const void* data;
  DType dtype;
  int heads;
};

struct Sink {
  void* data;
  DType dtype;
  int heads;
};

}  // namespace progdistill
