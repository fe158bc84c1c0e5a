#include "core/cache.h"

#include <stdio.h>

#include <atomic>

namespace convscan {
namespace {

// Linux's own account of the first processor. sysconf has another one, which on large AMD processors adds up caches that
// a core cannot use.
int64_t AskForCache() {
  int64_t largest = 0;
  for (int index = 0; index < 8; ++index) {
    char path[80];
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/size", index);
    FILE *const file = fopen(path, "r");
    if (file == nullptr) break;
    long long size = 0;
    char unit = 0;
    if (fscanf(file, "%lld%c", &size, &unit) >= 1) {
      const int64_t bytes = size << (unit == 'K' ? 10 : unit == 'M' ? 20 : 0);
      if (bytes > largest) largest = bytes;
    }
    fclose(file);
  }
  return largest > 0 ? largest : int64_t{16} << 20;
}

std::atomic<int64_t> assumed{0};

}  // namespace

int64_t LastLevelCacheBytes() {
  static const int64_t bytes = AskForCache();
  const int64_t instead = assumed.load(std::memory_order_relaxed);
  return instead > 0 ? instead : bytes;
}

void AssumeLastLevelCache(int64_t bytes) { assumed.store(bytes, std::memory_order_relaxed); }

}  // namespace convscan
