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
/// side; one that reads a single tensor ends before the pattern has shown. Write: 1 for memory to be written.
template <int Write, class Element>
inline void prefetch(const Element* first, int64_t n) {
  constexpr int64_t kPerCacheLine = 64 / sizeof(Element);
  for (int64_t i = 0; i < n; i += kPerCacheLine) __builtin_prefetch(first + i, Write, 2);
}

/// Calls visit(i, offset) for the block's elements i and their offsets in a channels_last tensor of two heads: a pixel
/// holds the channels of the first head, then those of the second. Constant `Channels` unroll the inner loop; 0: any.
template <int Channels, class Visit>
inline void visit_pixels(int head, const Layout& layout, const Block& block, Visit&& visit) {
  const int64_t channels = Channels > 0 ? Channels : layout.channels;
  int64_t i = 0, channel = block.first % channels;
  int64_t pixel = 2 * (block.sample * layout.elements + block.first - channel) + head * channels;
  if (channel > 0) {  // the block begins within a pixel
    for (; channel < channels && i < block.size; ++channel) visit(i++, pixel + channel);
    pixel += 2 * channels;
  }
  for (; i + channels <= block.size; i += channels, pixel += 2 * channels) {
    for (int64_t k = 0; k < channels; ++k) visit(i + k, pixel + k);
  }
  for (int64_t k = 0; i < block.size; ++k) visit(i++, pixel + k);
}

template <class Visit>
inline void for_each_interleaved(int head, const Layout& layout, const Block& block, Visit&& visit) {
  switch (layout.channels) {
    case 1:
      return visit_pixels<1>(head, layout, block, visit);
    case 3:
      return visit_pixels<3>(head, layout, block, visit);
    case 4:
      return visit_pixels<4>(head, layout, block, visit);
    default:
      return visit_pixels<0>(head, layout, block, visit);
  }
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
        prefetch<0>(halves + offset + block.size, block.size);
        loops().bfloat16_to_float(buffer, halves + offset, block.size);
        return buffer;
      }
    }
    return values + offset;
  }
  const int64_t next = 2 * (block.sample * layout.elements + block.first + block.size);
  if (source.dtype == DType::bfloat16) {
    if (head == 0) prefetch<0>(halves + next, 2 * block.size);
    for_each_interleaved(head, layout, block, [&](int64_t i, int64_t offset) {
      buffer[i] = float_of_bfloat16(halves[offset]);
    });
  } else {
    if (head == 0) prefetch<0>(values + next, 2 * block.size);
    for_each_interleaved(head, layout, block, [&](int64_t i, int64_t offset) { buffer[i] = values[offset]; });
  }
  return buffer;
}

template <class T>
T* destination(const Sink& sink, int head, const Layout& layout, const Block& block, T* buffer) {
  auto* values = static_cast<T*>(sink.data);
  const auto* halves = static_cast<const uint16_t*>(sink.data);
  const bool half = sink.dtype == DType::bfloat16;
  if (is_plain(sink.heads, layout)) return half ? buffer : values + plain_offset(sink.heads, head, layout, block);
  const int64_t first = 2 * (block.sample * layout.elements + block.first), count = 2 * block.size;
  if (head == 0 && half) prefetch<1>(halves + first, count);
  if (head == 0 && !half) prefetch<1>(values + first, count);
  return buffer;
}

template <class T>
void commit(const Sink& sink, int head, const Layout& layout, const Block& block, const T* written) {
  auto* values = static_cast<T*>(sink.data);
  auto* halves = static_cast<uint16_t*>(sink.data);
  if (is_plain(sink.heads, layout)) {
    const int64_t offset = plain_offset(sink.heads, head, layout, block);
    if constexpr (std::is_same_v<T, float>) {
      if (sink.dtype == DType::bfloat16) loops().float_to_bfloat16(halves + offset, written, block.size);
    }
  } else if (sink.dtype == DType::bfloat16) {
    for_each_interleaved(head, layout, block, [&](int64_t i, int64_t offset) {
      halves[offset] = rounded_to_bfloat16(static_cast<float>(written[i]));
    });
  } else {
    for_each_interleaved(head, layout, block, [&](int64_t i, int64_t offset) { values[offset] = written[i]; });
  }
}

template const float* read(const Source&, int, const Layout&, const Block&, float*);
template const double* read(const Source&, int, const Layout&, const Block&, double*);
template float* destination(const Sink&, int, const Layout&, const Block&, float*);
template double* destination(const Sink&, int, const Layout&, const Block&, double*);
template void commit(const Sink&, int, const Layout&, const Block&, const float*);
template void commit(const Sink&, int, const Layout&, const Block&, const double*);

}  // namespace progdistill
