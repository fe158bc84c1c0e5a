#include "core/parallel.h"

#include <pthread.h>

#include <atomic>

#if defined(_OPENMP)
#include <omp.h>
#else
#include <thread>
#include <vector>
#endif

namespace convscan {
namespace {

std::atomic<bool> forked_child{false};

// Registered when the library is loaded: a child inherits libgomp's bookkeeping of a pool whose threads do not exist
// there, and would wait for them for ever.
const int at_fork = pthread_atfork(nullptr, nullptr, [] { forked_child.store(true, std::memory_order_relaxed); });

thread_local const convscan_pool *pool_in_use = nullptr;

}  // namespace

void UsePool(const convscan_pool *pool) { pool_in_use = pool; }

int ThreadCount() {
  if (forked_child.load(std::memory_order_relaxed)) return 1;
  if (pool_in_use != nullptr) return pool_in_use->thread_count(pool_in_use->host);
#if defined(_OPENMP)
  return omp_in_parallel() ? 1 : omp_get_max_threads();
#else
  static const int processors = static_cast<int>(std::thread::hardware_concurrency());
  return processors > 0 ? processors : 1;
#endif
}

void ParallelFor(int64_t count, int threads, void (*task)(void *, int64_t), void *context) {
  if (threads <= 0) threads = ThreadCount();
  if (forked_child.load(std::memory_order_relaxed)) threads = 1;
  if (threads > count) threads = static_cast<int>(count);
  if (threads <= 1) {
    for (int64_t i = 0; i < count; ++i) task(context, i);
    return;
  }
  if (pool_in_use != nullptr) {
    pool_in_use->run(pool_in_use->host, count, threads, task, context);
    return;
  }
#if defined(_OPENMP)
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (int64_t i = 0; i < count; ++i) task(context, i);
#else
  std::atomic<int64_t> next{0};
  const auto work = [&] {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) task(context, i);
  };
  std::vector<std::thread> others;
  others.reserve(static_cast<size_t>(threads - 1));
  for (int t = 1; t < threads; ++t) others.emplace_back(work);
  work();
  for (std::thread &other : others) other.join();
#endif
}

void OnEveryThread(void (*task)()) {
  if (pool_in_use != nullptr) {
    task();
    return;
  }
#if defined(_OPENMP)
#pragma omp parallel num_threads(ThreadCount())
  task();
#else
  task();  // std::threads end with the call that started them
#endif
}

}  // namespace convscan
