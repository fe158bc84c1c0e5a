// Arrays as the checks of the C interface see them: where they reach, whether their elements share memory, and whether what
// is written could disturb what is read.
#pragma once

#include <stdint.h>

#include "convscan.h"

namespace convscan {

bool IsKnown(convscan_dtype dtype);
bool IsReal(convscan_dtype dtype);
bool IsComplex(convscan_dtype dtype);
int64_t ElementBytes(convscan_dtype dtype);
int64_t Alignment(convscan_dtype dtype);
int64_t ComputeBytes(convscan_dtype dtype);  // of a real number in arithmetic
bool IsKnown(convscan_spectrum_storage storage);

constexpr int64_t kSpectrumAlignment = 64;

// An array as the checks see it: address, element size, and up to five (size, stride) axes, the others of size 1.
constexpr int kAxes = 5;
struct Array {
  uintptr_t address;
  int64_t element;
  int64_t sizes[kAxes];
  int64_t strides[kAxes];

  // Byte distances of the lowest and one past the highest element; false when they overflow an address.
  bool Range(uintptr_t &low, uintptr_t &high) const {
    int64_t lowest = 0, highest = 0;
    for (int i = 0; i < kAxes; ++i) {
      int64_t reach;
      if (__builtin_mul_overflow(sizes[i] - 1, strides[i], &reach)) return false;
      if (__builtin_add_overflow(reach < 0 ? lowest : highest, reach, reach < 0 ? &lowest : &highest)) return false;
    }
    if (__builtin_add_overflow(highest, 1, &highest)) return false;
    if (__builtin_mul_overflow(lowest, element, &lowest)) return false;
    if (__builtin_mul_overflow(highest, element, &highest)) return false;
    low = address + static_cast<uintptr_t>(lowest);
    high = address + static_cast<uintptr_t>(highest);
    return (lowest == 0 || low < address) && high > address;
  }

  bool SameLayout(const Array &other) const {
    for (int i = 0; i < kAxes; ++i)
      if (sizes[i] != other.sizes[i] || (sizes[i] > 1 && strides[i] != other.strides[i])) return false;
    return element == other.element;
  }

  // Axes from the smallest stride up, as (size, |stride|); axes of one element are left out.
  int Nested(int64_t (&size)[kAxes], int64_t (&stride)[kAxes]) const {
    int count = 0;
    for (int i = 0; i < kAxes; ++i) {
      if (sizes[i] <= 1) continue;
      const int64_t s = strides[i] < 0 ? -strides[i] : strides[i];
      int at = count++;
      for (; at > 0 && stride[at - 1] > s; --at) {
        stride[at] = stride[at - 1];
        size[at] = size[at - 1];
      }
      stride[at] = s;
      size[at] = sizes[i];
    }
    return count;
  }

  // No two elements share memory: each axis steps over everything inside it.
  bool IsInjective() const {
    int64_t size[kAxes], stride[kAxes], span = 1;
    const int count = Nested(size, stride);
    for (int i = 0; i < count; ++i) {
      if (stride[i] < span) return false;
      span += (size[i] - 1) * stride[i];
    }
    return true;
  }
};

// Whether writing `out` could disturb `in`: exact aliasing is harmless when allowed, and views that interleave
// (halves of the channels of one array) do not touch.
bool Conflicts(const Array &out, const Array &in, bool may_alias);

bool IsValid(const Array &array, int64_t alignment);

Array View(const void *address, int64_t element, int64_t batch, int64_t time, int64_t channels,
           const convscan_strides &s);
Array Plane(const void *address, int64_t element, int64_t rows, int64_t columns, int64_t row_stride,
            int64_t column_stride);
Array Heads(const void *address, int64_t element, int64_t batch, int64_t length, int64_t heads, int64_t channels,
            const convscan_head_strides &s);

bool SizesAreValid(int64_t batch, int64_t length, int64_t channels, int threads);

// Boundaries of packed sequences: from 0 to the length, none below the one before it.
bool BoundariesAreValid(const int64_t *boundaries, int64_t sequences, int64_t length);

// Of sequences of heads, in groups, with states of keys x values.
template <class Problem>
bool HeadSizesAreValid(const Problem &p) {
  int64_t steps, state;
  return SizesAreValid(p.batch, p.length, p.heads, p.threads) && p.groups >= 0 &&
         (p.heads == 0 || (p.groups != 0 && p.heads % p.groups == 0)) && p.sequences >= 1 &&
         p.sequences <= int64_t{1} << 48 && !__builtin_mul_overflow(p.batch, p.length + p.sequences, &steps) &&
         SizesAreValid(steps, p.heads, p.keys, 0) && SizesAreValid(steps, p.heads, p.values, 0) &&
         !__builtin_mul_overflow(p.keys, p.values, &state) && SizesAreValid(p.batch * p.sequences, p.heads, state, 0) &&
         (p.boundaries == nullptr ? p.sequences == 1 : BoundariesAreValid(p.boundaries, p.sequences, p.length));
}

// The arrays that one problem reads and writes; those that are not given are left out.
struct Arrays {
  static constexpr int kMost = 16;
  Array items[kMost];
  int64_t alignments[kMost];
  int count = 0;

  void Add(const Array &array, int64_t alignment) {
    if (array.address == 0) return;
    items[count] = array;
    alignments[count++] = alignment;
  }
  bool AreValid() const {
    for (int i = 0; i < count; ++i)
      if (!IsValid(items[i], alignments[i])) return false;
    return true;
  }
};

// Whether every output has its own memory, which no input shares.
bool AreApart(const Arrays &in, const Arrays &out);

}  // namespace convscan
