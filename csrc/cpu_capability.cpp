#include <cstring>
#include <stdexcept>
#include <string>

#include "loops/loops.h"

namespace progdistill {

namespace baseline {
extern const Loops table;
}
#if defined(PD_HAS_X86_LOOPS)
namespace avx2 {
extern const Loops table;
}
namespace avx512 {
extern const Loops table;
}
#endif

namespace {

struct Choice {
  const char* name;
  const Loops* loops;
  bool supported;
};

Choice chosen{"baseline", &baseline::table, true};

}  // namespace

void choose_loops(const char* wish) {
#if defined(PD_HAS_X86_LOOPS)
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const Choice choices[] = {
      {"avx512", &avx512::table, has_avx512}, {"avx2", &avx2::table, has_avx2}, {"baseline", &baseline::table, true}};
#else
  const Choice choices[] = {{"baseline", &baseline::table, true}};
#endif
  std::string supported;
  for (const Choice& choice : choices) {
    if (!choice.supported) continue;
    if (wish == nullptr || *wish == '\0' || std::strcmp(wish, choice.name) == 0) {
      chosen = choice;
      return;
    }
    supported += (supported.empty() ? "" : ", ") + std::string(choice.name);
  }
  throw std::invalid_argument(
      "PROGDISTILL_CPU_CAPABILITY is " + std::string(wish) + "; this build and machine have: " + supported);
}

const Loops& loops() { return *chosen.loops; }
const char* cpu_capability() { return chosen.name; }

}  // namespace progdistill
