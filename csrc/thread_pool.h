#pragma once

#include <cstdint>
#include <type_traits>

namespace progdistill {

/// Runs body(context, begin, end) over [0, count) in pieces of `grain` on up to `threads` threads, the caller among
/// them, and returns when all are done. Which thread runs which piece is left open, so results must not depend on it.
/// The first exception thrown by a piece is rethrown here, after the others have stopped. Calls may come from several
/// threads at once; a forked child starts with no workers and makes its own.
void run_parallel(
    int64_t count, int64_t grain, int threads, void (*body)(void*, int64_t, int64_t), void* context);

/// The same for a callable body(begin, end).
template <class Body>
void parallel_for(int64_t count, int64_t grain, int threads, Body&& body) {
  using Callable = std::remove_reference_t<Body>;
  run_parallel(
      count, grain, threads,
      [](void* context, int64_t begin, int64_t end) { (*static_cast<Callable*>(context))(begin, end); }, &body);
}

}  // namespace progdistill
