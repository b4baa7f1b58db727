#include "loops.h"

#include <cstring>
#include <utility>

#include "arithmetic.h"
#include "bfloat16.h"
#include "interleave.h"
#include "philox.h"

// PD_ISA names this compilation: baseline, avx2 or avx512. Nothing here may be shared between the compilations, or the
// linker could keep the wrong one: all functions are local to this file, and no library templates are used.

// Two pointers either do not overlap or are equal, so an iteration depends on no other.
#if defined(__clang__)
#define PD_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define PD_INDEPENDENT _Pragma("GCC ivdep")
#endif

// What a loop's body is made of: a call that is left standing keeps the loop from becoming vector code.
#if defined(__GNUC__)
#define PD_INLINE __attribute__((always_inline)) inline
#else
#define PD_INLINE inline
#endif

namespace progdistill {
namespace {

// Elements that are computed side by side, and partial sums of a reduction: the same for every instruction set, so the
// same bits.
constexpr int kLanes = 32;

/// The sum of N terms at element i. N is a constant, so the loop unrolls.
template <int N, class T>
PD_INLINE T sum_of_terms(const Term<T>* terms, int64_t i) {
  T sum = terms[0].coefficient * terms[0].data[i];
  for (int k = 1; k < N; ++k) sum = fused(terms[k].coefficient, terms[k].data[i], sum);
  return sum;
}

}  // namespace
}  // namespace progdistill

#include "clipped.h"
#include "optimizer.h"

namespace progdistill {
namespace {

template <int N, class T>
void combine_fixed(T* dst, const Term<T>* given, int64_t n) {
  Term<T> terms[N];
  for (int k = 0; k < N; ++k) terms[k] = given[k];
  PD_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) dst[i] = sum_of_terms<N>(terms, i);
}

template <class T>
void combine(T* dst, const Term<T>* terms, int count, int64_t n) {
  switch (count) {
    case 1:
      return combine_fixed<1>(dst, terms, n);
    case 2:
      return combine_fixed<2>(dst, terms, n);
    case 3:
      return combine_fixed<3>(dst, terms, n);
    case 4:
      return combine_fixed<4>(dst, terms, n);
    case 5:
      return combine_fixed<5>(dst, terms, n);
    case 6:
      return combine_fixed<6>(dst, terms, n);
    case 7:
      return combine_fixed<7>(dst, terms, n);
    case 8:
      return combine_fixed<8>(dst, terms, n);
    default:
      for (int64_t i = 0; i < n; ++i) dst[i] = 0;
  }
}

template <int N, class T>
void scale_fixed(T* const* given, const T* factors, const T* src, int64_t n) {
  T* dst[N];
  T by[N];
  for (int k = 0; k < N; ++k) {
    dst[k] = given[k];
    by[k] = factors[k];
  }
  PD_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) {
    for (int k = 0; k < N; ++k) dst[k][i] = by[k] * src[i];
  }
}

template <class T>
void scale(T* const* dst, const T* factors, int count, const T* src, int64_t n) {
  if (count == 1) return scale_fixed<1>(dst, factors, src, n);
  if (count == 2) return scale_fixed<2>(dst, factors, src, n);
  if (count == 3) return scale_fixed<3>(dst, factors, src, n);
}

/// The residuals of `lanes` <= kLanes elements from `start` on, each added to a sum of its own.
template <LossType Type, int Heads, int N, bool Grad, class T>
PD_INLINE void add_residuals(const Residual<T>& job, int64_t start, int lanes, T* sums) {
  PD_INDEPENDENT
  for (int lane = 0; lane < lanes; ++lane) {
    const int64_t i = start + lane;
    const T target = N > 0 ? sum_of_terms<(N > 0 ? N : 1)>(job.target, i) : T(0);
    const T r = job.scale * (sum_of_terms<Heads>(job.pred, i) - target);
    const T derivative = add_loss<Type>(r, job.huber_c, sums[lane]);
    if constexpr (Grad) {
      for (int head = 0; head < Heads; ++head) job.grad[head][i] = job.slope[head] * derivative;
    }
  }
}

/// The sum of 2 * Half numbers into the first, halves onto halves.
template <int Half, class T>
PD_INLINE void fold(T* sums) {
  for (int lane = 0; lane < Half; ++lane) sums[lane] += sums[lane + Half];
  if constexpr (Half > 1) fold<Half / 2>(sums);
}

template <LossType Type, int Heads, int N, bool Grad, class T>
double residual_fixed(const Residual<T>& given, int64_t n) {
  const Residual<T> job = given;
  T sums[kLanes] = {};
  int64_t start = 0;
  for (; start + kLanes <= n; start += kLanes) add_residuals<Type, Heads, N, Grad>(job, start, kLanes, sums);
  add_residuals<Type, Heads, N, Grad>(job, start, static_cast<int>(n - start), sums);
  fold<kLanes / 2>(sums);
  return sums[0];
}

template <LossType Type, int Heads, bool Grad, class T>
double residual_of_terms(const Residual<T>& job, int64_t n) {
  switch (job.terms) {
    case 1:
      return residual_fixed<Type, Heads, 1, Grad>(job, n);
    case 2:
      return residual_fixed<Type, Heads, 2, Grad>(job, n);
    case 3:
      return residual_fixed<Type, Heads, 3, Grad>(job, n);
    case 4:
      return residual_fixed<Type, Heads, 4, Grad>(job, n);
    default:
      return residual_fixed<Type, Heads, 0, Grad>(job, n);
  }
}

