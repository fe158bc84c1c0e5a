// Read-only tables shared by all threads (twiddle factors), made once per key and kept while memory allows.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace convscan {

struct TableKey {
  const void *kind;  // an address that names the maker
  int64_t length;
};

// The table of that key, made by fill(table, length) on first use; null when memory is exhausted. Every acquired table
// is released once. Tables not in use are dropped, the oldest first, when all together exceed a few MiB.
const void *AcquireTable(TableKey key, size_t bytes, void (*fill)(void *table, int64_t length));
void ReleaseTable(const void *table);

int64_t TablesCurrent();  // bytes held

}  // namespace convscan
