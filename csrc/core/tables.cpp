#include "core/tables.h"

#include <pthread.h>
#include <stdlib.h>

#include <list>
#include <mutex>
#include <new>

namespace convscan {
namespace {

constexpr int64_t kKeep = int64_t{16} << 20;

struct Entry {
  TableKey key;
  void *table;
  size_t bytes;
  int users;
};

// Never destroyed: kernels may still run in other threads while the process exits.
struct Cache {
  std::mutex mutex;
  std::list<Entry> entries;  // most recently acquired first
  int64_t bytes = 0;

  void DropUnused() {
    for (auto it = entries.end(); bytes > kKeep && it != entries.begin();) {
      --it;
      if (it->users != 0) continue;
      bytes -= static_cast<int64_t>(it->bytes);
      free(it->table);
      it = entries.erase(it);
    }
  }
};

Cache &TheCache() {
  static Cache *const cache = new Cache;
  return *cache;
}

// A child forked while another thread holds the lock would wait for it for ever.
const int at_fork = pthread_atfork([] { TheCache().mutex.lock(); }, [] { TheCache().mutex.unlock(); },
                                   [] { TheCache().mutex.unlock(); });

}  // namespace

const void *AcquireTable(TableKey key, size_t bytes, void (*fill)(void *, int64_t)) {
  Cache &cache = TheCache();
  const std::lock_guard<std::mutex> lock(cache.mutex);
  for (auto it = cache.entries.begin(); it != cache.entries.end(); ++it) {
    if (it->key.kind != key.kind || it->key.length != key.length) continue;
    ++it->users;
    cache.entries.splice(cache.entries.begin(), cache.entries, it);
    return it->table;
  }
  constexpr size_t kAlignment = 64;
  if (bytes > SIZE_MAX - kAlignment) return nullptr;
  void *table = aligned_alloc(kAlignment, (bytes + kAlignment - 1) / kAlignment * kAlignment);
  if (table == nullptr) return nullptr;
  try {
    cache.entries.push_front({key, table, bytes, 1});
  } catch (const std::bad_alloc &) {
    free(table);
    return nullptr;
  }
  fill(table, key.length);
  cache.bytes += static_cast<int64_t>(bytes);
  cache.DropUnused();
  return table;
}

void ReleaseTable(const void *table) {
  Cache &cache = TheCache();
  const std::lock_guard<std::mutex> lock(cache.mutex);
  for (Entry &entry : cache.entries)
    if (entry.table == table) --entry.users;
  cache.DropUnused();
}

int64_t TablesCurrent() {
  Cache &cache = TheCache();
  const std::lock_guard<std::mutex> lock(cache.mutex);
  return cache.bytes;
}

}  // namespace convscan
