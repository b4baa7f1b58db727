#include "draws.h"

#include "ops.h"
#include "thread_pool.h"

namespace progdistill {
namespace {

constexpr int64_t kGrain = 4096;

template <class Number>
void write_all(
    Number* out, const int64_t* seeds, int64_t samples, int64_t step, uint32_t stream, int64_t high, int threads) {
  parallel_for(samples, kGrain, threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) write_number(out + i, drawn_bits(seeds[i], step, stream), high);
  });
}

}  // namespace

void uniform(double* out, const int64_t* seeds, int64_t samples, int64_t step, uint32_t stream, int threads) {
  write_all(out, seeds, samples, step, stream, 0, threads);
}

void integers(
    int64_t* out, const int64_t* seeds, int64_t samples, int64_t step, uint32_t stream, int64_t high, int threads) {
  write_all(out, seeds, samples, step, stream, high, threads);
}

void random_bits(
    int64_t* out, const int64_t* numbers, int64_t count, int64_t key, int64_t counter_high, int threads) {
  const auto under = static_cast<uint64_t>(key), high = static_cast<uint64_t>(counter_high);
  parallel_for(count, kGrain, threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      out[i] = static_cast<int64_t>(philox_bits(under, static_cast<uint64_t>(numbers[i]), high));
    }
  });
}

}  // namespace progdistill
