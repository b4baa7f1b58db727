#include "block.h"
#include "ops.h"
#include "watch.h"

namespace progdistill {

bool ddim_step(
    const Layout& layout, const Sink& next, const std::optional<Sink>& copy, const Source& z, const Source& out,
    const double* phi, const double* phi_next, Prediction prediction, std::optional<double> clip, int threads) {
  Watch watch;
  for_state_type(layout, [&](auto zero) {
    using T = decltype(zero);
    for_each_block<T>(
        layout, Blocks(layout, lies_direct(layout, out)), threads,
        [&](int64_t b) {
          const StepForm form = step_form(prediction, phi[b], phi_next[b]);
          const Form& used = clip ? form.x : form.direct;
          watch.angle(phi[b]);
          watch.angle(phi_next[b]);
          watch.require(phi_next[b] <= phi[b]);
          watch.finite(used.z);
          watch.finite(used.output, out.heads);
          if (clip) watch.finite(form.z_of_clipped);
          return form;
        },
        [&](const StepForm& form, const Block& block, Scratch<T>& scratch) {
          T* to = destination<T>(next, 0, layout, block, scratch.state);
          Sum<T> sum(layout, block, scratch);
          const Form& first = clip ? form.x : form.direct;
          sum.add(z, 0, first.z);
          sum.add_heads(out, first.output);
          if (clip) {
            Term<T> terms[kTerms];
            const int count = sum.copy_terms(terms);
            const ClippedMove<T> by{
                static_cast<T>(*clip), static_cast<T>(form.z_of_clipped), static_cast<T>(form.x_of_clipped)};
            const T* state = read<T>(z, 0, layout, block, nullptr);
            typed_loops<T>().clipped_step(to, terms, count, state, by, block.size);
          } else {
            sum.write(to);
          }
          commit(next, layout, block, &to);
          if (copy) commit(*copy, layout, block, &to);
        });
  });
  return watch.all_well();
}

}  // namespace progdistill
