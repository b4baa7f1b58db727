#include "block.h"

#include <type_traits>

#include "bfloat16.h"

namespace progdistill {
namespace {

/// Whether a head's elements lie side by side in the order of states.
bool is_plain(int heads, const Layout& layout) { return heads == 1 || !layout.channels_last; }

int64_t plain_offset(int heads, int head, const Layout& layout, const Block& block) {
  return (block.sample * heads + head) * layout.elements + block.first;
}

/// Asks for memory that is needed soon. The processor foresees that by itself where a loop runs over all tensors side by
/// side; one that reads a single tensor ends before the pattern has shown.
template <class Element>
inline void prefetch(const Element* first, int64_t n) {
  constexpr int64_t kPerCacheLine = 64 / sizeof(Element);
  for (int64_t i = 0; i < n; i += kPerCacheLine) __builtin_prefetch(first + i, 0, 2);
}

// Cache lines of the next block that are asked for while this one is worked on: a float block is a page of memory, at
// whose end the processor's own foresight ends.
constexpr int64_t kAhead = 4;

/// Where a block's pixels begin in a tensor whose pixels hold two heads. Blocks are whole pixels (block_length).
int64_t pixel_offset(const Layout& layout, const Block& block) {
  return 2 * (block.sample * layout.elements + block.first);
}

}  // namespace

template <class T>
const T* read(const Source& source, int head, const Layout& layout, const Block& block, T* buffer) {
  const auto* values = static_cast<const T*>(source.data);
  const auto* halves = static_cast<const uint16_t*>(source.data);
  if (is_plain(source.heads, layout)) {
    const int64_t offset = plain_offset(source.heads, head, layout, block);
    if constexpr (std::is_same_v<T, float>) {
      if (source.dtype == DType::bfloat16) {
        prefetch(halves + offset + block.size, block.size);
        loops().bfloat16_to_float(buffer, halves + offset, block.size);
        return buffer;
      }
    }
    prefetch(values + offset + block.size, kAhead * 64 / sizeof(T));
    return values + offset;
  }
  const int64_t first = pixel_offset(layout, block), count = 2 * block.size;
  const T* pixels = values + first;
  alignas(64) T widened[2 * kBlock];
  if constexpr (std::is_same_v<T, float>) {
    if (source.dtype == DType::bfloat16) {
      if (head == 0) prefetch(halves + first + count, count);
      loops().bfloat16_to_float(widened, halves + first, count);
      pixels = widened;
    }
  }
  if (head == 0 && pixels != widened) prefetch(pixels + count, count);
  typed_loops<T>().split(buffer, pixels, layout.channels, head, block.size / layout.channels);
  return buffer;
}

template <class T>
T* destination(const Sink& sink, int head, const Layout& layout, const Block& block, T* buffer) {
  auto* values = static_cast<T*>(sink.data);
  const bool direct = is_plain(sink.heads, layout) && sink.dtype == layout.dtype;
  return direct ? values + plain_offset(sink.heads, head, layout, block) : buffer;
}

template <class T>
void commit(const Sink& sink, const Layout& layout, const Block& block, T* const* written) {
  auto* values = static_cast<T*>(sink.data);
  auto* halves = static_cast<uint16_t*>(sink.data);
  const bool half = sink.dtype == DType::bfloat16;
  if (!is_plain(sink.heads, layout)) {
    const int64_t first = pixel_offset(layout, block), pixels = block.size / layout.channels;
    alignas(64) T joined[2 * kBlock];
    typed_loops<T>().join(half ? joined : values + first, written[0], written[1], layout.channels, pixels);
    if constexpr (std::is_same_v<T, float>) {
      if (half) loops().float_to_bfloat16(halves + first, joined, 2 * block.size);
    }
    return;
  }
  for (int head = 0; head < sink.heads; ++head) {
    const int64_t offset = plain_offset(sink.heads, head, layout, block);
    if constexpr (std::is_same_v<T, float>) {
      if (half) loops().float_to_bfloat16(halves + offset, written[head], block.size);
    }
  }
}

template const float* read(const Source&, int, const Layout&, const Block&, float*);
template const double* read(const Source&, int, const Layout&, const Block&, double*);
template float* destination(const Sink&, int, const Layout&, const Block&, float*);
template double* destination(const Sink&, int, const Layout&, const Block&, double*);
template void commit(const Sink&, const Layout&, const Block&, float* const*);
template void commit(const Sink&, const Layout&, const Block&, double* const*);

}  // namespace progdistill
