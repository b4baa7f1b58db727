#include "angles.h"
#include "block.h"
#include "ops.h"
#include "watch.h"

namespace progdistill {

bool diffuse(
    const Layout& layout, const Sink& z, const Source& x, const Source& noise, const double* phi, int threads) {
  const std::vector<SineCosine> by = sines_and_cosines(phi, layout.samples);
  Watch watch;
  for_state_type(layout, [&](auto zero) {
    using T = decltype(zero);
    for_each_block<T>(
        layout, Blocks(layout, true), threads,
        [&](int64_t b) {
          watch.angle(phi[b]);
          return by[b];
        },
        [&](const SineCosine& by, const Block& block, Scratch<T>& scratch) {
          Sum<T> sum(layout, block, scratch);
          sum.add(x, 0, by.cos);
          sum.add(noise, 0, by.sin);
          T* to = destination<T>(z, 0, layout, block, nullptr);  // a state: there is no other place
          sum.write(to);
        });
  });
  return watch.all_well();
}

}  // namespace progdistill
