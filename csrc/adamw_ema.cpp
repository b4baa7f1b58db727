#include <vector>

#include "ops.h"
#include "tensor_blocks.h"

namespace progdistill {
namespace {

template <class T>
void update(const Parameter& parameter, const AdamWFactors<T>& by, int64_t first, int64_t size) {
  alignas(64) T converted[kBlock];
  const T* grad = static_cast<const T*>(parameter.grad.data) + first;
  if constexpr (sizeof(T) == sizeof(float)) {
    if (parameter.grad.dtype == DType::bfloat16) {
      loops().bfloat16_to_float(converted, static_cast<const uint16_t*>(parameter.grad.data) + first, size);
      grad = converted;
    }
  }
  const auto at = [first](void* data) { return data != nullptr ? static_cast<T*>(data) + first : nullptr; };
  T* const param = at(parameter.param);
  typed_loops<T>().adamw_ema(
      {param, grad, at(parameter.exp_avg), at(parameter.exp_avg_sq), at(parameter.ema)}, by, size);
  if constexpr (sizeof(T) == sizeof(float)) {
    if (parameter.twin == nullptr) return;
    loops().float_to_bfloat16(static_cast<uint16_t*>(parameter.twin) + first, param, size);
  }
}

}  // namespace

void adamw_ema(const std::vector<Parameter>& parameters, DType dtype, const AdamW& adamw, int threads) {
  std::vector<int64_t> counts;
  for (const Parameter& parameter : parameters) counts.push_back(parameter.grad.count);
  for_state_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    const AdamWFactors<T> by = adamw_factors<T>(adamw);
    TensorBlocks(counts).for_each(threads, [&](size_t tensor, int64_t first, int64_t size, int64_t) {
      update<T>(parameters[tensor], by, first, size);
    });
  });
}

}  // namespace progdistill
