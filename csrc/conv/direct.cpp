// Direct convolution: the sum over taps, register-tiled.
#include "conv/long_filter.h"
#include "conv/short_filter.h"
#include "core/kernels.h"
#include "core/storage.h"

namespace convscan::CONVSCAN_ISA {

convscan_status ConvDirect(const convscan_conv &p) {
#if defined(CONVSCAN_RUNNER)  // no use for other numbers here, which would be half of this code
  if (p.dtype != CONVSCAN_FLOAT32) return CONVSCAN_UNSUPPORTED;
  return IsShort<float>(p) ? ConvShort<float>(p) : ConvLong<float>(p);
#else
  return WithRealStorage(p.dtype, [&](auto type) {
    using S = typename decltype(type)::Storage;
    return IsShort<S>(p) ? ConvShort<S>(p) : ConvLong<S>(p);
  });
#endif
}

}  // namespace convscan::CONVSCAN_ISA
