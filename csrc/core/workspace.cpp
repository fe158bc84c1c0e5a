#include "core/workspace.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <atomic>

namespace convscan {
namespace {

constexpr size_t kPage = 4096;
// Blocks up to this size are kept for the next call; larger ones too, until a call needs less than a quarter of it.
constexpr size_t kKeep = size_t{1} << 20;

std::atomic<int64_t> current{0};
std::atomic<int64_t> peak{0};

void Count(int64_t change) {
  const int64_t now = current.fetch_add(change, std::memory_order_relaxed) + change;
  int64_t seen = peak.load(std::memory_order_relaxed);
  while (now > seen && !peak.compare_exchange_weak(seen, now, std::memory_order_relaxed)) {
  }
}

struct Block {
  void *address = nullptr;
  size_t bytes = 0;

  void Free() {
    if (address != nullptr) {
      munmap(address, bytes);
      Count(-static_cast<int64_t>(bytes));
    }
    address = nullptr;
    bytes = 0;
  }
  ~Block() { Free(); }
};

thread_local Block block;

void *Reserve(size_t bytes) {
  if (bytes > SIZE_MAX - kPage) return nullptr;
  bytes = (bytes + kPage - 1) / kPage * kPage;
  if (bytes == 0) bytes = kPage;
  const bool wasteful = block.bytes > kKeep && bytes < block.bytes / 4;
  if (bytes <= block.bytes && !wasteful) return block.address;
  block.Free();
  void *address = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (address == MAP_FAILED) return nullptr;
#if defined(MADV_HUGEPAGE)
  if (bytes >= size_t{2} << 20) madvise(address, bytes, MADV_HUGEPAGE);
#endif
  block.address = address;
  block.bytes = bytes;
  Count(static_cast<int64_t>(bytes));
  return address;
}

}  // namespace

void *Workspace(size_t bytes) {
  void *const address = Reserve(bytes);
#if defined(CONVSCAN_POISON)
  // All bits set is not a number in any type: what a kernel reads before it has written it shows. A task of the calling
  // thread may ask again for what that holds already.
  thread_local size_t last = 0;
  if (address != nullptr && bytes != last) memset(address, 0xff, bytes);
  last = bytes;
#endif
  return address;
}

void ReleaseWorkspace() { block.Free(); }
int64_t WorkspaceCurrent() { return current.load(std::memory_order_relaxed); }
int64_t WorkspacePeak() { return peak.load(std::memory_order_relaxed); }
void ResetWorkspacePeak() { peak.store(current.load(std::memory_order_relaxed), std::memory_order_relaxed); }

}  // namespace convscan
