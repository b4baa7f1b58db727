#include "angles.h"
#include "block.h"
#include "ops.h"
#include "watch.h"

namespace progdistill {

bool diffuse(
    const Layout& layout, const Sink& z, const Source& x, const Source& noise, const double* phi, int threads) {
  struct Coefficients {
    double x, noise;
  };
  Watch watch;
  for_state_type(layout, [&](auto zero) {
    using T = decltype(zero);
    for_each_block<T>(
        layout, threads,
        [&](int64_t b) {
          watch.angle(phi[b]);
          return Coefficients{cosine(phi[b]), sine(phi[b])};
        },
        [&](const Coefficients& by, const Block& block, Scratch<T>& scratch) {
          Sum<T> sum(layout, block, scratch);
          sum.add(x, 0, by.x);
          sum.add(noise, 0, by.noise);
          T* to = destination<T>(z, 0, layout, block, scratch.x);
          sum.write(to);
          commit(z, layout, block, &to);
        });
  });
  return watch.all_well();
}

}  // namespace progdistill
