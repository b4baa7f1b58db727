#pragma once

// Group normalisation of whole groups that a block holds in shared memory: each image is read once.

#include "group_norm_moments.cuh"
#include "group_norm_tiles.cuh"

namespace progdistill::cuda {

/// What a thread has found of its pixels, which may be none, in a column.
template <int Width>
struct FoundMoments {
  float mean[Width] = {}, deviations[Width] = {}, count = 0.0f;

  FoundMoments() = default;
  __device__ FoundMoments(const Moments<Width>& moments, int pixels) : count(static_cast<float>(pixels)) {
#pragma unroll
    for (int i = 0; i < Width; ++i) {
      mean[i] = moments.mean(i, count);
      deviations[i] = moments.deviations(i, count);
    }
  }
  /// Merges those of the threads of a part (Chan, Golub & LeVeque 1983, equation 2.1).
  __device__ void merge_lanes(const TileGrid& grid) {
    grid.for_each_step([&](int step) {
      const float others = __shfl_xor_sync(~0u, count, step), all = count + others;
      const float share = all > 0.0f ? others / all : 0.0f;
#pragma unroll
      for (int i = 0; i < Width; ++i) {
        const float away = __shfl_xor_sync(~0u, mean[i], step) - mean[i];
        const float other = __shfl_xor_sync(~0u, deviations[i], step);
        mean[i] = fused(away, share, mean[i]);
        deviations[i] += fused(away * away, count * share, other);
      }
      count = all;
    });
  }
};

/// Begins to copy x and skip.
template <class Element, int Width>
__device__ void begin_copies(
    const GroupNormSize& size, const GroupNormForward& tensors, const Tile& tile, const TileGrid& grid) {
  const int columns = tile.channels / Width;
  grid.for_each_column(columns, [&](int column) {
    if (column >= columns) return;
    const KeptColumn<Element, Width> kept(dynamic_shared(), columns, size.pixels, column);
    const int channel = tile.first + column * Width;
    const auto x = lane<const Element>(tensors.x, tensors.skip, size, tile.sample, channel);
    kept.copy(x, grid.row(), size.pixels, grid.rows());
  });
}

/// Looks at this thread's pixels of a column, of which there must be some.
template <class Element, int Width>
__device__ FoundMoments<Width> look(
    const KeptColumn<Element, Width>& kept, const float (&shift)[Width], int row, int pixels, const TileGrid& grid) {
  Moments<Width> moments;
#pragma unroll
  for (int i = 0; i < Width; ++i) moments.first[i] = kept[row][i] + shift[i];
  for (int pixel = row; pixel < pixels; pixel += grid.rows()) {
    const auto own = kept[pixel];
    float u[Width];
#pragma unroll
    for (int i = 0; i < Width; ++i) u[i] = own[i] + shift[i];
    moments.add(u);
  }
  return {moments, grid.pixels_of_row(row, pixels)};
}

/// Writes the sum, with a residual if it is not null, in a thread's column, and keeps it instead of x. A sweep of its
/// own: with the moments there would be more in hand than registers.
template <class Element, int Width>
__device__ void keep_sum(
    const KeptColumn<Element, Width>& kept, const Lane<Element>& sum, const Lane<const Element>& residual,
    const float (&shift)[Width], int row, int pixels, const TileGrid& grid) {
  constexpr int kLoads = kBatch<Element>;
  for (int from = row; from < pixels; from += kLoads * grid.rows()) {
    Packed<Element, Width> other[kLoads] = {};
    if (residual) {
#pragma unroll
      for (int k = 0; k < kLoads; ++k) {
        if (from + k * grid.rows() < pixels) other[k].load(residual.at(from + k * grid.rows()));
      }
    }
    if (from == row) kept.wait();
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      const int pixel = from + k * grid.rows();
      if (pixel >= pixels) break;
      const auto own = kept[pixel];
      Packed<Element, Width> rounded;
#pragma unroll
      for (int i = 0; i < Width; ++i) rounded.set(i, own[i] + other[k][i] + shift[i]);
      rounded.store(sum.at(pixel));
      kept.put(pixel, rounded);
    }
  }
}

