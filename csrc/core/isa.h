// Which instruction sets this build has, which of them this processor runs, and which one is in use.
#pragma once

#include "core/kernels.h"

namespace convscan {

const Kernels &ActiveKernels();
int IsaCount();
const Kernels *IsaAt(int index);  // null out of range; the last one is the best
bool SetIsa(const char *name);

}  // namespace convscan
