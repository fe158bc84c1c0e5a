#include "api/array.h"

namespace convscan {

int64_t ElementBytes(convscan_dtype dtype) {
  switch (dtype) {
    case CONVSCAN_FLOAT32:
    case CONVSCAN_WIDE_FLOAT32: return 4;
    case CONVSCAN_FLOAT64: return 8;
    case CONVSCAN_BFLOAT16:
    case CONVSCAN_FLOAT16: return 2;
    case CONVSCAN_COMPLEX64: return 8;
    case CONVSCAN_COMPLEX128: return 16;
  }
  return 0;
}

bool IsComplex(convscan_dtype dtype) { return dtype == CONVSCAN_COMPLEX64 || dtype == CONVSCAN_COMPLEX128; }

int64_t Alignment(convscan_dtype dtype) {
  return IsComplex(dtype) ? ElementBytes(dtype) / 2 : ElementBytes(dtype);
}

bool IsReal(convscan_dtype dtype) {
  return (dtype >= CONVSCAN_FLOAT32 && dtype <= CONVSCAN_FLOAT16) || dtype == CONVSCAN_WIDE_FLOAT32;
}

int64_t ComputeBytes(convscan_dtype dtype) {
  return dtype == CONVSCAN_FLOAT64 || dtype == CONVSCAN_WIDE_FLOAT32 ? 8 : 4;
}
bool IsKnown(convscan_dtype dtype) {
#if defined(CONVSCAN_FLOAT32_ONLY)
  return dtype == CONVSCAN_FLOAT32 || dtype == CONVSCAN_WIDE_FLOAT32;
#else
  return dtype >= CONVSCAN_FLOAT32 && dtype <= CONVSCAN_WIDE_FLOAT32;
#endif
}
bool IsKnown(convscan_spectrum_storage storage) {
  return storage == CONVSCAN_SPECTRUM_FULL || storage == CONVSCAN_SPECTRUM_BFLOAT16;
}

bool Conflicts(const Array &out, const Array &in, bool may_alias) {
  uintptr_t out_low, out_high, in_low, in_high;
  if (!out.Range(out_low, out_high) || !in.Range(in_low, in_high)) return true;
  if (out_high <= in_low || in_high <= out_low) return false;
  if (!out.SameLayout(in)) return true;
  if (out.address == in.address) return !may_alias;
  const int64_t difference = static_cast<int64_t>(out.address) - static_cast<int64_t>(in.address);
  if (difference % out.element != 0) return true;
  int64_t size[kAxes], stride[kAxes], span = 1;
  const int count = out.Nested(size, stride);
  for (int i = 0; i < count; ++i) {
    const int64_t offset = ((difference / out.element) % stride[i] + stride[i]) % stride[i];
    if (offset >= span && stride[i] - offset >= span) return false;
    span += (size[i] - 1) * stride[i];
  }
  return true;
}

bool IsValid(const Array &array, int64_t alignment) {
  uintptr_t low, high;
  return array.address != 0 && array.address % static_cast<uintptr_t>(alignment) == 0 && array.Range(low, high);
}

Array View(const void *address, int64_t element, int64_t batch, int64_t time, int64_t channels,
           const convscan_strides &s) {
  return {reinterpret_cast<uintptr_t>(address), element, {batch, time, channels, 1, 1}, {s.batch, s.time, s.channel}};
}
Array Plane(const void *address, int64_t element, int64_t rows, int64_t columns, int64_t row_stride,
            int64_t column_stride) {
  return {reinterpret_cast<uintptr_t>(address), element, {1, rows, columns, 1, 1}, {0, row_stride, column_stride}};
}
Array Heads(const void *address, int64_t element, int64_t batch, int64_t length, int64_t heads, int64_t channels,
            const convscan_head_strides &s) {
  return {reinterpret_cast<uintptr_t>(address),
          element,
          {batch, length, heads, channels, 1},
          {s.batch, s.time, s.head, s.channel}};
}

bool SizesAreValid(int64_t batch, int64_t length, int64_t channels, int threads) {
  constexpr int64_t kLargest = int64_t{1} << 48;  // far above memory, far below overflow of a product with a few bytes
  int64_t elements;
  return batch >= 0 && length >= 0 && channels >= 0 && threads >= 0 && batch <= kLargest && length <= kLargest &&
         channels <= kLargest && !__builtin_mul_overflow(batch, length, &elements) &&
         !__builtin_mul_overflow(elements, channels, &elements) && elements <= kLargest;
}

bool BoundariesAreValid(const int64_t *boundaries, int64_t sequences, int64_t length) {
  if (boundaries == nullptr) return true;
  if (sequences < 1 || sequences >= int64_t{1} << 48 || !IsValid(Plane(boundaries, 8, 1, sequences + 1, 0, 1), 8) ||
      boundaries[0] != 0)
    return false;
  for (int64_t s = 0; s < sequences; ++s)
    if (boundaries[s + 1] < boundaries[s]) return false;
  return boundaries[sequences] == length;
}

bool AreApart(const Arrays &in, const Arrays &out) {
  for (int i = 0; i < out.count; ++i) {
    if (!out.items[i].IsInjective()) return false;
    for (int j = 0; j < in.count; ++j)
      if (Conflicts(out.items[i], in.items[j], false)) return false;
    for (int j = 0; j < i; ++j)
      if (Conflicts(out.items[i], out.items[j], false)) return false;
  }
  return true;
}

}  // namespace convscan
