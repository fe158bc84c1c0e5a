// Scratch memory of the kernels: one growing block per thread, reused by every call, counted to the byte.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace convscan {

// At least `bytes` of scratch of the calling thread, aligned to 4096 bytes, contents undefined; valid until the
// thread's next call of Workspace. Null when memory is exhausted (the caller reports CONVSCAN_OUT_OF_MEMORY).
// One block per thread: a task asks once, for all it needs.
void *Workspace(size_t bytes);

// Frees the calling thread's block.
void ReleaseWorkspace();

int64_t WorkspaceCurrent();
int64_t WorkspacePeak();
void ResetWorkspacePeak();

}  // namespace convscan
