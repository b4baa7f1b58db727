#include "elements.cuh"

namespace progdistill::cuda {
namespace {

constexpr int kAtOnce = 4;  // terms whose loads are under way together: as many as registers allow

template <class T>
struct Terms {
  Plane planes[kMaxTerms];
  T factors[kMaxTerms];
  int count;
};

template <class T, int Width>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor<T>) linear_combination_kernel(
    Plane result, const __grid_constant__ Terms<T> terms, uint32_t elements, uint32_t chunks) {
  const Part part(elements, chunks);
  part.for_each_unit<Width>([&](uint32_t e) {
    Unit<T, Width> sum{};
    for (int first = 0; first < terms.count; first += kAtOnce) {
      Unit<T, Width> values[kAtOnce];
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        if (first + k < terms.count) load(values[k], terms.planes[first + k], part.sample, e);
      }
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        if (first + k >= terms.count) break;
        const T factor = terms.factors[first + k];
        const bool begins = first + k == 0;  // 0 + a product would lose the sign of -0
        sum.each([&](int i) {
          return begins ? factor * values[k].value[i] : fused(factor, values[k].value[i], sum.value[i]);
        });
      }
    }
    store(sum, result, part.sample, e);
  });
}

}  // namespace

int linear_combination(
    const Layout& layout, const Sink& result, const std::vector<CombinedHead>& terms, const Queue& queue) {
  bool vectors = takes_vectors(layout, result);
  for (const CombinedHead& term : terms) vectors = vectors && takes_vectors(layout, term.source);
  return for_state_type_and_width(layout, vectors, [&](auto zero, auto width) {
    using T = decltype(zero);
    Terms<T> given{};
    for (const CombinedHead& term : terms) {
      given.planes[given.count] = plane(term.source, term.head, layout);
      given.factors[given.count++] = static_cast<T>(term.factor);
    }
    const int64_t chunks = chunks_per_sample(layout.elements);
    return launch(
        linear_combination_kernel<T, width()>, layout.samples * chunks, kThreads, queue, plane(result, 0, layout), given,
        layout.elements, chunks);
  });
}

}  // namespace progdistill::cuda
