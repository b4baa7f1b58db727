#pragma once

// Images whose channels lie in two tensors, walked over as if in one.

#include "columns.cuh"
#include "group_norm.h"

namespace progdistill::cuda {

/// The column from `channel` on in a tensor of `channels`; null if the tensor is.
template <class Element, class Data>
__device__ Lane<Element> lane(Data* data, const GroupNormSize& size, int64_t sample, int channels, int channel) {
  return lane<Element>(data, sample, size.pixels, channels, channel);
}

/// The column from `channel` on, counted through x and then skip, in whichever of them it lies.
template <class Element, class Data>
__device__ Lane<Element> lane(Data* x, Data* skip, const GroupNormSize& size, int64_t sample, int channel) {
  return channel < size.channels ? lane<Element>(x, size, sample, size.channels, channel)
                                 : lane<Element>(skip, size, sample, size.skip_channels, channel - size.channels);
}

}  // namespace progdistill::cuda
