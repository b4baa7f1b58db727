#include <algorithm>
#include <memory>
#include <mutex>
#include <vector>

#include "cuda_runtime.h"

// swapcontext asks the kernel for the signal mask at each change, most of what a change costs; the emulator's threads
// share one mask. Keeps what the System V x86-64 convention has a callee keep, and changes stacks.
extern "C" void cuda_on_cpu_change_stacks(void** leave, void* enter);
asm(R"(
.text
.type cuda_on_cpu_change_stacks, @function
cuda_on_cpu_change_stacks:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cuda_on_cpu_change_stacks, . - cuda_on_cpu_change_stacks
)");

namespace cuda_on_cpu {
namespace {

constexpr unsigned kWarp = 32;
constexpr size_t kStack = 128 * 1024;

struct Copy {
  void* to;
  const void* from;
  size_t bytes;
};

struct Thread {
  void* top = nullptr;  // of its stack, while others run
  std::unique_ptr<char[]> stack{new char[kStack]};
  Barrier waits = Barrier::none;
  bool done = false;
  unsigned shuffles = 0;
  std::vector<Copy> copies;  // begun, not waited for
  size_t committed = 0;      // of these
};

struct Block {
  std::vector<Thread> threads;
  std::vector<std::pair<uint64_t, uint64_t>> slots;  // of each thread, for even and odd shuffles
  std::vector<uint4> shared;
  void* scheduler = nullptr;  // the top of its stack, while a thread runs
  Thread* current = nullptr;
  void (*body)(void*) = nullptr;
  void* argument = nullptr;
};

Block block;

void enter() {
  block.body(block.argument);
  block.current->done = true;
  void* never_again;
  cuda_on_cpu_change_stacks(&never_again, block.scheduler);
}

void start(Thread& thread) {
  thread.waits = Barrier::none;
  thread.done = false;
  thread.shuffles = 0;
  thread.copies.clear();
  thread.committed = 0;
  auto end = reinterpret_cast<uintptr_t>(thread.stack.get() + kStack) / 16 * 16;
  // From the end: where a caller's address would be, where to begin, six registers.
  auto* slots = reinterpret_cast<void**>(end);
  slots[-1] = nullptr;
  slots[-2] = reinterpret_cast<void*>(enter);
  thread.top = slots - 8;
}

void resume(unsigned index) {
  block.current = &block.threads[index];
  block.current->waits = Barrier::none;
  threadIdx = {index, 0, 0};
  cuda_on_cpu_change_stacks(&block.scheduler, block.current->top);
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
  cuda_on_cpu_change_stacks(&self.top, block.scheduler);
}

unsigned current_lane() { return threadIdx.x % kWarp; }

void* slot_of(unsigned lane) {
  auto& [even, odd] = block.slots[threadIdx.x - current_lane() + lane];
  return block.current->shuffles % 2 == 0 ? &even : &odd;
}

void next_slots() { ++block.current->shuffles; }

void copy_later(void* to, const void* from, size_t bytes) { block.current->copies.push_back({to, from, bytes}); }

void commit_copies() { block.current->committed = block.current->copies.size(); }

void finish_copies() {
  Thread& self = *block.current;
  const auto end = self.copies.begin() + static_cast<std::ptrdiff_t>(self.committed);
  for (auto copy = self.copies.begin(); copy != end; ++copy) std::memcpy(copy->to, copy->from, copy->bytes);
  self.copies.erase(self.copies.begin(), end);
  self.committed = 0;
}

void* dynamic_shared() { return block.shared.data(); }

cudaError_t run(const cudaLaunchConfig_t& config, void (*body)(void*), void* context) {
  static std::mutex one_at_a_time;  // blocks and threads are counted in variables that all launches share
  const std::lock_guard<std::mutex> lock(one_at_a_time);
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
