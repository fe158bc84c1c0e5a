// The one place that knows about threads.
#pragma once

#include <stdint.h>

#include "convscan.h"

namespace convscan {

// The host's threads, which calls of this thread use from now on; null for the library's own.
void UsePool(const convscan_pool *pool);

// Threads used when a problem asks for 0: the host's pool; else OpenMP's own setting, so torch.set_num_threads is
// followed. 1 in a forked child, where libgomp's pool cannot be restarted.
int ThreadCount();

// Runs task(context, index) for 0 <= index < count on at most `threads` threads (0: ThreadCount()), in any order,
// and returns when all are done. Tasks must not throw. Which thread runs which task may vary: a task's result may
// depend on its index only.
void ParallelFor(int64_t count, int threads, void (*task)(void *context, int64_t index), void *context);

// The same for any callable.
template <class Function>
void ParallelFor(int64_t count, int threads, const Function &function) {
  ParallelFor(
      count, threads,
      [](void *context, int64_t index) { (*static_cast<const Function *>(context))(index); },
      const_cast<void *>(static_cast<const void *>(&function)));
}

// Runs share(begin, end) for as many even shares of [0, count) as there are threads: of data that stays in the caches, a
// thread mostly finds in a call what it left there in the one before.
template <class Function>
void ParallelShares(int64_t count, int threads, const Function &share) {
  const int64_t all = threads > 0 ? threads : ThreadCount(), shares = all < count ? all : count;
  ParallelFor(shares, threads, [&](int64_t i) { share(i * count / shares, (i + 1) * count / shares); });
}

// Runs task once on each of the threads that ParallelFor keeps between calls, the caller's included. Of a host's pool only
// the caller's: no pool promises which of its threads a task runs on.
void OnEveryThread(void (*task)());

}  // namespace convscan
