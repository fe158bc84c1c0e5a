// From a checked problem to the active instruction set's kernel.
#pragma once

#include "api/array.h"
#include "core/isa.h"

namespace convscan {

// Empty problems write nothing.
template <class Problem, class Kernel, class... Rest>
convscan_status Run(const Problem *problem, convscan_status status, bool (*is_empty)(const Problem &),
                    Kernel Kernels::*kernel, Rest... rest) {
  if (status != CONVSCAN_OK || is_empty(*problem)) return status;
  return (ActiveKernels().*kernel)(*problem, rest...);
}

}  // namespace convscan
