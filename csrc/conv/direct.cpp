// Direct convolution: the sum over taps, register-tiled.
#include "conv/long_filter.h"
#include "conv/short_filter.h"
#include "core/kernels.h"
#include "core/storage.h"

namespace convscan::CONVSCAN_ISA {

convscan_status ConvDirect(const convscan_conv &p) {
  return WithRealStorage(p.dtype, [&](auto type) {
    using S = typename decltype(type)::Storage;
    return p.taps <= kShortTaps ? ConvShort<S>(p) : ConvLong<S>(p);
  });
}

}  // namespace convscan::CONVSCAN_ISA
