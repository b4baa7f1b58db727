#include "angles.h"
#include "block.h"
#include "ops.h"

namespace progdistill {

void diffuse_backward(
    const Layout& layout, const std::optional<Sink>& grad_x, const std::optional<Sink>& grad_noise, const Source& grad,
    const double* phi, int threads) {
  const std::vector<SineCosine> by = sines_and_cosines(phi, layout.samples);
  for_state_type(layout, [&](auto zero) {
    using T = decltype(zero);
    for_each_block<T>(
        layout, Blocks(layout, true), threads, [&](int64_t b) { return by[b]; },
        [&](const SineCosine& by, const Block& block, Scratch<T>&) {
          T* to[2];
          T factors[2];
          int count = 0;
          const auto want = [&](const std::optional<Sink>& sink, double factor) {
            if (!sink) return;
            to[count] = destination<T>(*sink, 0, layout, block, nullptr);  // a state: there is no other place
            factors[count++] = static_cast<T>(factor);
          };
          want(grad_x, by.cos);
          want(grad_noise, by.sin);
          typed_loops<T>().scale(to, factors, count, read<T>(grad, 0, layout, block, nullptr), block.size);
        });
  });
}

}  // namespace progdistill
