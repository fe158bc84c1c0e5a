#include "core/kernels.h"
#include "core/vector.h"

namespace convscan::CONVSCAN_ISA {
convscan_status ConvToeplitz(const convscan_conv &) { return CONVSCAN_UNSUPPORTED; }

}  // namespace convscan::CONVSCAN_ISA
