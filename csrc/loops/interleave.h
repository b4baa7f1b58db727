#pragma once

// Pixels that hold the channels of two heads, taken apart and put together again: what two-headed outputs in
// channels_last order need. Whole groups of pixels move by shuffles of vectors with constant masks, the rest one by one.
// Included by loops.cpp alone, once for each instruction set.

#include <cstdint>
#include <cstring>

#include "host_device.h"

namespace progdistill {

#if defined(__AVX2__) && defined(__GNUC__) && !defined(__clang__)
#define PD_SHUFFLES

#if defined(__AVX512F__)
constexpr int kVector = 16;
#else
constexpr int kVector = 8;
#endif

typedef float Floats __attribute__((vector_size(4 * kVector)));
typedef int32_t Lanes __attribute__((vector_size(4 * kVector)));

PD_LOCAL Floats load_floats(const float* from) {
  Floats value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}
PD_LOCAL void store_floats(float* to, Floats value) { std::memcpy(to, &value, sizeof(value)); }

/// The vector whose lane l is lane_of(l) of a and b side by side.
template <class LaneOf>
PD_LOCAL Floats shuffled(Floats a, Floats b, LaneOf lane_of) {
  Lanes mask;
  for (int l = 0; l < kVector; ++l) mask[l] = lane_of(l);
  return __builtin_shuffle(a, b, mask);
}

/// Vector `Index` of a head's elements, out of a group of kVector pixels of 2 * Channels floats each.
template <int Channels, int Head, int Index>
PD_LOCAL Floats split_vector(const float* pixels) {
  constexpr int kOffset = Head * Channels, kLast = 2 * Channels - 1;  // the last vector of the group
  constexpr auto place = [](int l) constexpr {
    const int j = Index * kVector + l;
    return j / Channels * 2 * Channels + j % Channels + kOffset;
  };
  constexpr int kFirst = place(0) / kVector, kSecond = kFirst < kLast ? kFirst + 1 : kLast;
  const Floats near = shuffled(
      load_floats(pixels + kFirst * kVector), load_floats(pixels + kSecond * kVector), [=](int l) {
        const int lane = place(l) - kFirst * kVector;
        return lane < 2 * kVector ? lane : 0;
      });
  if constexpr (place(kVector - 1) < (kFirst + 2) * kVector) {
    return near;
  } else {
    return shuffled(near, load_floats(pixels + (kFirst + 2) * kVector), [=](int l) {
      const int lane = place(l) - (kFirst + 2) * kVector;
      return lane < 0 ? l : kVector + lane;
    });
  }
}

/// Vector `Index` of a group of kVector pixels, out of its elements in each head. An output vector has half its lanes
/// from each, so one vector of each head holds them.
template <int Channels, int Index>
PD_LOCAL Floats join_vectors(const float* first, const float* second) {
  constexpr int kBegin = Index * kVector / (2 * Channels) * Channels, kEnd = (Channels - 1) * kVector;
  constexpr int kStart = kBegin < kEnd ? kBegin : kEnd;
  const auto lane_of = [](int l) {
    const int i = Index * kVector + l;
    const int lane = i / (2 * Channels) * Channels + i % Channels - kStart;
    return i % (2 * Channels) < Channels ? lane : kVector + lane;
  };
  return shuffled(load_floats(first + kStart), load_floats(second + kStart), lane_of);
}

template <int Channels, int Head, int... Index>
PD_LOCAL void split_group(float* to, const float* pixels, std::integer_sequence<int, Index...>) {
  (store_floats(to + Index * kVector, split_vector<Channels, Head, Index>(pixels)), ...);
}

template <int Channels, int... Index>
PD_LOCAL void join_group(
    float* pixels, const float* first, const float* second, std::integer_sequence<int, Index...>) {
  (store_floats(pixels + Index * kVector, join_vectors<Channels, Index>(first, second)), ...);
}
#endif

/// to = one head's channels of `count` pixels.
template <int Channels, int Head>
PD_LOCAL void split_pixels(float* to, const float* pixels, int64_t count) {
  int64_t pixel = 0;
#if defined(PD_SHUFFLES)
  for (; pixel + kVector <= count; pixel += kVector) {
    split_group<Channels, Head>(
        to + pixel * Channels, pixels + pixel * 2 * Channels, std::make_integer_sequence<int, Channels>{});
  }
#endif
  for (; pixel < count; ++pixel) {
    for (int c = 0; c < Channels; ++c) to[pixel * Channels + c] = pixels[(2 * pixel + Head) * Channels + c];
  }
}

/// pixels = the channels of both heads, `count` pixels.
template <int Channels>
PD_LOCAL void join_pixels(float* pixels, const float* first, const float* second, int64_t count) {
  int64_t pixel = 0;
#if defined(PD_SHUFFLES)
  for (; pixel + kVector <= count; pixel += kVector) {
    join_group<Channels>(
        pixels + pixel * 2 * Channels, first + pixel * Channels, second + pixel * Channels,
        std::make_integer_sequence<int, 2 * Channels>{});
  }
#endif
  for (; pixel < count; ++pixel) {
    for (int c = 0; c < Channels; ++c) {
      pixels[2 * pixel * Channels + c] = first[pixel * Channels + c];
      pixels[(2 * pixel + 1) * Channels + c] = second[pixel * Channels + c];
    }
  }
}

}  // namespace progdistill
