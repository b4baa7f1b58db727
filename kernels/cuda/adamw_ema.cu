#include "elements.cuh"
#include "tensor_chunks.cuh"

namespace progdistill::cuda {
namespace {

struct Table {
  static constexpr int kCapacity = (kParameterBytes - 256) / 62;
  TensorChunks<kCapacity> chunks;
  void* param[kCapacity];
  const void* grad[kCapacity];
  void* exp_avg[kCapacity];
  void* exp_avg_sq[kCapacity];
  void* ema[kCapacity];
  void* twin[kCapacity];
  bool bfloat16_grad[kCapacity];
  bool aligned[kCapacity];  // all of them, to 16 bytes
};

/// A parameter and what belongs to it, from the element on where a block begins.
template <class T>
struct Place {
  T* param;
  const void* grad;
  T* exp_avg;
  T* exp_avg_sq;
  T* ema;
  uint16_t* twin;
  bool bfloat16_grad;

  __device__ Place(const Table& table, int tensor, int64_t begin)
      : param(static_cast<T*>(table.param[tensor]) + begin),
        grad(static_cast<const char*>(table.grad[tensor]) +
             begin * (table.bfloat16_grad[tensor] ? sizeof(uint16_t) : sizeof(T))),
        exp_avg(static_cast<T*>(table.exp_avg[tensor]) + begin),
        exp_avg_sq(static_cast<T*>(table.exp_avg_sq[tensor]) + begin),
        ema(table.ema[tensor] == nullptr ? nullptr : static_cast<T*>(table.ema[tensor]) + begin),
        twin(table.twin[tensor] == nullptr ? nullptr : static_cast<uint16_t*>(table.twin[tensor]) + begin),
        bfloat16_grad(table.bfloat16_grad[tensor]) {}
};

/// What a thread holds at a time.
template <class T, int Width>
struct State {
  T param[Width], grad[Width], exp_avg[Width], exp_avg_sq[Width], ema[Width] = {};

  __device__ void load(const Place<T>& from, int e) {
    load_unit(param, from.param + e);
    if (sizeof(T) == sizeof(float) && from.bfloat16_grad) {
      load_unit(grad, static_cast<const uint16_t*>(from.grad) + e);
    } else {
      load_unit(grad, static_cast<const T*>(from.grad) + e);
    }
    load_unit(exp_avg, from.exp_avg + e);
    load_unit(exp_avg_sq, from.exp_avg_sq + e);
    if (from.ema != nullptr) load_unit(ema, from.ema + e);
  }

  __device__ void update(const AdamWFactors<T>& by) {
#pragma unroll
    for (int i = 0; i < Width; ++i) {
      param[i] = adamw(param[i], grad[i], exp_avg[i], exp_avg_sq[i], by);
      ema[i] = averaged(ema[i], param[i], by.ema);
    }
  }

  __device__ void store(const Place<T>& to, int e) const {
    store_unit(to.param + e, param);
    store_unit(to.exp_avg + e, exp_avg);
    store_unit(to.exp_avg_sq + e, exp_avg_sq);
    if (to.ema != nullptr) store_unit(to.ema + e, ema);
    if (to.twin != nullptr) store_unit(to.twin + e, param);
  }
};

/// How many blocks shall fit on a multiprocessor, which bounds their registers to what the kernel needs without a limit.
template <class T>
constexpr int kBlocksOfUpdate = sizeof(T) == sizeof(float) ? 3 : 1;

template <class T>
__global__ void __launch_bounds__(kThreads, kBlocksOfUpdate<T>)
    adamw_ema_kernel(const __grid_constant__ Table table, const __grid_constant__ AdamW adamw) {
  const int tensor = table.chunks.tensor();
  const Place<T> place(table, tensor, table.chunks.begin(tensor));
  const int size = table.chunks.size(tensor), whole = table.aligned[tensor] ? size / kWidth * kWidth : 0;
  __shared__ AdamWFactors<T> by;
  // The first loads are under way before the factors, formed in double by one thread, are waited for.
  const int first = threadIdx.x * kWidth;
  State<T, kWidth> state;
  if (first < whole) state.load(place, first);
  if (threadIdx.x == 0) by = adamw_factors<T>(adamw);
  __syncthreads();
  for (int e = first; e < whole; e += kThreads * kWidth) {
    if (e != first) state.load(place, e);
    state.update(by);
    state.store(place, e);
  }
  for (int e = whole + threadIdx.x; e < size; e += kThreads) {
    State<T, 1> single;
    single.load(place, e);
    single.update(by);
    single.store(place, e);
  }
}

void fill(Table& table, int i, const Parameter& parameter) {
  table.param[i] = parameter.param;
  table.grad[i] = parameter.grad.data;
  table.exp_avg[i] = parameter.exp_avg;
  table.exp_avg_sq[i] = parameter.exp_avg_sq;
  table.ema[i] = parameter.ema;
  table.twin[i] = parameter.twin;
  table.bfloat16_grad[i] = parameter.grad.dtype == DType::bfloat16;
  // A null pointer is aligned.
  table.aligned[i] = is_aligned(parameter.param) && is_aligned(parameter.grad.data) &&
                     is_aligned(parameter.exp_avg) && is_aligned(parameter.exp_avg_sq) &&
                     is_aligned(parameter.ema) && is_aligned(parameter.twin);
}

}  // namespace

int adamw_ema(const std::vector<Parameter>& parameters, DType dtype, const AdamW& adamw, const Queue& queue) {
  auto* const kernel = dtype == DType::float64 ? adamw_ema_kernel<double> : adamw_ema_kernel<float>;
  Table table;
  static_assert(sizeof(table) + sizeof(adamw) <= kParameterBytes);
  return for_each_table(
      table, parameters, [](const Parameter& parameter) { return parameter.grad.count; },
      [&](int i, const Parameter& parameter) { fill(table, i, parameter); },
      [&](int64_t chunks) { return launch(kernel, chunks, kThreads, queue, table, adamw); });
}

}  // namespace progdistill::cuda
