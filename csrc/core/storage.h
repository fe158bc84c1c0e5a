// Calls a kernel template with the storage type a dtype names.
#pragma once

#include "convscan.h"
#include "core/vector.h"

namespace convscan::CONVSCAN_ISA {

template <class T>
struct Type {
  using Storage = T;
};

// function(Type<S>{}) for the real dtypes.
template <class Function>
CONVSCAN_INLINE convscan_status WithRealStorage(convscan_dtype dtype, const Function &function) {
  switch (dtype) {
    case CONVSCAN_FLOAT32: return function(Type<float>{});
#if !defined(CONVSCAN_FLOAT32_ONLY)
    case CONVSCAN_FLOAT64: return function(Type<double>{});
    case CONVSCAN_BFLOAT16: return function(Type<BFloat16>{});
    case CONVSCAN_FLOAT16: return function(Type<Float16>{});
#endif
    case CONVSCAN_WIDE_FLOAT32: return function(Type<WideFloat32>{});
    default: return CONVSCAN_UNSUPPORTED;
  }
}

}  // namespace convscan::CONVSCAN_ISA
