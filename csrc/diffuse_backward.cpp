#include "angles.h"
#include "block.h"
#include "ops.h"

namespace progdistill {

void diffuse_backward(
    const Layout& layout, const std::optional<Sink>& grad_x, const std::optional<Sink>& grad_noise, const Source& grad,
    const double* phi, int threads) {
  struct Coefficients {
    double x, noise;
  };
  for_state_type(layout, [&](auto zero) {
    using T = decltype(zero);
    for_each_block<T>(
        layout, threads, [&](int64_t b) { return Coefficients{cosine(phi[b]), sine(phi[b])}; },
        [&](const Coefficients& by, const Block& block, Scratch<T>& scratch) {
          const auto multiply = [&](const Sink& to, double factor) {
            Sum<T> product(layout, block, scratch);
            product.add(grad, 0, factor);
            product.write(destination<T>(to, 0, layout, block, scratch.x));
          };
          if (grad_x) multiply(*grad_x, by.x);
          if (grad_noise) multiply(*grad_noise, by.noise);
        });
  });
}

}  // namespace progdistill
