#pragma once

// The gradient of group normalisation for whole groups that a block holds in shared memory: each image is read once.

#include "group_norm_gradient.cuh"
#include "group_norm_tiles.cuh"

namespace progdistill::cuda {

/// A thread's columns of dy and u in shared memory.
template <class Element, int Width>
struct KeptPair {
  KeptColumn<Element, Width> dy, u;

  __device__ KeptPair(const Tiles& tiles, const Tile& tile, int pixels, int column)
      : dy(dynamic_shared(), tile.channels / Width, pixels, column),
        u(dynamic_shared() + tiles.image_bytes / sizeof(float), tile.channels / Width, pixels, column) {}

  __device__ Slopes<Width> slopes(int pixel, const Affine<Width>& affine, bool silu) const {
    return {dy[pixel], u[pixel], affine, silu};
  }
};

/// Begins to copy dy, u and skip.
template <class Element, int Width>
__device__ void begin_copies(
    const GroupNormSize& size, const GroupNormBackward& tensors, const Tiles& tiles, const Tile& tile,
    const TileGrid& grid) {
  const int columns = tile.channels / Width;
  grid.for_each_column(columns, [&](int column) {
    if (column >= columns) return;
    const KeptPair<Element, Width> kept(tiles, tile, size.pixels, column);
    const int channel = tile.first + column * Width;
    const auto dy = lane<const Element>(tensors.dy, size, tile.sample, size.all_channels(), channel);
    const auto u = lane<const Element>(tensors.u, tensors.skip, size, tile.sample, channel);
    kept.dy.copy(dy, grid.row(), size.pixels, grid.rows());
    kept.u.copy(u, grid.row(), size.pixels, grid.rows());
  });
}

/// Sums of g and g h / rstd, (parts, channels of the tile), over the pixels of the block's parts.
template <class Element, int Width>
__device__ void find_slope_sums(
    float* of_g, float* of_gh, const GroupNormSize& size, const GroupNormBackward& tensors, const Tiles& tiles,
    const Tile& tile, const TileGrid& grid, const AffineTables& tables) {
  const int columns = tile.channels / Width;
  grid.for_each_column(columns, [&](int column) {
    SlopeSums<Width> sums;
    if (column < columns) {
      const KeptPair<Element, Width> kept(tiles, tile, size.pixels, column);
      const Affine<Width> affine(tables, column * Width);
      kept.u.wait();
      for (int pixel = grid.row(); pixel < size.pixels; pixel += grid.rows()) {
        sums.add(kept.slopes(pixel, affine, tensors.silu));
      }
    }
    add_lanes(grid, sums.g);
    add_lanes(grid, sums.product);
    if (column >= columns || !grid.leads()) return;
    store_unit(of_g + grid.part() * tile.channels + column * Width, sums.g);
    store_unit(of_gh + grid.part() * tile.channels + column * Width, sums.product);
  });
}

/// Writes du in a thread's column and returns its sum over the pixels.
template <class Element, int Width>
__device__ InputGradient<Width> write_gradient(
    const KeptPair<Element, Width>& kept, const GroupNormSize& size, const GroupNormBackward& tensors,
    const Tile& tile, const TileGrid& grid, const AffineTables& tables, const GroupTables& of_groups, int column) {
  constexpr int kLoads = kBatch<Element> / 2;
  const int channel = tile.first + column * Width;
  const Affine<Width> affine(tables, column * Width);
  const auto to = lane<Element>(tensors.du, tensors.dskip, size, tile.sample, channel);
  const auto bypass = lane<const Element>(tensors.du_bypass, tensors.dskip_bypass, size, tile.sample, channel);
  InputGradient<Width> gradient(of_groups, column * Width);
  for (int from = grid.row(); from < size.pixels; from += kLoads * grid.rows()) {
    Packed<Element, Width> other[kLoads] = {};
    if (bypass) {
#pragma unroll
      for (int k = 0; k < kLoads; ++k) {
        if (from + k * grid.rows() < size.pixels) other[k].load(bypass.at(from + k * grid.rows()));
      }
    }
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      const int pixel = from + k * grid.rows();
      if (pixel < size.pixels) {
        gradient.of(kept.slopes(pixel, affine, tensors.silu), affine, other[k]).store(to.at(pixel));
      }
    }
  }
  return gradient;
}

