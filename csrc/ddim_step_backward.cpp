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
        layout, Blocks(layout, !clip && lies_direct(layout, grad_out)), threads,
        [&](int64_t b) { return step_form(prediction, phi[b], phi_next[b]); },
        [&](const StepForm& form, const Block& block, Scratch<T>& scratch) {
          const T* upstream = read<T>(grad, 0, layout, block, nullptr);
          T* to[1 + kMaxHeads];
          T factors[1 + kMaxHeads];
          int count = 0;
          if (clip) {
            // What reaches x, and so z a second time and the output, where x was not clipped.
            Sum<T> x(layout, block, scratch);
            x.add(z, 0, form.x.z);
            x.add_heads(out, form.x.output);
            Term<T> terms[kTerms];
            const int inputs = x.copy_terms(terms);
            typed_loops<T>().unclipped(
                scratch.x, terms, inputs, upstream, static_cast<T>(*clip), static_cast<T>(form.x_of_clipped), block.size);
            if (grad_z) {
              Sum<T> through_z(layout, block, scratch);
              through_z.add(upstream, form.z_of_clipped);
              through_z.add(scratch.x, form.x.z);
              through_z.write(destination<T>(*grad_z, 0, layout, block, scratch.state));
            }
            upstream = scratch.x;
          } else if (grad_z) {
            to[count] = destination<T>(*grad_z, 0, layout, block, scratch.state);
            factors[count++] = static_cast<T>(form.direct.z);
          }
          T** const heads = to + count;
          for (int head = 0; grad_out && head < grad_out->heads; ++head) {
            to[count] = destination<T>(*grad_out, head, layout, block, scratch.grads[head]);
            factors[count++] = static_cast<T>((clip ? form.x : form.direct).output[head]);
          }
          typed_loops<T>().scale(to, factors, count, upstream, block.size);
          if (grad_out) commit(*grad_out, layout, block, heads);
        });
  });
}

}  // namespace progdistill
