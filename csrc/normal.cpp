#include <algorithm>

#include "loops/loops.h"
#include "ops.h"
#include "thread_pool.h"

namespace progdistill {

void normal(
    float* out, const int64_t* seeds, int64_t samples, int64_t count, int64_t step, uint32_t stream, int threads) {
  constexpr int64_t kRun = 1024;  // Philox blocks of four normals
  constexpr int64_t kRunsPerPiece = 4;
  const int64_t per_sample = (count + 4 * kRun - 1) / (4 * kRun);
  const int64_t usual = std::min(count, 4 * kRun);
  const int64_t grain = usual > 0 ? kRunsPerPiece * 4 * kRun / usual : 1;
  parallel_for(samples * per_sample, grain, threads, [&](int64_t begin, int64_t end) {
    for (int64_t run = begin; run < end; ++run) {
      const int64_t sample = run / per_sample, first = (run % per_sample) * kRun;
      const int64_t elements = std::min(4 * kRun, count - 4 * first), whole = elements / 4;
      const auto seed = static_cast<uint64_t>(seeds[sample]);
      const auto low_block = static_cast<uint32_t>(first);
      float* dst = out + sample * count + 4 * first;
      const auto unsigned_step = static_cast<uint64_t>(step);
      loops().normal(dst, seed, low_block, stream, unsigned_step, whole);
      if (elements % 4 == 0) continue;
      float last[4];
      loops().normal(last, seed, low_block + static_cast<uint32_t>(whole), stream, unsigned_step, 1);
      std::copy(last, last + elements % 4, dst + 4 * whole);
    }
  });
}

}  // namespace progdistill
