#include "bindings_linear_combination.h"

#include <pybind11/stl.h>

#include <vector>

#include "arguments.h"
#include "ops.h"
#include "run.h"

namespace py = pybind11;

namespace progdistill {
namespace {

using Factors = std::vector<std::vector<double>>;  // of each tensor, one for each head

std::vector<CombinedHead> read_terms(Arguments& arguments, const py::list& tensors, const Factors& factors) {
  if (factors.size() != tensors.size()) {
    throw py::value_error(
        "tensors holds " + std::to_string(tensors.size()) + ", factors " + std::to_string(factors.size()));
  }
  std::vector<CombinedHead> terms;
  for (size_t k = 0; k < factors.size(); ++k) {
    const int count = static_cast<int>(factors[k].size());
    if (count < 1 || count > kMaxHeads) {
      throw py::value_error("factors[" + std::to_string(k) + "] holds " + std::to_string(count) + "; expected 1 or 2");
    }
    const Tensor& tensor = arguments.output("tensors[" + std::to_string(k) + "]", tensors[k], count);
    for (int head = 0; head < count; ++head) {
      if (factors[k][head] != 0.0) terms.push_back({source(tensor, count), head, factors[k][head]});
    }
  }
  if (terms.size() > kMaxTerms) {
    throw py::value_error(
        std::to_string(terms.size()) + " terms were given; the kernels take " + std::to_string(kMaxTerms) + " at most");
  }
  return terms;
}

void call_linear_combination(
    py::handle result, const py::list& tensors, const Factors& factors, py::handle how) {
  const Run run(how, result);
  Arguments arguments(run.device());
  const Sink to = arguments.sink(arguments.state("result", result));
  const std::vector<CombinedHead> terms = read_terms(arguments, tensors, factors);
  bool two_heads = false;
  for (const CombinedHead& term : terms) two_heads |= term.source.heads > 1;
  const Layout layout = without_samples(arguments.layout(), two_heads);
  if constexpr (kHasCuda) {
    if (run.on_cuda()) {
      raise_if_failed(cuda::linear_combination(layout, to, terms, run.queue()), "linear_combination");
      return;
    }
  }
  py::gil_scoped_release unlocked;
  linear_combination(layout, to, terms, run.threads());
}

}  // namespace

void bind_linear_combination(py::module_& module) { module.def("linear_combination", &call_linear_combination); }

}  // namespace progdistill
