#include "core/kernels.h"
#include "core/vector.h"

namespace convscan::CONVSCAN_ISA {
convscan_status FilterGradientDirect(const convscan_filter_gradient &) { return CONVSCAN_UNSUPPORTED; }

}  // namespace convscan::CONVSCAN_ISA
