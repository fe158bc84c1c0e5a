#include "core/kernels.h"
#include "core/vector.h"

namespace convscan::CONVSCAN_ISA {
convscan_status ScanGradientSequential(const convscan_scan_gradient &) { return CONVSCAN_UNSUPPORTED; }

}  // namespace convscan::CONVSCAN_ISA
