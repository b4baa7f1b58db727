#pragma once

// The inner loops of the CPU kernels, compiled once for each instruction set (see CMakeLists.txt) and chosen at load.
// They work on short dense runs of float or double; which tensors, samples and layouts these come from is the
// operations' affair (block.h). Results do not depend on the instruction set, but for x86-64 without FMA.

#include <cstdint>

#include "adamw.h"
#include "angles.h"
#include "loss_type.h"

namespace progdistill {

constexpr int kTerms = 4;  // tensors that a pass which does more than add them reads at most

template <class T>
struct Term {
  const T* data;
  T coefficient;
};

/// next = z * state + x * clip(x).
template <class T>
struct ClippedMove {
  T bound;
  T z;
  T x;
};

/// One step of a teacher that clips x: x = x_of_z * state + sum x_of_output[head] * out[head] becomes clip(x), the state
/// z_of_clipped * state + x_of_clipped * clip(x), and the target grows by sum output[head] * out[head] + excess * (x -
/// clip(x)).
template <class T>
struct ClippedStep {
  const T* out[2];
  T output[2];
  T x_of_z;
  T x_of_output[2];
  T z_of_clipped;
  T x_of_clipped;
  T excess;
};

/// The target of such steps, which starts as z_factor * z. They may come in several runs: what all but the last leave in
/// state, target and excess is there for the next.
template <class T>
struct ClippedTarget {
  const T* z;
  T z_factor;
  T bound;
  int heads;
  ClippedStep<T> step[kTerms];
  int steps;
  bool first, last;
  T* state;
  T* target;
  T* excess;
};

template <class T>
struct Residual {
  Term<T> target[kTerms];
  int terms;
  Term<T> pred[2];
  int heads;
  T scale;
  LossType type;
  T huber_c;  // of pseudo_huber
  T slope[2];
  T* grad[2];  // both null: no gradient
};

/// The same elements of a parameter and of what belongs to it.
template <class T>
struct ParameterBlock {
  T* param;
  const T* grad;
  T* exp_avg;
  T* exp_avg_sq;
  T* ema;  // null: none
};

template <class T>
struct TypedLoops {
  /// dst = sum of coefficient * data over `count` <= 8 (kMaxTerms, combination.h) terms; dst may be the data of a term.
  void (*combine)(T* dst, const Term<T>* terms, int count, int64_t n);
  /// dst[k] = factors[k] * src for `count` <= 3 arrays, which overlap nothing.
  void (*scale)(T* const* dst, const T* factors, int count, const T* src, int64_t n);
  /// The step by way of a clipped x, the sum of `count` <= 3 terms; next overlaps nothing.
  void (*clipped_step)(T* next, const Term<T>* terms, int count, const T* state, const ClippedMove<T>& by, int64_t n);
  /// dst = factor * grad where a sum of `count` <= 3 terms lies within the bound, else 0; dst overlaps nothing.
  void (*unclipped)(T* dst, const Term<T>* terms, int count, const T* grad, T bound, T factor, int64_t n);
  /// dst, which overlaps nothing, = the target, if this is the last run of steps.
  void (*clipped_target)(T* dst, const ClippedTarget<T>& target, int64_t n);
  /// r = scale * (sum pred - sum target). By type: grad[h] = slope[h] * r and the sum of r^2 is returned, or slope[h] *
  /// sign(r) and the sum of |r|, or slope[h] * r / sqrt(r^2 + c^2) and the sum of sqrt(r^2 + c^2) - c.
  double (*residual)(const Residual<T>& residual, int64_t n);
  /// `count` pixels of two heads with `channels` each: to = the channels of one head; or pixels = those of both.
  void (*split)(T* to, const T* pixels, int64_t channels, int head, int64_t count);
  void (*join)(T* pixels, const T* first, const T* second, int64_t channels, int64_t count);
  /// An update of n elements; none of the arrays overlap.
  void (*adamw_ema)(const ParameterBlock<T>& block, const AdamWFactors<T>& by, int64_t n);
  double (*sum_of_squares)(const T* src, int64_t n);
};

struct Loops {
  TypedLoops<float> f32;
  TypedLoops<double> f64;
  void (*sine_and_cosine)(SineCosine* by, const double* phi, int64_t n);
  void (*bfloat16_to_float)(float* dst, const uint16_t* src, int64_t n);
  void (*float_to_bfloat16)(uint16_t* dst, const float* src, int64_t n);
  /// Four normals for each of `blocks` consecutive Philox counters.
  void (*normal)(float* dst, uint64_t seed, uint32_t first_block, uint32_t stream, uint64_t step, int64_t blocks);
};

/// Chooses the loops for the widest instruction set that processor and operating system support, or those of the given
/// name: "avx512", "avx2" or "baseline". Throws std::invalid_argument if they are not to be had.
void choose_loops(const char* wish);

/// The chosen loops and their name.
const Loops& loops();
const char* cpu_capability();

template <class T>
const TypedLoops<T>& typed_loops();
template <>
inline const TypedLoops<float>& typed_loops<float>() { return loops().f32; }
template <>
inline const TypedLoops<double>& typed_loops<double>() { return loops().f64; }

}  // namespace progdistill
