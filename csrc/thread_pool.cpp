#include "thread_pool.h"

#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>

namespace progdistill {
namespace {

constexpr int kMaxWorkers = 255;

/// One call of run_parallel; lives on the caller's stack.
struct Job {
  Job(int64_t count, int64_t grain, void (*body)(void*, int64_t, int64_t), void* context)
      : count(count), grain(grain), body(body), context(context) {}

  const int64_t count, grain;
  void (*const body)(void*, int64_t, int64_t);
  void* const context;
  std::atomic<int64_t> next{0};
  // Guarded by the pool's mutex:
  int wanted = 0;        // workers that may still begin
  int running = 0;       // workers inside work()
  Job* below = nullptr;  // in the pool's stack of jobs that want workers
  // Set by the piece that failed first:
  std::atomic<bool> failed{false};
  std::exception_ptr error;
  std::condition_variable finished;

  void work() noexcept {
    for (;;) {
      const int64_t begin = next.fetch_add(grain, std::memory_order_relaxed);
      if (begin >= count || failed.load(std::memory_order_relaxed)) return;
      try {
        body(context, begin, std::min(begin + grain, count));
      } catch (...) {
        if (!failed.exchange(true)) error = std::current_exception();
      }
    }
  }
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
    job.work();
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
        std::thread([this] { serve(); }).detach();
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
  }

  void remove(const Job& job) {
    for (Job** link = &top_; *link != nullptr; link = &(*link)->below) {
      if (*link == &job) {
        *link = job.below;
        return;
      }
    }
  }

  void serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return top_ != nullptr; });
      Job* job = top_;
      if (--job->wanted == 0) remove(*job);
      ++job->running;
      lock.unlock();
      job->work();
      lock.lock();
      if (--job->running == 0) job->finished.notify_one();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  Job* top_ = nullptr;
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
  const int helpers = static_cast<int>(std::min<int64_t>({threads - 1, pieces - 1, kMaxWorkers}));
  if (helpers <= 0) {
    body(context, 0, count);
    return;
  }
  Job job(count, grain, body, context);
  pool->run(job, helpers);
  if (job.error) std::rethrow_exception(job.error);
}

}  // namespace progdistill
