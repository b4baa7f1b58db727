#include <ucontext.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "cuda_runtime.h"

namespace cuda_on_cpu {
namespace {

constexpr unsigned kWarp = 32;
constexpr size_t kStack = 128 * 1024;

struct Thread {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  Barrier waits = Barrier::none;
  bool done = false;
  unsigned shuffles = 0;
};

struct Block {
  std::vector<Thread> threads;
  std::vector<std::pair<uint64_t, uint64_t>> slots;  // of each thread, for even and odd shuffles
  std::vector<uint4> shared;
  ucontext_t scheduler;
  Thread* current = nullptr;
  void (*body)(void*) = nullptr;
  void* argument = nullptr;
};

Block block;

void enter() {
  block.body(block.argument);
  block.current->done = true;
}

void start(Thread& thread) {
  thread.waits = Barrier::none;
  thread.done = false;
  thread.shuffles = 0;
  getcontext(&thread.context);
  thread.context.uc_stack.ss_sp = thread.stack.get();
  thread.context.uc_stack.ss_size = kStack;
  thread.context.uc_link = &block.scheduler;
  makecontext(&thread.context, enter, 0);
}

void resume(unsigned index) {
  block.current = &block.threads[index];
  block.current->waits = Barrier::none;
  threadIdx = {index, 0, 0};
  swapcontext(&block.scheduler, &block.current->context);
}

/// Resumes [begin, end) if all of them wait at that barrier; whoever comes last first in odd blocks, so that code that
/// needs a barrier and lacks it finds an order that shows.
bool resume_all(unsigned begin, unsigned end, Barrier barrier) {
  for (unsigned i = begin; i < end; ++i) {
    if (block.threads[i].done || block.threads[i].waits != barrier) return false;
  }
  for (unsigned i = begin; i < end; ++i) resume(blockIdx.x % 2 == 0 ? i : begin + end - 1 - i);
  return true;
}

bool run_block(unsigned threads) {
  std::fill(block.shared.begin(), block.shared.end(), uint4{~0u, ~0u, ~0u, ~0u});
  for (unsigned i = 0; i < threads; ++i) start(block.threads[i]);
  resume_all(0, threads, Barrier::none);
  for (bool moved = true; moved;) {
    moved = false;
    for (unsigned warp = 0; warp < threads; warp += kWarp) {
      moved |= resume_all(warp, std::min(warp + kWarp, threads), Barrier::warp);
    }
    moved |= resume_all(0, threads, Barrier::block);
  }
  for (unsigned i = 0; i < threads; ++i) {
    if (!block.threads[i].done) return false;
  }
  return true;
}

}  // namespace

void wait(Barrier barrier) {
  Thread& self = *block.current;
  self.waits = barrier;
  swapcontext(&self.context, &block.scheduler);
}

unsigned current_lane() { return threadIdx.x % kWarp; }

void* slot_of(unsigned lane) {
  auto& [even, odd] = block.slots[threadIdx.x - current_lane() + lane];
  return block.current->shuffles % 2 == 0 ? &even : &odd;
}

void next_slots() { ++block.current->shuffles; }

void* dynamic_shared() { return block.shared.data(); }

cudaError_t run(const cudaLaunchConfig_t& config, void (*body)(void*), void* context) {
  const unsigned threads = config.blockDim.x;
  if (threads == 0 || threads > 1024 || config.gridDim.x == 0) return cudaErrorInvalidConfiguration;
  if (block.threads.size() < threads) {
    block.threads = std::vector<Thread>(threads);
    block.slots.resize(threads);
  }
  block.shared = std::vector<uint4>((config.dynamicSmemBytes + sizeof(uint4) - 1) / sizeof(uint4));
  block.body = body;
  block.argument = context;
  blockDim = config.blockDim;
  gridDim = config.gridDim;
  for (blockIdx.x = 0; blockIdx.x < config.gridDim.x; ++blockIdx.x) {
    if (!run_block(threads)) return cudaErrorLaunchFailure;
  }
  return cudaSuccess;
}

}  // namespace cuda_on_cpu
