#pragma once

// Where whole groups with all their pixels fit into a block's shared memory, a block does them at once and reads every
// number once. It copies its tile there without waiting, and each thread works on what it has copied itself.

#include <algorithm>
#include <numeric>

#include "group_norm_copies.cuh"

namespace progdistill::cuda {

/// Bytes of a tile in each pixel: two of memory's sectors where that fits, else one.
constexpr int kRowBytes = 64;
constexpr int kLeastRowBytes = 32;
/// Tiles of small images have more channels, for about so many elements.
constexpr int kTileElements = 4096;
/// Parts times channels of what a tile's threads find (TileGrid) are at most this, or the channels.
constexpr int kPartNumbers = kThreads * kWidth;

/// The runs of whole groups that the blocks of a sample do; by the size of a sample alone.
struct Tiles {
  int channels = 0;  // of a tile; the last may have fewer
  int count = 0;     // of a sample; 0: they do not fit
  int image_bytes = 0;
  size_t shared_bytes = 0;

  /// `images`: tensors of which a block holds its tile. The narrowest tile of kRowBytes and kTileElements, or else of
  /// kLeastRowBytes: so more blocks fit on a multiprocessor, and some copy while others compute.
  Tiles(const GroupNormSize& size, int images) {
    const int all = size.all_channels(), of_group = all / size.groups;
    const int element_bytes = size.dtype == DType::bfloat16 ? 2 : 4;
    // A column lies in x or in skip, and belongs to one tile. A group may lie in both.
    const bool columns = size.channels % kWidth == 0 && size.skip_channels % kWidth == 0;
    const int unit = columns ? std::lcm(of_group, kWidth) : of_group;
    const int wide = std::max(kRowBytes / element_bytes, kTileElements / size.pixels);
    for (const int at_least : {wide, kLeastRowBytes / element_bytes}) {
      const int wanted = std::min((at_least + unit - 1) / unit * unit, all);
      const int64_t image = (int64_t{size.pixels} * wanted * element_bytes + 15) / 16 * 16;
      const int64_t tables = 5 * wanted + 2 * std::max(wanted, std::min(8 * wanted, kPartNumbers));
      const int64_t bytes = images * image + tables * sizeof(float);
      if (bytes > size.tile_bytes) continue;
      channels = wanted;
      count = (all + wanted - 1) / wanted;
      image_bytes = static_cast<int>(image);
      shared_bytes = static_cast<size_t>(bytes);
      return;
    }
  }
};

/// What a block does: channels from `first` on of one sample. Neighbours in memory are neighbours in time.
struct Tile {
  int64_t sample;
  int first, channels;

  __device__ Tile(const Tiles& tiles, const GroupNormSize& size)
      : sample(blockIdx.x / tiles.count), first(static_cast<int>(blockIdx.x % tiles.count) * tiles.channels) {
    const int left = size.all_channels() - first;
    channels = left < tiles.channels ? left : tiles.channels;
  }
};

/// How the threads of a block share the columns of a tile: in powers of two, so that nothing is divided, and lanes of a
/// warp that share a column can add up what they find. What is left are `parts`: one for each warp, or for each row
/// where no warp has two.
struct TileGrid {
  int across_log2 = 0;  // threads side by side, each on a column at a time; the last may have none
  int rows_log2;        // threads on a column

  PD_HOST_DEVICE TileGrid(int columns, int pixels) {
    constexpr int kThreadsLog2 = 8;
    static_assert(1 << kThreadsLog2 == kThreads);
    while (across() < columns && across_log2 < kThreadsLog2) ++across_log2;
    rows_log2 = kThreadsLog2 - across_log2;
    while (rows() / 2 >= pixels && threads() > 32) --rows_log2;
  }
  PD_HOST_DEVICE int across() const { return 1 << across_log2; }
  PD_HOST_DEVICE int rows() const { return 1 << rows_log2; }
  PD_HOST_DEVICE int threads() const { return across() * rows(); }

  __device__ int row() const { return static_cast<int>(threadIdx.x) >> across_log2; }
  __device__ int pixels_of_row(int row, int pixels) const { return (pixels - row + rows() - 1) >> rows_log2; }

  __device__ int rows_of_part() const { return across() < 32 ? 32 >> across_log2 : 1; }
  __device__ int part() const { return static_cast<int>(threadIdx.x) >> (across() < 32 ? 5 : across_log2); }
  __device__ int most_parts() const { return across() < 32 ? threads() / 32 : rows(); }
  /// Parts that have pixels: the first ones.
  __device__ int parts(int pixels) const {
    const int used = pixels < rows() ? pixels : rows(), of_part = rows_of_part();
    return across() < 32 ? (used + of_part - 1) >> (5 - across_log2) : used;
  }
  __device__ int pixels_of_part(int part, int pixels) const {
    const int of_part = rows_of_part(), longer = (pixels & (rows() - 1)) - part * of_part;  // rows with one pixel more
    return (pixels >> rows_log2) * of_part + (longer < 0 ? 0 : longer < of_part ? longer : of_part);
  }
  /// Whether this thread is the one of its part that speaks for its column.
  __device__ bool leads() const { return static_cast<int>(threadIdx.x) % 32 < across(); }

  /// body(column) for this thread's columns, for all threads of a warp together: it may lie beyond the last.
  template <class Body>
  __device__ void for_each_column(int columns, Body&& body) const {
    const int first = static_cast<int>(threadIdx.x) & (across() - 1);
    for (int from = 0; from < columns; from += across()) body(from + first);
  }
  /// body(step) for the lanes with which one of a warp shares its column, and then what those have found.
  template <class Body>
  __device__ void for_each_step(Body&& body) const {
    for (int step = 16; step >= across(); step /= 2) body(step);
  }
};

/// Adds up what the threads of a part have found.
template <int Width>
__device__ void add_lanes(const TileGrid& grid, float (&values)[Width]) {
  grid.for_each_step([&](int step) {
#pragma unroll
    for (int i = 0; i < Width; ++i) values[i] += __shfl_xor_sync(~0u, values[i], step);
  });
}

}  // namespace progdistill::cuda
