#include "core/isa.h"

#include <string.h>

#include <atomic>

namespace convscan {

#define CONVSCAN_DECLARE(isa) \
  namespace isa {             \
  extern const Kernels kKernels; \
  }
// The build says which ones it has, CONVSCAN_HAS_<name>; they are tried from the plainest to the best.
#if defined(CONVSCAN_HAS_wide)
CONVSCAN_DECLARE(wide)
#endif
#if defined(CONVSCAN_HAS_baseline)
CONVSCAN_DECLARE(baseline)
#endif
#if defined(CONVSCAN_HAS_avx2)
CONVSCAN_DECLARE(avx2)
#endif
#if defined(CONVSCAN_HAS_avx512)
CONVSCAN_DECLARE(avx512)
#endif
#if defined(CONVSCAN_HAS_neon)
CONVSCAN_DECLARE(neon)
#endif

namespace {

struct Supported {
  const Kernels *tables[4];
  int count = 0;

  Supported() {
#if defined(CONVSCAN_HAS_wide)
    tables[count++] = &wide::kKernels;
#endif
#if defined(CONVSCAN_HAS_baseline)
    tables[count++] = &baseline::kKernels;
#endif
#if defined(__x86_64__)
    __builtin_cpu_init();
#endif
#if defined(CONVSCAN_HAS_avx2)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
      tables[count++] = &avx2::kKernels;
#endif
#if defined(CONVSCAN_HAS_avx512)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw"))
      tables[count++] = &avx512::kKernels;
#endif
#if defined(CONVSCAN_HAS_neon)
    tables[count++] = &neon::kKernels;
#endif
  }
};

const Supported &SupportedIsas() {
  static const Supported supported;
  return supported;
}

const Kernels *Find(const char *name) {
  for (int i = 0; i < IsaCount(); ++i)
    if (strcmp(IsaAt(i)->isa, name) == 0) return IsaAt(i);
  return nullptr;
}

std::atomic<const Kernels *> &Active() {
  static std::atomic<const Kernels *> active{IsaAt(IsaCount() - 1)};
  return active;
}

}  // namespace

int IsaCount() { return SupportedIsas().count; }
const Kernels *IsaAt(int index) {
  return index >= 0 && index < IsaCount() ? SupportedIsas().tables[index] : nullptr;
}
const Kernels &ActiveKernels() { return *Active().load(std::memory_order_relaxed); }
bool SetIsa(const char *name) {
  const Kernels *found = name == nullptr ? nullptr : Find(name);
  if (found != nullptr) Active().store(found, std::memory_order_relaxed);
  return found != nullptr;
}

}  // namespace convscan
