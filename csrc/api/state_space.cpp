// Filters of state-space layers: Vandermonde and Cauchy products.
#include "api/run.h"

using namespace convscan;

namespace {

convscan_status Check(const convscan_vandermonde *p) {
  if (p == nullptr || !SizesAreValid(p->rows, p->length, p->terms, p->threads) || p->order < 0 || !IsKnown(p->dtype) ||
      !IsKnown(p->a_dtype))
    return CONVSCAN_INVALID_ARGUMENT;
  if (!IsComplex(p->dtype) || !IsComplex(p->a_dtype)) return CONVSCAN_UNSUPPORTED;
  if (p->rows == 0 || p->length == 0) return CONVSCAN_OK;
  const int64_t element = ElementBytes(p->dtype), alignment = Alignment(p->dtype);
  const Array y = Plane(p->y, alignment, p->rows, p->length, p->y_row_stride, 1);
  if (!IsValid(y, alignment) || !y.IsInjective()) return CONVSCAN_INVALID_ARGUMENT;
  if (p->terms == 0) return CONVSCAN_OK;
  const Array c = Plane(p->c, element, p->rows, p->terms, p->c_row_stride, p->c_term_stride);
  const Array a = Plane(p->a, ElementBytes(p->a_dtype), p->rows, p->terms, p->a_row_stride, p->a_term_stride);
  if (!IsValid(c, alignment) || !IsValid(a, Alignment(p->a_dtype)) || Conflicts(y, c, false) || Conflicts(y, a, false))
    return CONVSCAN_INVALID_ARGUMENT;
  return CONVSCAN_OK;
}

convscan_status Check(const convscan_vandermonde_adjoint *p) {
  if (p == nullptr || !SizesAreValid(p->rows, p->length, p->terms, p->threads) || p->order < 0 || !IsKnown(p->dtype) ||
      !IsKnown(p->a_dtype))
    return CONVSCAN_INVALID_ARGUMENT;
  if (!IsComplex(p->dtype) || !IsComplex(p->a_dtype)) return CONVSCAN_UNSUPPORTED;
  if (p->rows == 0 || p->terms == 0) return CONVSCAN_OK;
  const int64_t element = ElementBytes(p->dtype), alignment = Alignment(p->dtype);
  const Array w = Plane(p->w, element, p->rows, p->terms, p->w_row_stride, 1);
  const Array a = Plane(p->a, ElementBytes(p->a_dtype), p->rows, p->terms, p->a_row_stride, p->a_term_stride);
  if (!IsValid(w, alignment) || !w.IsInjective() || !IsValid(a, Alignment(p->a_dtype)) || Conflicts(w, a, false))
    return CONVSCAN_INVALID_ARGUMENT;
  if (p->length == 0) return CONVSCAN_OK;
  const Array g = Plane(p->g, alignment, p->rows, p->length, p->g_row_stride, p->g_time_stride);
  return IsValid(g, alignment) && !Conflicts(w, g, false) ? CONVSCAN_OK : CONVSCAN_INVALID_ARGUMENT;
}

convscan_status Check(const convscan_cauchy *p) {
  if (p == nullptr || !SizesAreValid(p->rows, p->points, p->terms, p->threads) ||
      !SizesAreValid(p->sides, p->rows, p->points, 0) || !SizesAreValid(p->sides, p->rows, p->terms, 0) ||
      p->power < 1 || !IsKnown(p->dtype))
    return CONVSCAN_INVALID_ARGUMENT;
  if (!IsComplex(p->dtype)) return CONVSCAN_UNSUPPORTED;
  if (p->sides == 0 || p->rows == 0 || p->points == 0) return CONVSCAN_OK;
  const int64_t element = ElementBytes(p->dtype), alignment = Alignment(p->dtype);
  const Array k = View(p->k, element, p->sides, p->rows, p->points, {p->k_side_stride, p->k_row_stride, 1});
  const Array z = Plane(p->z, element, p->rows, p->points, p->z_row_stride, p->z_point_stride);
  if (!IsValid(k, alignment) || !k.IsInjective() || !IsValid(z, alignment) || Conflicts(k, z, false))
    return CONVSCAN_INVALID_ARGUMENT;
  if (p->terms == 0) return CONVSCAN_OK;
  const Array v =
      View(p->v, element, p->sides, p->rows, p->terms, {p->v_side_stride, p->v_row_stride, p->v_term_stride});
  const Array lambda = Plane(p->lambda, element, p->rows, p->terms, p->lambda_row_stride, p->lambda_term_stride);
  if (!IsValid(v, alignment) || !IsValid(lambda, alignment) || Conflicts(k, v, false) || Conflicts(k, lambda, false))
    return CONVSCAN_INVALID_ARGUMENT;
  return CONVSCAN_OK;
}

bool IsEmpty(const convscan_vandermonde &p) { return p.rows == 0 || p.length == 0; }
bool IsEmpty(const convscan_cauchy &p) { return p.sides == 0 || p.rows == 0 || p.points == 0; }
bool IsEmpty(const convscan_vandermonde_adjoint &p) { return p.rows == 0 || p.terms == 0; }

}  // namespace

extern "C" {

convscan_status convscan_vandermonde_product(const convscan_vandermonde *p) {
  return Run(p, Check(p), IsEmpty, &Kernels::vandermonde);
}
convscan_status convscan_vandermonde_adjoint_product(const convscan_vandermonde_adjoint *p) {
  return Run(p, Check(p), IsEmpty, &Kernels::vandermonde_adjoint);
}
convscan_status convscan_cauchy_product(const convscan_cauchy *p) { return Run(p, Check(p), IsEmpty, &Kernels::cauchy); }

}  // extern "C"
