#include "core/kernels.h"
#include "core/vector.h"

namespace convscan::CONVSCAN_ISA {
convscan_status ScanSequential(const convscan_scan &) { return CONVSCAN_UNSUPPORTED; }

}  // namespace convscan::CONVSCAN_ISA