template <LossType Type, class T>
double residual_of_type(const Residual<T>& job, int64_t n) {
  const bool grad = job.grad[0] != nullptr;
  if (job.heads == 2) return (grad ? residual_of_terms<Type, 2, true, T> : residual_of_terms<Type, 2, false, T>)(job, n);
  return (grad ? residual_of_terms<Type, 1, true, T> : residual_of_terms<Type, 1, false, T>)(job, n);
}

template <class T>
double residual(const Residual<T>& job, int64_t n) {
  switch (job.type) {
    case LossType::l1:
      return residual_of_type<LossType::l1>(job, n);
    case LossType::pseudo_huber:
      return residual_of_type<LossType::pseudo_huber>(job, n);
    default:
      return residual_of_type<LossType::l2>(job, n);
  }
}

template <class T>
void split_any(T* to, const T* pixels, int64_t channels, int head, int64_t count) {
  for (int64_t pixel = 0; pixel < count; ++pixel) {
    for (int64_t c = 0; c < channels; ++c) to[pixel * channels + c] = pixels[(2 * pixel + head) * channels + c];
  }
}

template <class T>
void join_any(T* pixels, const T* first, const T* second, int64_t channels, int64_t count) {
  for (int64_t pixel = 0; pixel < count; ++pixel) {
    for (int64_t c = 0; c < channels; ++c) {
      pixels[2 * pixel * channels + c] = first[pixel * channels + c];
      pixels[(2 * pixel + 1) * channels + c] = second[pixel * channels + c];
    }
  }
}

template <int Channels>
void split_head(float* to, const float* pixels, int head, int64_t count) {
  return head == 0 ? split_pixels<Channels, 0>(to, pixels, count) : split_pixels<Channels, 1>(to, pixels, count);
}

void split(float* to, const float* pixels, int64_t channels, int head, int64_t count) {
  switch (channels) {
    case 1:
      return split_head<1>(to, pixels, head, count);
    case 3:
      return split_head<3>(to, pixels, head, count);
    case 4:
      return split_head<4>(to, pixels, head, count);
    default:
      return split_any(to, pixels, channels, head, count);
  }
}

void join(float* pixels, const float* first, const float* second, int64_t channels, int64_t count) {
  switch (channels) {
    case 1:
      return join_pixels<1>(pixels, first, second, count);
    case 3:
      return join_pixels<3>(pixels, first, second, count);
    case 4:
      return join_pixels<4>(pixels, first, second, count);
    default:
      return join_any(pixels, first, second, channels, count);
  }
}

void angles_to_sine_and_cosine(SineCosine* by, const double* phi, int64_t n) {
  for (int64_t i = 0; i < n; ++i) by[i] = sine_and_cosine(phi[i]);
}

void bfloat16_to_float(float* dst, const uint16_t* src, int64_t n) {
  for (int64_t i = 0; i < n; ++i) dst[i] = float_of_bfloat16(src[i]);
}

void float_to_bfloat16(uint16_t* dst, const float* src, int64_t n) {
  for (int64_t i = 0; i < n; ++i) dst[i] = rounded_to_bfloat16(src[i]);
}

void normal(float* dst, uint64_t seed, uint32_t first_block, uint32_t stream, uint64_t step, int64_t blocks) {
  constexpr int kBatch = 64;
  const uint32_t key_low = static_cast<uint32_t>(seed), key_high = static_cast<uint32_t>(seed >> 32);
  uint32_t radius[2 * kBatch], angle[2 * kBatch];
  for (int64_t start = 0; start < blocks; start += kBatch) {
    const int count = blocks - start < kBatch ? static_cast<int>(blocks - start) : kBatch;
    for (int j = 0; j < kBatch; ++j) {  // always a whole batch: counters beyond the last are harmless
      uint32_t c0 = first_block + static_cast<uint32_t>(start) + j, c1 = stream;
      uint32_t c2 = static_cast<uint32_t>(step), c3 = static_cast<uint32_t>(step >> 32);
      philox_4x32_10(c0, c1, c2, c3, key_low, key_high);
      radius[2 * j] = c0;
      angle[2 * j] = c1;
      radius[2 * j + 1] = c2;
      angle[2 * j + 1] = c3;
    }
    float* out = dst + 4 * start;
    for (int i = 0; i < 2 * count; ++i) normal_pair(radius[i], angle[i], &out[2 * i], &out[2 * i + 1]);
  }
}

}  // namespace

namespace PD_ISA {

extern const Loops table;
const Loops table = {
    {combine<float>, scale<float>, clipped_step<float>, unclipped<float>, clipped_target<float>,
     residual<float>, split, join, adamw_ema<float>, sum_of_squares<float>},
    {combine<double>, scale<double>, clipped_step<double>, unclipped<double>, clipped_target<double>,
     residual<double>, split_any<double>, join_any<double>, adamw_ema<double>,
     sum_of_squares<double>},
    angles_to_sine_and_cosine,
    bfloat16_to_float,
    float_to_bfloat16,
    normal,
};

}  // namespace PD_ISA
}  // namespace progdistill
