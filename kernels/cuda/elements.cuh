#pragma once

// What a thread holds of a sample, and how it gets from memory and back. A block of threads does one chunk of one
// sample; a thread does units of it, one after the other, each of `Width` neighbours: 8 (16 bytes of bfloat16, twice 16 of
// float) where samples and pointers allow, else 1. One unit at a time needs few registers, so that many threads have
// loads under way.

#include <type_traits>

#include "arithmetic.h"
#include "bfloat16.h"
#include "images.h"
#include "launch.cuh"
#include "launchers.h"

namespace progdistill::cuda {

constexpr int kThreads = 256;
constexpr int kWidth = 8;

/// How many blocks shall fit on a multiprocessor, which bounds their registers: 64 for float.
template <class T>
constexpr int kBlocksPerProcessor = sizeof(T) == 4 ? 4 : 2;

template <int Width>
constexpr int kUnits = static_cast<int>(kChunk) / (kThreads * Width);

/// One head of an image tensor, read or written in the order of states.
struct Plane {
  void* data;
  int64_t sample_stride;
  int64_t start;     // of the head in a sample
  uint32_t interleaved;  // channels of a head, if a pixel holds those of two heads; else 0
  bool is_bfloat16;  // else it holds what states hold
};

inline Plane plane(void* data, DType dtype, int heads, int head, const Layout& layout) {
  const bool interleaved = heads > 1 && layout.channels_last;
  const int64_t between = interleaved ? layout.channels : layout.elements;
  return {
      data, heads * layout.elements, head * between, interleaved ? static_cast<uint32_t>(layout.channels) : 0,
      dtype == DType::bfloat16};
}
inline Plane plane(const Source& source, int head, const Layout& layout) {
  return plane(const_cast<void*>(source.data), source.dtype, source.heads, head, layout);
}
inline Plane plane(const Sink& sink, int head, const Layout& layout) {
  return plane(sink.data, sink.dtype, sink.heads, head, layout);
}

/// Whether units of kWidth elements can be moved as vectors of 16 bytes.
template <class... Tensors>
bool takes_vectors(const Layout& layout, const Tensors&... tensors) {
  const auto aligned = [](const auto& tensor) { return reinterpret_cast<uintptr_t>(tensor.data) % 16 == 0; };
  return layout.elements % kWidth == 0 && (aligned(tensors) && ...);
}

/// The part of a sample that a block does.
struct Part {
  int64_t sample;
  uint32_t first, elements;

  __device__ Part(uint32_t elements, uint32_t chunks)
      : sample(blockIdx.x / chunks), first(blockIdx.x % chunks * kChunk), elements(elements) {}

  /// body(element) for the first elements of this thread's units. A unit never straddles a sample's end.
  template <int Width, class Body>
  __device__ void for_each_unit(Body&& body) const {
    for (int k = 0; k < kUnits<Width>; ++k) {
      const uint32_t element = first + (k * kThreads + threadIdx.x) * Width;
      if (element < elements) body(element);
    }
  }
};

template <class T, int Width>
struct Unit {
  T value[Width];

