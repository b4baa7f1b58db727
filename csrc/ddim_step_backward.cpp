#include "block.h"
#include "ops.h"

namespace progdistill {

void ddim_step_backward(
    const Layout& layout, const std::optional<Sink>& grad_z, const std::optional<Sink>& grad_out, const Source& grad,
    const Source& z, const Source& out, const double* phi, const double* phi_next, Prediction prediction,
    std::optional<double> clip, int threads) {
  for_state_type(layout, [&](auto zero) {
    using T = decltype(zero);
    for_each_block<T>(
        layout, threads, [&](int64_t b) { return step_form(prediction, phi[b], phi_next[b]); },
        [&](const StepForm& form, const Block& block, Scratch<T>& scratch) {
          const T* upstream = read<T>(grad, 0, layout, block, nullptr);
          Sum<T> through_z(layout, block, scratch);
          if (clip) {
            // What reaches x, and so z a second time and the output, where x was not clipped.
            Sum<T> x(layout, block, scratch);
            x.add(z, 0, form.x.z);
            x.add_heads(out, form.x.output);
            Term<T> terms[kTerms];
            const int count = x.copy_terms(terms);
            typed_loops<T>().unclipped(
                scratch.x, terms, count, upstream, static_cast<T>(*clip), static_cast<T>(form.x_of_clipped), block.size);
            through_z.add(upstream, form.z_of_clipped);
            through_z.add(scratch.x, form.x.z);
            upstream = scratch.x;
          } else {
            through_z.add(upstream, form.direct.z);
          }
          if (grad_z) through_z.write(destination<T>(*grad_z, 0, layout, block, scratch.state));
          if (!grad_out) return;
          const double* factors = clip ? form.x.output : form.direct.output;
          T* to[kMaxHeads];
          for (int head = 0; head < grad_out->heads; ++head) {
            to[head] = destination<T>(*grad_out, head, layout, block, scratch.grads[head]);
            Sum<T> product(layout, block, scratch);
            product.add(upstream, factors[head]);
            product.write(to[head]);
          }
          commit(*grad_out, layout, block, to);
        });
  });
}

}  // namespace progdistill
