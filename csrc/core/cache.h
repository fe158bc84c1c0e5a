// What the caches of this machine hold.
#pragma once

#include <stdint.h>

namespace convscan {

// Bytes of the last-level cache that a core can use, 16 MiB where the system does not say.
int64_t LastLevelCacheBytes();

// From now on that many; 0: as the system says. Tests make small arrays too large for the caches.
void AssumeLastLevelCache(int64_t bytes);

}  // namespace convscan