  template <class Body>
  __device__ void each(Body&& body) {
#pragma unroll
    for (int i = 0; i < Width; ++i) value[i] = body(i);
  }
};

/// 16 bytes as the hardware moves them at once. Compilers load and store structs and unions of smaller members piece by
/// piece, so values are cut out of words and put together from them by hand.
struct Words {
  uint32_t word[4];
};

__device__ inline Words load_words(const void* from) {
  const uint4 whole = *static_cast<const uint4*>(from);
  return {{whole.x, whole.y, whole.z, whole.w}};
}

__device__ inline void store_words(void* to, const Words& from) {
  *static_cast<uint4*>(to) = uint4{from.word[0], from.word[1], from.word[2], from.word[3]};
}

/// Element i of 16 bytes.
template <class Element>
__device__ inline Element cut(const Words& words, int i) {
  if constexpr (sizeof(Element) == 2) {
    return static_cast<uint16_t>(words.word[i / 2] >> (16 * (i % 2)));
  } else {
    Element value;
    memcpy(&value, &words.word[i * sizeof(Element) / 4], sizeof(Element));
    return value;
  }
}

template <class Element>
__device__ inline void put(Words& words, int i, Element value) {
  if constexpr (sizeof(Element) == 2) {
    words.word[i / 2] = i % 2 == 0 ? value : words.word[i / 2] | static_cast<uint32_t>(value) << 16;
  } else {
    memcpy(&words.word[i * sizeof(Element) / 4], &value, sizeof(Element));
  }
}

template <class T, class Element>
__device__ inline T as_state(Element value) {
  if constexpr (sizeof(Element) == 2) {
    return float_of_bfloat16(value);
  } else {
    return value;
  }
}

template <class T, int Width, class Element>
__device__ inline void load_unit(T (&into)[Width], const Element* from) {
  if constexpr (Width == 1) {
    into[0] = as_state<T>(*from);
  } else {
    constexpr int kPerVector = 16 / sizeof(Element);
#pragma unroll
    for (int v = 0; v < Width / kPerVector; ++v) {
      const Words words = load_words(from + v * kPerVector);
#pragma unroll
      for (int i = 0; i < kPerVector; ++i) into[v * kPerVector + i] = as_state<T>(cut<Element>(words, i));
    }
  }
}

template <class Element, class T>
__device__ inline Element as_element(T value) {
  if constexpr (sizeof(Element) == 2) {
    return rounded_to_bfloat16(static_cast<float>(value));
  } else {
    return value;
  }
}

template <class T, int Width, class Element>
__device__ inline void store_unit(Element* to, const T (&from)[Width]) {
  if constexpr (Width == 1) {
    *to = as_element<Element>(from[0]);
  } else {
    constexpr int kPerVector = 16 / sizeof(Element);
#pragma unroll
    for (int v = 0; v < Width / kPerVector; ++v) {
      Words words;
#pragma unroll
      for (int i = 0; i < kPerVector; ++i) put(words, i, as_element<Element>(from[v * kPerVector + i]));
      store_words(to + v * kPerVector, words);
    }
  }
}

/// Where element e of a head lies in its sample when pixels hold the channels of two heads.
__device__ inline int64_t interleaved_offset(uint32_t e, uint32_t channels) {
  return int64_t{e} + e / channels * channels;  // e / channels pixels before it, each with the other head's channels
}

template <class Element, class T, int Width>
__device__ inline void load_as(Unit<T, Width>& unit, const Plane& plane, int64_t sample, uint32_t element) {
  const Element* from = static_cast<const Element*>(plane.data) + sample * plane.sample_stride + plane.start;
  if (plane.interleaved == 0) {
    load_unit(unit.value, from + element);
  } else {
    unit.each([&](int i) { return as_state<T>(from[interleaved_offset(element + i, plane.interleaved)]); });
  }
}

template <class Element, class T, int Width>
__device__ inline void store_as(const Unit<T, Width>& unit, const Plane& plane, int64_t sample, uint32_t element) {
  Element* to = static_cast<Element*>(plane.data) + sample * plane.sample_stride + plane.start;
  if (plane.interleaved == 0) {
    store_unit(to + element, unit.value);
  } else {
#pragma unroll
    for (int i = 0; i < Width; ++i) {
      to[interleaved_offset(element + i, plane.interleaved)] = as_element<Element>(unit.value[i]);
    }
  }
}

template <class T, int Width>
__device__ inline void load(Unit<T, Width>& unit, const Plane& plane, int64_t sample, uint32_t element) {
  if (sizeof(T) == 4 && plane.is_bfloat16) {
    load_as<uint16_t>(unit, plane, sample, element);
  } else {
    load_as<T>(unit, plane, sample, element);
  }
}

template <class T, int Width>
__device__ inline void store(const Unit<T, Width>& unit, const Plane& plane, int64_t sample, uint32_t element) {
  if (sizeof(T) == 4 && plane.is_bfloat16) {
    store_as<uint16_t>(unit, plane, sample, element);
  } else {
    store_as<T>(unit, plane, sample, element);
  }
}

/// sum += coefficient * plane. Structural zeros are not read.
template <class T, int Width>
__device__ inline void add(Unit<T, Width>& sum, T coefficient, const Plane& plane, int64_t sample, uint32_t element) {
  if (coefficient == 0) return;
  Unit<T, Width> term;
  load(term, plane, sample, element);
  sum.each([&](int i) { return fused(coefficient, term.value[i], sum.value[i]); });
}

/// Calls body(T{}, width constant) for the state type and width of a call.
template <class Body>
int for_state_type_and_width(const Layout& layout, bool vectors, Body&& body) {
  if (layout.elements > INT32_MAX) return cudaErrorInvalidValue;  // elements of a sample are counted in 32 bits
  using Wide = std::integral_constant<int, kWidth>;
  using Narrow = std::integral_constant<int, 1>;
  if (layout.dtype == DType::float64) return vectors ? body(double{}, Wide{}) : body(double{}, Narrow{});
  return vectors ? body(float{}, Wide{}) : body(float{}, Narrow{});
}

}  // namespace progdistill::cuda
