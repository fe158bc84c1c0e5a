// Linear recurrences: of the first order, and all-pole filters.
#include "api/run.h"
#include "core/choose.h"

using namespace convscan;

namespace {

// An initial state, or the gradient of one, a state for each sequence.
Array States(const convscan_scan &p, const void *address, int64_t batch, int64_t sequence, int64_t channel) {
  return View(address, ElementBytes(p.dtype), p.batch, p.boundaries == nullptr ? 1 : p.sequences, p.channels,
              {batch, p.boundaries == nullptr ? 0 : sequence, channel});
}

convscan_status Check(const convscan_scan *p, bool reads_x) {
  if (p == nullptr || !SizesAreValid(p->batch, p->length, p->channels, p->threads) || !IsKnown(p->dtype) ||
      !BoundariesAreValid(p->boundaries, p->sequences, p->length))
    return CONVSCAN_INVALID_ARGUMENT;
  if (p->batch == 0 || p->length == 0 || p->channels == 0) return CONVSCAN_OK;
  const int64_t element = ElementBytes(p->dtype), alignment = Alignment(p->dtype);
  const Array a = View(p->a, element, p->batch, p->length, p->channels, p->a_strides);
  const Array y = View(p->y, element, p->batch, p->length, p->channels, p->y_strides);
  if (!IsValid(a, alignment) || !IsValid(y, alignment)) return CONVSCAN_INVALID_ARGUMENT;
  if (p->y_init != nullptr) {
    const Array y_init =
        States(*p, p->y_init, p->y_init_batch_stride, p->y_init_sequence_stride, p->y_init_channel_stride);
    if (!IsValid(y_init, alignment) || (reads_x && Conflicts(y, y_init, false))) return CONVSCAN_INVALID_ARGUMENT;
  }
  if (!reads_x) return CONVSCAN_OK;
  const Array x = View(p->x, element, p->batch, p->length, p->channels, p->x_strides);
  if (!IsValid(x, alignment) || !y.IsInjective() || Conflicts(y, x, true) || Conflicts(y, a, false))
    return CONVSCAN_INVALID_ARGUMENT;
  if (p->boundaries != nullptr && Conflicts(y, Plane(p->boundaries, 8, 1, p->sequences + 1, 0, 1), false))
    return CONVSCAN_INVALID_ARGUMENT;
  return CONVSCAN_OK;
}

convscan_status Check(const convscan_scan_gradient *p) {
  if (p == nullptr) return CONVSCAN_INVALID_ARGUMENT;
  const convscan_scan &f = p->forward;
  const convscan_status status = Check(&f, false);
  if (status != CONVSCAN_OK) return status;
  if (f.batch == 0 || f.length == 0 || f.channels == 0) return CONVSCAN_OK;
  const int64_t element = ElementBytes(f.dtype), alignment = Alignment(f.dtype);
  const Array a = View(f.a, element, f.batch, f.length, f.channels, f.a_strides);
  const Array y = View(f.y, element, f.batch, f.length, f.channels, f.y_strides);
  const Array dy = View(p->dy, element, f.batch, f.length, f.channels, p->dy_strides);
  const Array dx = View(p->dx, element, f.batch, f.length, f.channels, p->dx_strides);
  if (!IsValid(dy, alignment) || !IsValid(dx, alignment) || !dx.IsInjective()) return CONVSCAN_INVALID_ARGUMENT;
  if (Conflicts(dx, dy, true) || Conflicts(dx, a, false) || Conflicts(dx, y, false)) return CONVSCAN_INVALID_ARGUMENT;
  const Array y_init =
      States(f, f.y_init, f.y_init_batch_stride, f.y_init_sequence_stride, f.y_init_channel_stride);
  const Array boundaries = Plane(f.boundaries, 8, 1, f.sequences + 1, 0, 1);
  const auto disturbs_inputs = [&](const Array &out) {
    return Conflicts(out, dy, false) || Conflicts(out, a, false) || Conflicts(out, y, false) ||
           (f.y_init != nullptr && Conflicts(out, y_init, false)) ||
           (f.boundaries != nullptr && Conflicts(out, boundaries, false));
  };
  if (f.boundaries != nullptr && Conflicts(dx, boundaries, false)) return CONVSCAN_INVALID_ARGUMENT;
  if (f.y_init != nullptr && Conflicts(dx, y_init, false)) return CONVSCAN_INVALID_ARGUMENT;
  const auto extent = [](int64_t size, int64_t stride) { return stride == 0 ? 1 : size; };
  const Array da = View(p->da, element, extent(f.batch, p->da_strides.batch), extent(f.length, p->da_strides.time),
                        extent(f.channels, p->da_strides.channel), p->da_strides);
  if (p->da != nullptr &&
      (!IsValid(da, alignment) || !da.IsInjective() || disturbs_inputs(da) || Conflicts(da, dx, false)))
    return CONVSCAN_INVALID_ARGUMENT;
  if (p->dy_init != nullptr) {
    const Array dy_init =
        States(f, p->dy_init, p->dy_init_batch_stride, p->dy_init_sequence_stride, p->dy_init_channel_stride);
    if (!IsValid(dy_init, alignment) || !dy_init.IsInjective() || disturbs_inputs(dy_init) ||
        Conflicts(dy_init, dx, false) || (p->da != nullptr && Conflicts(dy_init, da, false)))
      return CONVSCAN_INVALID_ARGUMENT;
  }
  return CONVSCAN_OK;
}

convscan_status Check(const convscan_allpole *p) {
  if (p == nullptr || !SizesAreValid(p->batch, p->length, p->channels, p->threads) || !IsKnown(p->dtype) ||
      p->order < 1 || p->order > 1024)
    return CONVSCAN_INVALID_ARGUMENT;
  if (!IsReal(p->dtype)) return CONVSCAN_UNSUPPORTED;
  if (p->batch == 0 || p->length == 0 || p->channels == 0) return CONVSCAN_OK;
  const int64_t element = ElementBytes(p->dtype);
  const Array x = View(p->x, element, p->batch, p->length, p->channels, p->x_strides);
  const Array y = View(p->y, element, p->batch, p->length, p->channels, p->y_strides);
  if (!IsValid(x, element) || !IsValid(y, element)) return CONVSCAN_INVALID_ARGUMENT;
  if (!y.IsInjective() || Conflicts(y, x, true)) return CONVSCAN_INVALID_ARGUMENT;
  if (p->state != nullptr) {
    const Array state = View(p->state, element, p->batch, p->order, p->channels, p->state_strides);
    if (p->transposed || !IsValid(state, element) || Conflicts(y, state, false)) return CONVSCAN_INVALID_ARGUMENT;
  }
  for (int64_t k = 0; k < p->order; ++k) {
    int64_t offset;
    if (__builtin_mul_overflow(k * element, p->a_order_stride, &offset)) return CONVSCAN_INVALID_ARGUMENT;
    const Array a = View(static_cast<const char *>(p->a) + offset, element, p->batch, p->length, p->channels,
                         p->a_strides);
    if (p->a == nullptr || !IsValid(a, element) || Conflicts(y, a, false)) return CONVSCAN_INVALID_ARGUMENT;
  }
  return CONVSCAN_OK;
}

bool IsEmpty(const convscan_scan &p) { return p.batch == 0 || p.length == 0 || p.channels == 0; }
bool IsEmpty(const convscan_scan_gradient &p) { return p.forward.batch == 0 || p.forward.channels == 0; }
bool IsEmpty(const convscan_allpole &p) { return p.batch == 0 || p.length == 0 || p.channels == 0; }

}  // namespace

