#include <cmath>
#include <vector>

#include "ops.h"
#include "tensor_blocks.h"

namespace progdistill {
namespace {

double sum_of_squares(const Gradient& grad, int64_t first, int64_t size) {
  switch (grad.dtype) {
    case DType::float64:
      return loops().f64.sum_of_squares(static_cast<const double*>(grad.data) + first, size);
    case DType::bfloat16: {
      alignas(64) float values[kBlock];
      loops().bfloat16_to_float(values, static_cast<const uint16_t*>(grad.data) + first, size);
      return loops().f32.sum_of_squares(values, size);
    }
    default:
      return loops().f32.sum_of_squares(static_cast<const float*>(grad.data) + first, size);
  }
}

}  // namespace

double gradient_norm(const std::vector<Gradient>& grads, int threads) {
  std::vector<int64_t> counts;
  for (const Gradient& grad : grads) counts.push_back(grad.count);
  const TensorBlocks blocks(counts);
  // One partial sum a block, added up in the order of blocks: the result does not depend on who computed what.
  std::vector<double> partial(blocks.size());
  blocks.for_each(threads, [&](size_t tensor, int64_t first, int64_t size, int64_t block) {
    partial[block] = sum_of_squares(grads[tensor], first, size);
  });
  double sum = 0.0;
  for (const double part : partial) sum += part;
  return std::sqrt(sum);
}

}  // namespace progdistill
