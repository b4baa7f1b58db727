#pragma once

// The CUDA kernels: twins of csrc/ops.h that put their work on a stream and return a cudaError_t, 0 if all is well.
// All pointers are the device's, seeds, steps and angles included, and nothing waits for the device or allocates: calls
// can be captured in a CUDA graph. The same input gives the same bits on every device: no atomics, and blocks are cut by
// the size of a sample alone.

#include <cstdint>
#include <optional>
#include <vector>

#include "adamw.h"
#include "combination.h"
#include "images.h"
#include "objective.h"
#include "queue.h"
#include "parameters.h"
#include "teacher.h"

namespace progdistill::cuda {

/// Elements of a sample that one block of threads works on.
constexpr int64_t kChunk = 4096;

/// How many partial sums a loss writes for a sample; 1: none, the sum goes to the loss itself.
constexpr int64_t chunks_per_sample(int64_t elements) { return (elements + kChunk - 1) / kChunk; }

int normal(
    float* out, const int64_t* seeds, int64_t samples, int64_t count, const int64_t* step, uint32_t stream,
    const Queue& queue);

int uniform(
    double* out, const int64_t* seeds, int64_t samples, const int64_t* step, uint32_t stream, const Queue& queue);
int integers(
    int64_t* out, const int64_t* seeds, int64_t samples, const int64_t* step, uint32_t stream, int64_t high,
    const Queue& queue);
int random_bits(
    int64_t* out, const int64_t* numbers, int64_t count, int64_t key, int64_t counter_high, const Queue& queue);

int diffuse(
    const Layout& layout, const Sink& z, const Source& x, const Source& noise, const double* phi, const Queue& queue);

int diffuse_seeded(
    const Layout& layout, const Sink& z, const Source& x, const int64_t* seeds, const int64_t* step, uint32_t stream,
    const double* phi, const Queue& queue);

int ddim_step(
    const Layout& layout, const Sink& next, const std::optional<Sink>& copy, const Source& z, const Source& out,
    const double* phi, const double* phi_next, Prediction prediction, std::optional<double> clip, const Queue& queue);

int linear_combination(
    const Layout& layout, const Sink& result, const std::vector<CombinedHead>& terms, const Queue& queue);

int distillation_target(
    const Layout& layout, const Sink& target, const Source& z, const Teacher& teacher, Prediction target_type,
    const Queue& queue);

/// partials: (samples, chunks_per_sample) double, not read where that is 1.
int distillation_loss(
    const Layout& layout, void* loss, double* partials, const std::optional<Sink>& grad, const Source& pred,
    const Source& z, const Teacher& teacher, const Objective& objective, const Queue& queue);
int prediction_loss(
    const Layout& layout, void* loss, double* partials, const std::optional<Sink>& grad, const Source& pred,
    const Source& z, const Source& target, const double* phi, Prediction target_type, const Objective& objective,
    const Queue& queue);

/// norm: one number of that dtype; partials: gradient_norm_partials(...) double.
int64_t gradient_norm_partials(const std::vector<Gradient>& grads);
int gradient_norm(
    void* norm, DType dtype, double* partials, const std::vector<Gradient>& grads, const Queue& queue);

/// Numbers that have a pointer are read when the kernel runs.
int adamw_ema(const std::vector<Parameter>& parameters, DType dtype, const AdamW& adamw, const Queue& queue);

}  // namespace progdistill::cuda
