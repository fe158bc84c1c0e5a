// What is not about one problem: instruction sets, threads, workspace, messages.
#include <sys/mman.h>

#include "convscan.h"
#include "core/isa.h"
#include "core/parallel.h"
#include "core/tables.h"
#include "core/workspace.h"

using namespace convscan;

extern "C" {

const char *convscan_isa(void) { return ActiveKernels().isa; }
int convscan_isa_count(void) { return IsaCount(); }
const char *convscan_isa_name(int index) { return IsaAt(index) == nullptr ? nullptr : IsaAt(index)->isa; }
convscan_status convscan_set_isa(const char *name) { return SetIsa(name) ? CONVSCAN_OK : CONVSCAN_INVALID_ARGUMENT; }

int64_t convscan_multiply_adds(int64_t rounds, int threads) { return ActiveKernels().multiply_adds(rounds, threads); }
int convscan_thread_count(void) { return ThreadCount(); }
void convscan_use_pool(const convscan_pool *pool) { UsePool(pool); }

int64_t convscan_workspace_current(void) { return WorkspaceCurrent(); }
int64_t convscan_workspace_peak(void) { return WorkspacePeak(); }
int64_t convscan_tables_current(void) { return TablesCurrent(); }
void convscan_workspace_reset_peak(void) {
  // A loop would not do: one thread may take all of its iterations.
  OnEveryThread(ReleaseWorkspace);
  ResetWorkspacePeak();
}

void convscan_advise_huge_pages(void *address, size_t bytes) {
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = uintptr_t{4096};
  if (address == nullptr || bytes < size_t{2} << 20) return;
  const uintptr_t low = (reinterpret_cast<uintptr_t>(address) + kPage - 1) / kPage * kPage;
  const uintptr_t high = (reinterpret_cast<uintptr_t>(address) + bytes) / kPage * kPage;
  if (high > low) madvise(reinterpret_cast<void *>(low), high - low, MADV_HUGEPAGE);
#else
  (void)address;
  (void)bytes;
#endif
}

const char *convscan_status_message(convscan_status status) {
  switch (status) {
    case CONVSCAN_OK: return "ok";
    case CONVSCAN_OUT_OF_MEMORY: return "workspace could not be allocated";
    case CONVSCAN_INVALID_ARGUMENT:
      return "invalid argument: a null pointer, a bad size, or misaligned or overlapping memory";
    case CONVSCAN_UNSUPPORTED: return "this kernel does not run this dtype or these strides";
  }
  return "unknown status";
}

}  // extern "C"