/// Means and deviations, (parts, channels of the tile), of what the block's parts find.
template <class Element, int Width>
__device__ void find_moments(
    float* means, float* deviations, const GroupNormSize& size, const GroupNormForward& tensors, const Tile& tile,
    const TileGrid& grid, const Table& shifts) {
  const int columns = tile.channels / Width, row = grid.row();
  grid.for_each_column(columns, [&](int column) {
    FoundMoments<Width> found;
    const int own = column * Width, channel = tile.first + own;
    if (column < columns && row < size.pixels) {
      const KeptColumn<Element, Width> kept(dynamic_shared(), columns, size.pixels, column);
      float shift[Width];
      shifts.take(shift, own);
      if (channel < size.channels && tensors.sum != nullptr) {
        const auto residual = lane<const Element>(tensors.residual, size, tile.sample, size.channels, channel);
        const auto sum = lane<Element>(tensors.sum, size, tile.sample, size.channels, channel);
        keep_sum(kept, sum, residual, shift, row, size.pixels, grid);
#pragma unroll
        for (int i = 0; i < Width; ++i) shift[i] = 0.0f;
      }
      kept.wait();
      found = look(kept, shift, row, size.pixels, grid);
    }
    found.merge_lanes(grid);
    if (column >= columns || !grid.leads()) return;
    store_unit(means + grid.part() * tile.channels + own, found.mean);
    store_unit(deviations + grid.part() * tile.channels + own, found.deviations);
  });
}

template <class Element, int Width>
__device__ void write_normalised(
    const GroupNormSize& size, const GroupNormForward& tensors, const Tile& tile, const TileGrid& grid,
    const AffineTables& tables) {
  const int columns = tile.channels / Width;
  grid.for_each_column(columns, [&](int column) {
    if (column >= columns) return;
    const KeptColumn<Element, Width> kept(dynamic_shared(), columns, size.pixels, column);
    const Affine<Width> affine(tables, column * Width);
    const auto y = lane<Element>(tensors.y, size, tile.sample, size.all_channels(), tile.first + column * Width);
    for (int pixel = grid.row(); pixel < size.pixels; pixel += grid.rows()) {
      normalised(kept[pixel], affine, tensors.silu).store(y.at(pixel));
    }
  });
}

template <class Element, int Width>
__global__ void __launch_bounds__(kThreads, 3) group_norm_once_kernel(
    const __grid_constant__ GroupNormSize size, const __grid_constant__ GroupNormForward tensors,
    const __grid_constant__ Tiles tiles) {
  const Tile tile(tiles, size);
  const TileGrid grid(tiles.channels / Width, size.pixels);
  const int channels = tile.channels, of_group = size.all_channels() / size.groups;
  begin_copies<Element, Width>(size, tensors, tile, grid);
  float* const room = dynamic_shared() + tiles.image_bytes / sizeof(float);
  const AffineTables tables(room, channels);
  float* const means = room + 3 * channels;
  float* const deviations = means + grid.most_parts() * channels;
  tables.fill(tensors, size, tensors.shift, tile.sample, tile.first, channels);
  __syncthreads();
  find_moments<Element, Width>(means, deviations, size, tensors, tile, grid, tables.offset);
  __syncthreads();
  float* const mean = deviations + grid.most_parts() * channels;
  float* const rstd = mean + channels / of_group;
  const int64_t first_group = tile.sample * size.groups + tile.first / of_group;
  merge_groups(
      means, deviations, channels, of_group, grid.parts(size.pixels), size.pixels,
      [&](int part) { return grid.pixels_of_part(part, size.pixels); },
      [&](int group, const Merged& merged) {
        tensors.mean[first_group + group] = mean[group] = merged.mean();
        tensors.rstd[first_group + group] = rstd[group] = merged.rstd(tensors.eps);
      });
  __syncthreads();
  if (tensors.sum != nullptr) tables.drop_shift(channels);
  tables.normalise(mean, rstd, of_group, channels);
  __syncthreads();
  write_normalised<Element, Width>(size, tensors, tile, grid, tables);
}

}  // namespace progdistill::cuda
