#include "core/kernels.h"
#include "core/vector.h"

namespace convscan::CONVSCAN_ISA {
convscan_status ConvFft(const convscan_conv &, int64_t) { return CONVSCAN_UNSUPPORTED; }
convscan_status FilterGradientFft(const convscan_filter_gradient &, int64_t) { return CONVSCAN_UNSUPPORTED; }
int64_t FftLength(int64_t, convscan_dtype) { return 0; }

}  // namespace convscan::CONVSCAN_ISA
