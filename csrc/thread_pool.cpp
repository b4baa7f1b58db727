#include "thread_pool.h"

#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>

namespace progdistill {
namespace {

constexpr int kMaxThreads = 64;  // of one call; memory-bound loops gain nothing from more

// Waking a sleeping thread takes 10 to 50 microseconds, as long as an operation on a small batch. So a worker stays
// awake this long after a piece of work, for the next call of a burst, and a caller for its workers' last pieces.
constexpr std::chrono::microseconds kAwake{50};

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

/// Waits at most kAwake for the condition, awake.
template <class Condition>
void wait_awake(Condition&& condition) {
  const auto end = std::chrono::steady_clock::now() + kAwake;
  while (!condition() && std::chrono::steady_clock::now() < end) {
    for (int i = 0; i < 16; ++i) pause();
  }
}

/// A thread's own part of a job's range.
struct alignas(64) Share {
  std::atomic<int64_t> next;
  int64_t end;
};

/// One call of run_parallel; lives on the caller's stack.
class Job {
 public:
  Job(int64_t count, int64_t grain, int threads, void (*body)(void*, int64_t, int64_t), void* context)
      : grain_(grain), threads_(threads), body_(body), context_(context) {
    const int64_t pieces = (count + grain - 1) / grain;
    for (int i = 0; i < threads; ++i) {
      shares_[i].next = pieces * i / threads * grain;
      shares_[i].end = std::min(pieces * (i + 1) / threads * grain, count);
    }
  }

  /// Does pieces of the participant's own share, the same in every call, so that a tensor's parts stay in the caches of
  /// the cores that saw them last; then what others have left.
  void work(int participant) noexcept {
    for (int i = 0; i < threads_; ++i) {
      Share& share = shares_[(participant + i) % threads_];
      while (!failed_.load(std::memory_order_relaxed)) {
        const int64_t begin = share.next.fetch_add(grain_, std::memory_order_relaxed);
        if (begin >= share.end) break;
        run(begin, std::min(begin + grain_, share.end));
      }
    }
  }

  void rethrow() const {
    if (error_) std::rethrow_exception(error_);
  }

  // Guarded by the pool's mutex, but for a glance at `running`:
  int wanted = 0;               // workers that may still begin
  std::atomic<int> running{0};  // workers inside work()
  Job* below = nullptr;         // in the pool's stack of jobs that want workers
  std::condition_variable finished;

 private:
  void run(int64_t begin, int64_t end) noexcept {
    try {
      body_(context_, begin, end);
    } catch (...) {
      if (!failed_.exchange(true)) error_ = std::current_exception();
    }
  }

  const int64_t grain_;
  const int threads_;
  void (*const body_)(void*, int64_t, int64_t);
  void* const context_;
  std::atomic<bool> failed_{false};
  std::exception_ptr error_;
  Share shares_[kMaxThreads];
};

class Pool {
 public:
  void run(Job& job, int helpers) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      helpers = start_workers(helpers);
      if (helpers > 0) push(job, helpers);
    }
    for (int i = 0; i < helpers; ++i) wake_.notify_one();
    job.work(0);
    wait_awake([&] { return job.running == 0; });
    std::unique_lock<std::mutex> lock(mutex_);
    // The caller has found nothing left to do, so workers that have not begun are not waited for.
    remove(job);
    job.finished.wait(lock, [&] { return job.running == 0; });
  }

 private:
  int start_workers(int wanted) {
    if (workers_ >= wanted) return wanted;
    // Workers inherit a full signal mask: signals are for Python's own threads.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (workers_ < wanted) {
      try {
        std::thread([this, number = workers_ + 1] { serve(number); }).detach();
      } catch (const std::system_error&) {
        break;  // no more threads to be had: the call runs on those there are
      }
      ++workers_;
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    return std::min(wanted, workers_);
  }

  void push(Job& job, int helpers) {
    job.wanted = helpers;
    job.below = top_;
    top_ = &job;
    workers_wanted_ = true;
  }

  void remove(const Job& job) {
    Job** link = &top_;
    while (*link != nullptr && *link != &job) link = &(*link)->below;
    if (*link != nullptr) *link = job.below;
    workers_wanted_ = top_ != nullptr;
  }

  void serve(int number) {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return top_ != nullptr; });
      Job* job = top_;
      if (--job->wanted == 0) remove(*job);
      ++job->running;
      lock.unlock();
      job->work(number);
      lock.lock();
      if (--job->running == 0) job->finished.notify_one();
      lock.unlock();
      wait_awake([this] { return workers_wanted_.load(std::memory_order_relaxed); });
      lock.lock();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  Job* top_ = nullptr;
  std::atomic<bool> workers_wanted_{false};  // top_ != nullptr, for those who look without the mutex
  int workers_ = 0;
};

// Never destroyed: workers wait in it until the process ends. A forked child has none of them, and perhaps a mutex
// that another thread held, so it begins with a new pool in the same place.
alignas(Pool) unsigned char pool_storage[sizeof(Pool)];

Pool* new_pool() { return new (pool_storage) Pool; }

Pool* make_pool() {
  pthread_atfork(nullptr, nullptr, [] { new_pool(); });
  return new_pool();
}

Pool* const pool = make_pool();

}  // namespace

void run_parallel(
    int64_t count, int64_t grain, int threads, void (*body)(void*, int64_t, int64_t), void* context) {
  if (count <= 0) return;
  const int64_t pieces = (count + grain - 1) / grain;
  const int participants = static_cast<int>(std::min<int64_t>({threads, pieces, kMaxThreads}));
  if (participants <= 1) {
    body(context, 0, count);
    return;
  }
  Job job(count, grain, participants, body, context);
  pool->run(job, participants - 1);
  job.rethrow();
}

}  // namespace progdistill