extern "C" {

convscan_status convscan_scan_sequential(const convscan_scan *p) {
  return Run(p, Check(p, true), IsEmpty, &Kernels::scan_sequential);
}
convscan_status convscan_scan_tiled(const convscan_scan *p) { return Run(p, Check(p, true), IsEmpty, &Kernels::scan_tiled); }
convscan_status convscan_scan_parallel(const convscan_scan *p) {
  return Run(p, Check(p, true), IsEmpty, &Kernels::scan_parallel);
}
convscan_status convscan_scan_auto(const convscan_scan *p) {
  const convscan_status status = Check(p, true);
  if (status != CONVSCAN_OK) return status;
  switch (ChooseScan(*p, convscan_isa())) {
    case ScanMethod::kSequential: return convscan_scan_sequential(p);
    case ScanMethod::kTiled: return convscan_scan_tiled(p);
    case ScanMethod::kParallel: break;
  }
  return convscan_scan_parallel(p);
}
convscan_status convscan_scan_gradient_sequential(const convscan_scan_gradient *p) {
  return Run(p, Check(p), IsEmpty, &Kernels::scan_gradient_sequential);
}
convscan_status convscan_allpole_filter(const convscan_allpole *p) { return Run(p, Check(p), IsEmpty, &Kernels::allpole); }

}  // extern "C"