/// Writes du, dskip and dshift. of_du: room for (parts, channels of the tile).
template <class Element, int Width>
__device__ void write_gradients(
    float* of_du, const GroupNormSize& size, const GroupNormBackward& tensors, const Tiles& tiles, const Tile& tile,
    const TileGrid& grid, const AffineTables& tables, const GroupTables& of_groups) {
  const int columns = tile.channels / Width;
  grid.for_each_column(columns, [&](int column) {
    float total[Width] = {};
    if (column < columns) {
      const KeptPair<Element, Width> kept(tiles, tile, size.pixels, column);
      const auto gradient = write_gradient(kept, size, tensors, tile, grid, tables, of_groups, column);
#pragma unroll
      for (int i = 0; i < Width; ++i) total[i] = gradient.total[i];
    }
    if (tensors.dshift == nullptr) return;
    add_lanes(grid, total);
    if (column < columns && grid.leads()) store_unit(of_du + grid.part() * tile.channels + column * Width, total);
  });
  if (tensors.dshift == nullptr) return;
  __syncthreads();
  for_each(tile.channels, [&](int i) {
    const int channel = tile.first + i;
    if (channel >= size.channels) return;
    tensors.dshift[tile.sample * size.channels + channel] =
        sum_of_rows(of_du, tile.channels, i, grid.parts(size.pixels));
  });
}

/// of_samples as write_channel_sums has it.
template <class Element, int Width>
__global__ void __launch_bounds__(kThreads, 3) group_norm_gradient_once_kernel(
    const __grid_constant__ GroupNormSize size, const __grid_constant__ GroupNormBackward tensors,
    const __grid_constant__ Tiles tiles, float* __restrict__ of_samples) {
  const Tile tile(tiles, size);
  const TileGrid grid(tiles.channels / Width, size.pixels);
  const int channels = tile.channels, of_group = size.all_channels() / size.groups;
  begin_copies<Element, Width>(size, tensors, tiles, tile, grid);
  const int64_t first_group = tile.sample * size.groups + tile.first / of_group;
  const float* const rstd = tensors.rstd + first_group;
  float* const room = dynamic_shared() + 2 * tiles.image_bytes / sizeof(float);
  const AffineTables tables(room, channels);
  const GroupTables of_groups(room + 3 * channels, channels);
  float* const of_g = room + 5 * channels;  // of each part and channel, then of each channel times p
  float* const of_gh = of_g + grid.most_parts() * channels;
  tables.fill(tensors, size, tensors.shift, tile.sample, tile.first, channels);
  tables.normalise(tensors.mean + first_group, rstd, of_group, channels);
  __syncthreads();
  find_slope_sums<Element, Width>(of_g, of_gh, size, tensors, tiles, tile, grid, tables);
  __syncthreads();
  for_each(channels, [&](int i) {
    const int channel = tile.first + i, parts = grid.parts(size.pixels);
    const float g = sum_of_rows(of_g, channels, i, parts);
    const float gh = sum_of_rows(of_gh, channels, i, parts) * rstd[i / of_group];
    write_channel_sums(size, tensors, of_samples, tile.sample, channel, g, gh);
    const float p = read(tensors.weight, 0, channel) * one_plus_scale(tensors, tile.sample, channel);
    of_g[i] = p * g;
    of_gh[i] = p * gh;
  });
  sum_groups(of_g, of_gh, channels, of_group, [&](int group, double g, double gh) {
    const double count = static_cast<double>(size.pixels) * of_group;
    of_groups.fill(group * of_group, (group + 1) * of_group, rstd[group], count, g, gh);
  });
  __syncthreads();
  write_gradients<Element, Width>(of_g, size, tensors, tiles, tile, grid, tables, of_groups);
}

}  // namespace progdistill::cuda
