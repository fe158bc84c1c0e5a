// The C interface: every argument is checked here, once; the kernels behind it trust what they get.
#include "convscan.h"

#include <sys/mman.h>

#include <new>

#include "core/choose.h"
#include "core/isa.h"
#include "core/parallel.h"
#include "core/tables.h"
#include "core/workspace.h"

using namespace convscan;

namespace {

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
// Of a real number in arithmetic.
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

// Boundaries of packed sequences: from 0 to the length, none below the one before it.
bool BoundariesAreValid(const int64_t *boundaries, int64_t sequences, int64_t length) {
  if (boundaries == nullptr) return true;
  if (sequences < 1 || sequences >= int64_t{1} << 48 || !IsValid(Plane(boundaries, 8, 1, sequences + 1, 0, 1), 8) ||
      boundaries[0] != 0)
    return false;
  for (int64_t s = 0; s < sequences; ++s)
    if (boundaries[s + 1] < boundaries[s]) return false;
  return boundaries[sequences] == length;
}

// States of all sequences of a convolution that writes `out`.
bool StatesAreValid(const void *state, int64_t element, int64_t batch, int64_t steps, int64_t channels,
                    const convscan_strides &strides, int64_t sequences, int64_t sequence_stride, const Array &out) {
  Array one = View(state, element, batch, steps, channels, strides);
  int64_t step;
  if (__builtin_mul_overflow(sequence_stride, element, &step)) return false;
  for (int64_t s = 0; s < sequences; ++s, one.address += static_cast<uintptr_t>(step))
    if (!IsValid(one, element) || Conflicts(out, one, false)) return false;
  return true;
}

int64_t FilterCount(const convscan_conv &p) {
  return p.filter_group > 1 ? (p.channels - 1) / p.filter_group + 1 : p.channels;
}

// `spectra`: whether they stand in for h, which is then not read.
convscan_status Check(const convscan_conv *p, bool spectra = false) {
  if (p == nullptr || !SizesAreValid(p->batch, p->length, p->channels, p->threads)) return CONVSCAN_INVALID_ARGUMENT;
  if (p->taps < 1 || p->taps > int64_t{1} << 48 || p->origin < 0 || p->origin >= p->taps || p->filter_group < 0 ||
      !BoundariesAreValid(p->boundaries, p->sequences, p->length))
    return CONVSCAN_INVALID_ARGUMENT;
  if (!IsKnown(p->dtype) || p->activation < CONVSCAN_IDENTITY || p->activation > CONVSCAN_GELU)
    return CONVSCAN_INVALID_ARGUMENT;
  if (!IsReal(p->dtype)) return CONVSCAN_UNSUPPORTED;
  if (p->batch == 0 || p->length == 0 || p->channels == 0) return CONVSCAN_OK;
  const int64_t element = ElementBytes(p->dtype);
  const Array x = View(p->x, element, p->batch, p->length, p->channels, p->x_strides);
  const Array y = View(p->y, element, p->batch, p->length, p->channels, p->y_strides);
  if (!IsValid(x, element) || !IsValid(y, element)) return CONVSCAN_INVALID_ARGUMENT;
  if (!y.IsInjective() || Conflicts(y, x, true)) return CONVSCAN_INVALID_ARGUMENT;
  if (!spectra) {
    const Array h = View(p->h, element, p->batch, p->taps, FilterCount(*p),
                         {p->h_batch_stride, p->h_tap_stride, p->h_channel_stride});
    if (!IsValid(h, element) || Conflicts(y, h, false)) return CONVSCAN_INVALID_ARGUMENT;
  }
  if (p->bias != nullptr) {
    const Array bias = Plane(p->bias, element, p->batch, p->channels, p->bias_batch_stride, p->bias_stride);
    if (!IsValid(bias, element) || Conflicts(y, bias, false)) return CONVSCAN_INVALID_ARGUMENT;
  }
  const auto gate_is_valid = [&](const void *address, const convscan_strides &strides) {
    const Array gate = View(address, element, p->batch, p->length, p->channels, strides);
    return address == nullptr || (IsValid(gate, element) && !Conflicts(y, gate, false));
  };
  if (!gate_is_valid(p->pre_gate, p->pre_gate_strides) || !gate_is_valid(p->post_gate, p->post_gate_strides))
    return CONVSCAN_INVALID_ARGUMENT;
  if (p->state != nullptr && p->taps > 1 &&
      (p->origin != 0 || !StatesAreValid(p->state, element, p->batch, p->taps - 1, p->channels, p->state_strides,
                                         p->boundaries == nullptr ? 1 : p->sequences, p->state_sequence_stride, y)))
    return CONVSCAN_INVALID_ARGUMENT;
  return CONVSCAN_OK;
}

bool IsKnown(convscan_spectrum_storage storage) {
  return storage == CONVSCAN_SPECTRUM_FULL || storage == CONVSCAN_SPECTRUM_BFLOAT16;
}

convscan_status CheckKept(const convscan_conv *p, int64_t transform_length, const void *spectra,
                          convscan_spectrum_storage storage) {
  const convscan_status status = Check(p, true);
  if (status != CONVSCAN_OK) return status;
  if (!IsKnown(storage) || (p->origin != 0 && p->origin != p->taps - 1)) return CONVSCAN_INVALID_ARGUMENT;
  if (p->boundaries != nullptr || p->h_batch_stride != 0) return CONVSCAN_UNSUPPORTED;
  const int64_t bytes = convscan_spectrum_bytes(transform_length, p->dtype, storage);
  if (bytes == 0) return CONVSCAN_UNSUPPORTED;
  if (p->batch == 0 || p->length == 0 || p->channels == 0) return CONVSCAN_OK;
  const Array all = Plane(spectra, bytes, 1, FilterCount(*p), 0, p->h_channel_stride == 0 ? 0 : 1);
  const Array y = View(p->y, ElementBytes(p->dtype), p->batch, p->length, p->channels, p->y_strides);
  return IsValid(all, kSpectrumAlignment) && !Conflicts(y, all, false) ? CONVSCAN_OK : CONVSCAN_INVALID_ARGUMENT;
}

convscan_status Check(const convscan_spectrum *p) {
  if (p == nullptr || !SizesAreValid(1, p->taps, p->filters, p->threads) || p->taps < 1 || !IsKnown(p->dtype) ||
      !IsKnown(p->storage))
    return CONVSCAN_INVALID_ARGUMENT;
  if (!IsReal(p->dtype)) return CONVSCAN_UNSUPPORTED;
  const int64_t bytes = convscan_spectrum_bytes(p->transform_length, p->dtype, p->storage);
  if (bytes == 0) return CONVSCAN_UNSUPPORTED;
  if (2 * p->transform_length < p->taps) return CONVSCAN_INVALID_ARGUMENT;
  if (p->filters == 0) return CONVSCAN_OK;
  const int64_t element = ElementBytes(p->dtype);
  const Array h = Plane(p->h, element, p->taps, p->filters, p->h_tap_stride, p->h_filter_stride);
  const Array spectra = Plane(p->spectra, bytes, 1, p->filters, 0, 1);
  if (!IsValid(h, element) || !IsValid(spectra, kSpectrumAlignment) || Conflicts(spectra, h, false))
    return CONVSCAN_INVALID_ARGUMENT;
  if (p->keep == nullptr) return CONVSCAN_OK;
  const Array keep = Plane(p->keep, 1, 1, p->transform_length, 0, 1);
  const Array pattern = Plane(p->pattern, convscan_pattern_bytes(p->transform_length, p->dtype), 1, 1, 0, 1);
  const bool is_apart = !Conflicts(pattern, spectra, false) && !Conflicts(pattern, h, false) &&
                        !Conflicts(pattern, keep, false) && !Conflicts(spectra, keep, false);
  return IsValid(pattern, kSpectrumAlignment) && is_apart ? CONVSCAN_OK : CONVSCAN_INVALID_ARGUMENT;
}

bool IsEmpty(const convscan_filter_gradient &p) {
  return p.channels == 0 || (p.dh_batch_stride != 0 && p.batch == 0);
}

convscan_status Check(const convscan_filter_gradient *p, bool needs_dh = true) {
  if (p == nullptr || !SizesAreValid(p->batch, p->length, p->channels, p->threads)) return CONVSCAN_INVALID_ARGUMENT;
  if (p->taps < 1 || p->taps > int64_t{1} << 48 || p->origin < 0 || p->origin >= p->taps || !IsKnown(p->dtype) ||
      !BoundariesAreValid(p->boundaries, p->sequences, p->length))
    return CONVSCAN_INVALID_ARGUMENT;
  if (!IsReal(p->dtype)) return CONVSCAN_UNSUPPORTED;
  if (IsEmpty(*p)) return CONVSCAN_OK;
  const int64_t element = ElementBytes(p->dtype);
  const int64_t gradient = ComputeBytes(p->dtype);
  const Array dh = View(p->dh, gradient, p->dh_batch_stride == 0 ? 1 : p->batch, p->taps, p->channels,
                        {p->dh_batch_stride, p->dh_tap_stride, p->dh_channel_stride});
  if (needs_dh && (!IsValid(dh, gradient) || !dh.IsInjective())) return CONVSCAN_INVALID_ARGUMENT;
  if (p->batch == 0 || p->length == 0) return CONVSCAN_OK;
  const Array x = View(p->x, element, p->batch, p->length, p->channels, p->x_strides);
  const Array dz = View(p->dz, element, p->batch, p->length, p->channels, p->dz_strides);
  if (!IsValid(x, element) || !IsValid(dz, element)) return CONVSCAN_INVALID_ARGUMENT;
  if (Conflicts(dh, x, false) || Conflicts(dh, dz, false)) return CONVSCAN_INVALID_ARGUMENT;
  const auto gate_is_valid = [&](const void *address, const convscan_strides &strides) {
    const Array gate = View(address, element, p->batch, p->length, p->channels, strides);
    return address == nullptr || (IsValid(gate, element) && !Conflicts(dh, gate, false));
  };
  if (!gate_is_valid(p->x_gate, p->x_gate_strides) || !gate_is_valid(p->dz_gate, p->dz_gate_strides))
    return CONVSCAN_INVALID_ARGUMENT;
  if (p->state != nullptr && p->taps > 1 &&
      (p->origin != 0 || !StatesAreValid(p->state, element, p->batch, p->taps - 1, p->channels, p->state_strides,
                                         p->boundaries == nullptr ? 1 : p->sequences, p->state_sequence_stride, dh)))
    return CONVSCAN_INVALID_ARGUMENT;
  return CONVSCAN_OK;
}

// An initial state, or the gradient of one, a state for each sequence.
Array States(const convscan_scan &p, const void *address, int64_t batch, int64_t sequence, int64_t channel) {
  return View(address, ElementBytes(p.dtype), p.batch, p.boundaries == nullptr ? 1 : p.sequences, p.channels,
              {batch, p.boundaries == nullptr ? 0 : sequence, channel});
}

convscan_status Check(const convscan_conv_gradient *p, int64_t transform_length) {
  if (p == nullptr || !IsKnown(p->storage) || p->activation < CONVSCAN_IDENTITY || p->activation > CONVSCAN_GELU ||
      p->filter_group < 0)
    return CONVSCAN_INVALID_ARGUMENT;
  const convscan_filter_gradient &f = p->filter;
  const convscan_status status = Check(&f, f.dh != nullptr);
  if (status != CONVSCAN_OK) return status;
  const bool is_kept = p->spectra != nullptr;
  const int64_t bytes = is_kept ? convscan_spectrum_bytes(transform_length, f.dtype, p->storage) : 0;
  if (is_kept && bytes == 0) return CONVSCAN_UNSUPPORTED;
  if (f.batch == 0 || f.length == 0 || f.channels == 0 || f.dh_batch_stride != 0 || (is_kept && f.origin != 0))
    return CONVSCAN_UNSUPPORTED;
  const int64_t element = ElementBytes(f.dtype), gradient = ComputeBytes(f.dtype);
  const int64_t filters = p->filter_group > 1 ? (f.channels - 1) / p->filter_group + 1 : f.channels;
  const auto signal = [&](const void *address, const convscan_strides &strides) {
    return View(address, element, f.batch, f.length, f.channels, strides);
  };
  const Array h = is_kept ? Plane(p->spectra, bytes, 1, filters, 0, p->h_channel_stride == 0 ? 0 : 1)
                          : Plane(p->h, element, f.taps, filters, p->h_tap_stride, p->h_channel_stride);
  if (!IsValid(h, is_kept ? kSpectrumAlignment : element)) return CONVSCAN_INVALID_ARGUMENT;
  const Array bias = Plane(p->bias, element, 1, f.channels, 0, p->bias_stride);
  if (p->bias != nullptr && !IsValid(bias, element)) return CONVSCAN_INVALID_ARGUMENT;

  const auto states = [&](const void *address, const convscan_strides &strides, int64_t sequence_stride) {
    return Array{reinterpret_cast<uintptr_t>(address),
                 element,
                 {f.batch, f.boundaries == nullptr ? 1 : f.sequences, f.taps - 1, f.channels, 1},
                 {strides.batch, sequence_stride, strides.time, strides.channel}};
  };
  if (p->dstate != nullptr && f.origin != 0) return CONVSCAN_INVALID_ARGUMENT;

  // What is written is apart from everything else; but dx may be the gradient of y where no other gradient reads that.
  struct Output {
    const void *address;
    Array array;
    int64_t alignment;
  };
  const Output outputs[] = {
      {p->dx, signal(p->dx, p->dx_strides), element},
      {p->dpre_gate, signal(p->dpre_gate, p->dpre_gate_strides), element},
      {p->dpost_gate, signal(p->dpost_gate, p->dpost_gate_strides), element},
      {f.taps > 1 ? p->dstate : nullptr, states(p->dstate, p->dstate_strides, p->dstate_sequence_stride), element},
      {p->dbias, Plane(p->dbias, gradient, 1, f.channels, 0, p->dbias_stride), gradient},
      {f.dh, Plane(f.dh, gradient, f.taps, f.channels, f.dh_tap_stride, f.dh_channel_stride), gradient},
  };
  const Output inputs[] = {
      {f.x, signal(f.x, f.x_strides), 1},
      {f.x_gate, signal(f.x_gate, f.x_gate_strides), 1},
      {f.dz_gate, signal(f.dz_gate, f.dz_gate_strides), 1},
      {f.taps > 1 ? f.state : nullptr, states(f.state, f.state_strides, f.state_sequence_stride), 1},
      {p->bias, bias, 1},
      {f.boundaries, Plane(f.boundaries, 8, 1, f.sequences + 1, 0, 1), 1},
      {is_kept ? p->spectra : p->h, h, 1},
  };
  const bool may_alias = p->dpre_gate == nullptr && p->dpost_gate == nullptr && p->dbias == nullptr;
  const Array dy = signal(f.dz, f.dz_strides);
  for (const Output &out : outputs) {
    if (out.address == nullptr) continue;
    if (!IsValid(out.array, out.alignment) || !out.array.IsInjective() ||
        Conflicts(out.array, dy, out.address == p->dx && may_alias))
      return CONVSCAN_INVALID_ARGUMENT;
    for (const Output &in : inputs)
      if (in.address != nullptr && Conflicts(out.array, in.array, false)) return CONVSCAN_INVALID_ARGUMENT;
    for (const Output &other : outputs)
      if (&other != &out && other.address != nullptr && Conflicts(out.array, other.array, false))
        return CONVSCAN_INVALID_ARGUMENT;
  }
  return CONVSCAN_OK;
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

// The bytes between the lowest and the highest element of an array with one more axis than Array has.
struct Extent {
  bool is_valid;
  uintptr_t low, high;

  Extent(const Array &array, int64_t size, int64_t stride, int64_t alignment) {
    Array axis = array;
    for (int i = 0; i < 3; ++i) axis.sizes[i] = 1, axis.strides[i] = 0;
    axis.sizes[2] = size;
    axis.strides[2] = stride;
    uintptr_t axis_low, axis_high;
    is_valid = IsValid(array, alignment) && array.Range(low, high) && axis.Range(axis_low, axis_high);
    if (!is_valid) return;
    const uintptr_t below = array.address - axis_low;
    const uintptr_t above = axis_high - array.address - static_cast<uintptr_t>(array.element);
    is_valid = low >= below && high + above >= high;
    low -= below;
    high += above;
  }
};

// States of all sequences.
Array StatesOf(const convscan_selective &p, const convscan_states &states, int64_t element) {
  Array array = View(states.data, element, p.batch, p.channels, p.states, {states.batch, states.channel, states.state});
  array.sizes[3] = p.sequences;
  array.strides[3] = p.boundaries == nullptr ? 0 : states.sequence;
  return array;
}

convscan_status Check(const convscan_selective *p) {
  if (p == nullptr || !SizesAreValid(p->batch, p->length, p->channels, p->threads) ||
      !SizesAreValid(p->batch, p->states, p->channels, 0) || p->groups < 1 || p->channels % p->groups != 0 ||
      !IsKnown(p->dtype))
    return CONVSCAN_INVALID_ARGUMENT;
  int64_t states;
  if (p->boundaries == nullptr ? p->sequences != 1 : !BoundariesAreValid(p->boundaries, p->sequences, p->length))
    return CONVSCAN_INVALID_ARGUMENT;
  if (__builtin_mul_overflow(p->batch, p->sequences, &states) || !SizesAreValid(states, p->states, p->channels, 0))
    return CONVSCAN_INVALID_ARGUMENT;
  if (!IsReal(p->dtype)) return CONVSCAN_UNSUPPORTED;
  if (p->batch == 0 || p->channels == 0) return CONVSCAN_OK;
  const int64_t element = ElementBytes(p->dtype), part = p->dtype == CONVSCAN_FLOAT64 ? 8 : 4;
  const int64_t number = p->is_complex ? 2 * part : part;
  const auto signal = [&](const void *address, const convscan_strides &strides) {
    return View(address, element, p->batch, p->length, p->channels, strides);
  };
  const Array a = View(p->a.data, number, 1, p->channels, p->states, {0, p->a.channel, p->a.state});
  const Array final_state = StatesOf(*p, p->final_state, number), initial = StatesOf(*p, p->initial_state, number);
  const bool has_states = p->states > 0, has_final = has_states && p->final_state.data != nullptr;
  const bool has_initial = has_states && p->initial_state.data != nullptr;
  if (has_states && !IsValid(a, part)) return CONVSCAN_INVALID_ARGUMENT;
  if (has_initial && !IsValid(initial, part)) return CONVSCAN_INVALID_ARGUMENT;
  if (has_final && (!IsValid(final_state, part) || !final_state.IsInjective() || Conflicts(final_state, a, false) ||
                    (has_initial && Conflicts(final_state, initial, true))))
    return CONVSCAN_INVALID_ARGUMENT;
  if (p->length == 0) return CONVSCAN_OK;
  const Array u = signal(p->u, p->u_strides), delta = signal(p->delta, p->delta_strides);
  const Array y = signal(p->y, p->y_strides), z = signal(p->z, p->z_strides);
  if (!IsValid(u, element) || !IsValid(delta, element) || !IsValid(y, element) || !y.IsInjective() ||
      (p->z != nullptr && !IsValid(z, element)))
    return CONVSCAN_INVALID_ARGUMENT;
  const Array d = Plane(p->d, part, 1, p->channels, 0, p->d_stride);
  const Array bias = Plane(p->delta_bias, part, 1, p->channels, 0, p->delta_bias_stride);
  if ((p->d != nullptr && !IsValid(d, part)) || (p->delta_bias != nullptr && !IsValid(bias, part)))
    return CONVSCAN_INVALID_ARGUMENT;
  const int64_t kept = convscan_selective_checkpoints(p->length, p->sequences);
  const int64_t row = p->channels * p->states * number / part;
  const Array checkpoints = View(p->checkpoints, part, p->batch, kept, row, {kept * row, row, 1});
  const bool has_checkpoints = has_states && p->checkpoints != nullptr;
  if (has_checkpoints && !IsValid(checkpoints, part)) return CONVSCAN_INVALID_ARGUMENT;
  // y and the states are written while inputs are read.
  const auto disturbs = [&](const Array &out) {
    return Conflicts(out, u, false) || Conflicts(out, delta, false) || (has_states && Conflicts(out, a, false)) ||
           (p->z != nullptr && Conflicts(out, z, false)) || (p->d != nullptr && Conflicts(out, d, false)) ||
           (p->delta_bias != nullptr && Conflicts(out, bias, false));
  };
  if (disturbs(y) || (has_final && disturbs(final_state)) || (has_checkpoints && disturbs(checkpoints)) ||
      (has_final && Conflicts(y, final_state, false)) || (has_initial && Conflicts(y, initial, false)) ||
      (has_checkpoints && (Conflicts(checkpoints, y, false) || (has_initial && Conflicts(checkpoints, initial, false)) ||
                           (has_final && Conflicts(checkpoints, final_state, false)))))
    return CONVSCAN_INVALID_ARGUMENT;
  const convscan_projection *const projections[] = {&p->b, &p->c};
  for (const convscan_projection *b : projections) {
    if (!has_states) break;
    const Extent extent(
        b->is_constant ? View(b->data, number, 1, 1, p->channels, {0, 0, b->group})
                       : View(b->data, number, p->batch, p->length, p->groups, {b->batch, b->time, b->group}),
        p->states, b->state, part);
    const auto overlaps = [&](const Array &out) {
      uintptr_t low, high;
      return !out.Range(low, high) || (extent.low < high && low < extent.high);
    };
    if (!extent.is_valid || overlaps(y) || (has_final && overlaps(final_state)) ||
        (has_checkpoints && overlaps(checkpoints)))
      return CONVSCAN_INVALID_ARGUMENT;
  }
  return CONVSCAN_OK;
}

convscan_status Check(const convscan_selective_gradient *p) {
  if (p == nullptr || p->shard_channels < 1) return CONVSCAN_INVALID_ARGUMENT;
  const convscan_selective &f = p->forward;
  // As if du were the output: it may not meet any input either.
  convscan_selective inputs = f;
  inputs.y = p->du;
  inputs.y_strides = p->du_strides;
  inputs.final_state.data = nullptr;
  const convscan_status status = Check(&inputs);
  if (status != CONVSCAN_OK || f.batch == 0 || f.channels == 0) return status;
  const int64_t element = ElementBytes(f.dtype), part = f.dtype == CONVSCAN_FLOAT64 ? 8 : 4;
  const int64_t numbers = f.is_complex ? 2 * f.states : f.states;
  const int64_t shards = (f.channels / f.groups - 1) / p->shard_channels + 1;
  const auto signal = [&](const void *address, const convscan_strides &strides) {
    return View(address, element, f.batch, f.length, f.channels, strides);
  };
  const auto states = [&](const void *address) {
    return View(address, part, f.batch, f.channels, numbers, {f.channels * numbers, numbers, 1});
  };
  const auto of_sequences = [&](const void *address) {
    Array array = states(address);
    array.sizes[0] *= f.sequences;
    return array;
  };
  const auto projection = [&](const convscan_projection &b, const void *address) {
    if (b.is_constant) return states(address);
    const int64_t row = f.groups * numbers;
    return View(address, part, shards * f.batch, f.length, row, {f.length * row, row, 1});
  };
  const auto channels = [&](const void *address) { return Plane(address, part, f.batch, f.channels, f.channels, 1); };
  const bool has_signals = f.length > 0, has_states = f.states > 0;
  struct Output {
    Array array;
    bool is_there;
  };
  const Output outputs[] = {{signal(p->du, p->du_strides), has_signals},
                            {signal(p->ddelta, p->ddelta_strides), has_signals},
                            {signal(p->dz, p->dz_strides), has_signals && f.z != nullptr},
                            {states(p->da), has_states},
                            {projection(f.b, p->db), has_states && (has_signals || f.b.is_constant)},
                            {projection(f.c, p->dc), has_states && (has_signals || f.c.is_constant)},
                            {channels(p->dd), p->dd != nullptr},
                            {channels(p->ddelta_bias), p->ddelta_bias != nullptr},
                            {of_sequences(p->dinitial_state), has_states && p->dinitial_state != nullptr}};
  const Array dy = signal(p->dy, p->dy_strides);
  const Array dfinal = StatesOf(f, p->dfinal_state, part * (f.is_complex ? 2 : 1));
  const bool has_dfinal = has_states && p->dfinal_state.data != nullptr;
  if ((has_signals && !IsValid(dy, element)) || (has_dfinal && !IsValid(dfinal, part)) ||
      (has_signals && has_states && f.checkpoints == nullptr))
    return CONVSCAN_INVALID_ARGUMENT;
  for (const Output &output : outputs) {
    if (!output.is_there) continue;
    const Array &array = output.array;
    if (!IsValid(array, array.element) || !array.IsInjective() || (has_signals && Conflicts(array, dy, false)) ||
        (has_dfinal && Conflicts(array, dfinal, false)))
      return CONVSCAN_INVALID_ARGUMENT;
    for (const Output &other : outputs)
      if (&other != &output && other.is_there && Conflicts(array, other.array, false))
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

// Everything but arrays.
convscan_status CheckSizes(const convscan_online *p) {
  constexpr int64_t kLargest = int64_t{1} << 40;  // padding to blocks and lanes multiplies by less than 2^8
  if (p == nullptr || !SizesAreValid(p->batch, p->length, p->channels, p->threads) || p->taps < 1 ||
      p->taps > kLargest || p->max_rewind < 0 || p->max_rewind > kLargest || !IsKnown(p->dtype))
    return CONVSCAN_INVALID_ARGUMENT;
  if (p->schedule < CONVSCAN_ONLINE_GROWING || p->schedule > CONVSCAN_ONLINE_UNIFORM) return CONVSCAN_INVALID_ARGUMENT;
  if (p->schedule == CONVSCAN_ONLINE_UNIFORM &&
      (p->block < 16 || p->block > kLargest || (p->block & (p->block - 1)) != 0 || p->length % p->block != 0))
    return CONVSCAN_INVALID_ARGUMENT;
  int64_t lanes, values;  // of all states and the filter, with room for padding
  if (__builtin_mul_overflow(p->batch + 1, p->channels + 16, &lanes) ||
      __builtin_mul_overflow(lanes, p->taps + p->max_rewind + p->block, &values) || values > int64_t{1} << 52)
    return CONVSCAN_INVALID_ARGUMENT;
  return IsReal(p->dtype) ? CONVSCAN_OK : CONVSCAN_UNSUPPORTED;
}

Array Values(const void *address, int64_t element, int64_t count) { return Plane(address, element, 1, count, 0, 1); }

convscan_status Check(const convscan_online *p, bool reads_x) {
  const convscan_status status = CheckSizes(p);
  if (status != CONVSCAN_OK) return status;
  convscan_online_sizes sizes;
  ActiveKernels().online_measure(*p, sizes);
  const int64_t element = ElementBytes(p->dtype), value = ComputeBytes(p->dtype);
  const Array filter = Values(p->filter, value, sizes.filter), clock = Values(p->clock, 8, sizes.clock);
  if (!IsValid(clock, 8) || p->clock[0] < 0 || p->clock[1] < p->clock[0]) return CONVSCAN_INVALID_ARGUMENT;
  if (p->batch == 0 || p->channels == 0) return CONVSCAN_OK;  // time passes all the same
  const Array state = Values(p->state, value, p->batch * sizes.state);
  if (!IsValid(filter, value) || !IsValid(state, value) || Conflicts(state, filter, false) ||
      Conflicts(state, clock, false) || Conflicts(clock, filter, false))
    return CONVSCAN_INVALID_ARGUMENT;
  if (!reads_x || p->length == 0) return CONVSCAN_OK;
  const Array x = View(p->x, element, p->batch, p->length, p->channels, p->x_strides);
  if (!IsValid(x, element) || Conflicts(state, x, false)) return CONVSCAN_INVALID_ARGUMENT;
  if (p->y == nullptr) return CONVSCAN_OK;
  const Array y = View(p->y, element, p->batch, p->length, p->channels, p->y_strides);
  if (!IsValid(y, element) || !y.IsInjective() || Conflicts(y, x, true) || Conflicts(y, filter, false) ||
      Conflicts(y, state, false) || Conflicts(y, clock, false))
    return CONVSCAN_INVALID_ARGUMENT;
  return CONVSCAN_OK;
}

// ---- linear attention with decay ----

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
  void AddState(const convscan_attention_state &of, int64_t element, const convscan_attention &p) {
    Array s = {reinterpret_cast<uintptr_t>(of.s), element, {p.batch, p.sequences, p.heads, p.keys, p.values}, {}};
    Array n = {reinterpret_cast<uintptr_t>(of.n), element, {p.batch, p.sequences, p.heads, p.keys, 1}, {}};
    for (int i = 0; i < kAxes; ++i) s.strides[i] = of.s_strides[i];
    for (int i = 0; i < 4; ++i) n.strides[i] = of.n_strides[i];
    if (p.keys == 0) return;
    if (p.values != 0) Add(s, element);
    Add(n, element);
  }
  bool AreValid() const {
    for (int i = 0; i < count; ++i)
      if (!IsValid(items[i], alignments[i])) return false;
    return true;
  }
};

// Whether every output has its own memory, which no input shares.
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

// Everything of the problem but its outputs.
convscan_status CheckInputs(const convscan_attention &p, Arrays &in) {
  if (!SizesAreValid(p.batch, p.length, p.heads, p.threads) || !IsKnown(p.dtype) || p.groups < 0 || p.sequences < 1)
    return CONVSCAN_INVALID_ARGUMENT;
  if (p.heads != 0 && (p.groups == 0 || p.heads % p.groups != 0)) return CONVSCAN_INVALID_ARGUMENT;
  int64_t steps;
  if (__builtin_mul_overflow(p.batch, p.length + p.sequences, &steps) || !SizesAreValid(steps, p.heads, p.keys, 0) ||
      !SizesAreValid(steps, p.heads, p.values, 0) || p.sequences > int64_t{1} << 48)
    return CONVSCAN_INVALID_ARGUMENT;
  int64_t state;
  if (__builtin_mul_overflow(p.keys, p.values, &state) ||
      (state != 0 && !SizesAreValid(p.batch * p.sequences, p.heads, state, 0)))
    return CONVSCAN_INVALID_ARGUMENT;
  if (p.boundaries == nullptr ? p.sequences != 1 : p.boundaries[0] != 0 || p.boundaries[p.sequences] != p.length)
    return CONVSCAN_INVALID_ARGUMENT;
  for (int64_t s = 0; p.boundaries != nullptr && s < p.sequences; ++s)
    if (p.boundaries[s + 1] < p.boundaries[s]) return CONVSCAN_INVALID_ARGUMENT;
  if (!IsReal(p.dtype)) return CONVSCAN_UNSUPPORTED;
  if (p.batch == 0 || p.heads == 0) return CONVSCAN_OK;
  const int64_t element = ElementBytes(p.dtype), arithmetic = ComputeBytes(p.dtype);
  if (p.length != 0) {
    if (p.keys != 0) {
      if (p.q == nullptr || p.k == nullptr) return CONVSCAN_INVALID_ARGUMENT;
      in.Add(Heads(p.q, element, p.batch, p.length, p.groups, p.keys, p.q_strides), element);
      in.Add(Heads(p.k, element, p.batch, p.length, p.groups, p.keys, p.k_strides), element);
    }
    const int64_t decays = p.per_key ? p.keys : 1;
    if ((p.values != 0 && p.v == nullptr) || (decays != 0 && p.g == nullptr)) return CONVSCAN_INVALID_ARGUMENT;
    if (p.values != 0) in.Add(Heads(p.v, element, p.batch, p.length, p.heads, p.values, p.v_strides), element);
    if (decays != 0) in.Add(Heads(p.g, arithmetic, p.batch, p.length, p.heads, decays, p.g_strides), arithmetic);
    in.Add(Heads(p.w, arithmetic, p.batch, p.length, p.heads, 1, p.w_strides), arithmetic);
  }
  if (p.values != 0)
    in.Add(Plane(p.skip, arithmetic, p.heads, p.values, p.skip_head_stride, p.skip_channel_stride), arithmetic);
  in.AddState(p.initial, arithmetic, p);
  return in.AreValid() ? CONVSCAN_OK : CONVSCAN_INVALID_ARGUMENT;
}

convscan_status Check(const convscan_attention *p) {
  if (p == nullptr) return CONVSCAN_INVALID_ARGUMENT;
  Arrays in, out;
  const convscan_status status = CheckInputs(*p, in);
  if (status != CONVSCAN_OK || p->batch == 0 || p->heads == 0) return status;
  const int64_t element = ElementBytes(p->dtype), arithmetic = ComputeBytes(p->dtype);
  if (p->length != 0) {
    if (p->values != 0 && p->y == nullptr) return CONVSCAN_INVALID_ARGUMENT;
    if (p->values != 0) out.Add(Heads(p->y, element, p->batch, p->length, p->heads, p->values, p->y_strides), element);
    out.Add(Heads(p->sums, arithmetic, p->batch, p->length, p->heads, 1, p->sums_strides), arithmetic);
  }
  out.AddState(p->final, arithmetic, *p);
  return out.AreValid() && AreApart(in, out) ? CONVSCAN_OK : CONVSCAN_INVALID_ARGUMENT;
}

convscan_status Check(const convscan_attention_gradient *p) {
  if (p == nullptr) return CONVSCAN_INVALID_ARGUMENT;
  const convscan_attention &f = p->forward;
  Arrays in, out;
  const convscan_status status = CheckInputs(f, in);
  if (status != CONVSCAN_OK || f.batch == 0 || f.heads == 0) return status;
  if (p->block < 1 || (p->dsums != nullptr && !p->has_sums)) return CONVSCAN_INVALID_ARGUMENT;
  const int64_t element = ElementBytes(f.dtype), arithmetic = ComputeBytes(f.dtype);
  const int64_t in_group = f.heads / f.groups, blocks = in_group / p->block + (in_group % p->block != 0);
  const auto of_blocks = [&](void *address, const convscan_head_strides &s, int64_t block_stride) {
    Array array = Heads(address, arithmetic, f.batch, f.length, f.groups, f.keys, s);
    array.sizes[4] = blocks;
    array.strides[4] = block_stride;
    out.Add(array, arithmetic);
  };
  if (f.length != 0) {
    if (f.values != 0) {
      if (p->dy == nullptr || p->dv == nullptr) return CONVSCAN_INVALID_ARGUMENT;
      in.Add(Heads(p->dy, element, f.batch, f.length, f.heads, f.values, p->dy_strides), element);
      out.Add(Heads(p->dv, element, f.batch, f.length, f.heads, f.values, p->dv_strides), element);
    }
    in.Add(Heads(p->dsums, arithmetic, f.batch, f.length, f.heads, 1, p->dsums_strides), arithmetic);
    const int64_t decays = f.per_key ? f.keys : 1;
    if ((f.keys != 0 && (p->dq == nullptr || p->dk == nullptr)) || (decays != 0 && p->dg == nullptr))
      return CONVSCAN_INVALID_ARGUMENT;
    if (f.keys != 0) {
      of_blocks(p->dq, p->dq_strides, p->dq_block_stride);
      of_blocks(p->dk, p->dk_strides, p->dk_block_stride);
    }
    if (decays != 0) out.Add(Heads(p->dg, arithmetic, f.batch, f.length, f.heads, decays, p->dg_strides), arithmetic);
    out.Add(Heads(p->dw, arithmetic, f.batch, f.length, f.heads, 1, p->dw_strides), arithmetic);
  }
  in.AddState(p->dfinal, arithmetic, f);
  out.AddState(p->dinitial, arithmetic, f);
  return in.AreValid() && out.AreValid() && AreApart(in, out) ? CONVSCAN_OK : CONVSCAN_INVALID_ARGUMENT;
}

convscan_status Check(const convscan_attention_step *p) {
  if (p == nullptr || !SizesAreValid(p->batch, p->heads, p->keys, p->threads) ||
      !SizesAreValid(p->batch, p->heads, p->values, 0) || !IsKnown(p->dtype) || p->gates < CONVSCAN_GATES_DECAY ||
      p->gates > CONVSCAN_GATES_DELTA || p->groups < 0)
    return CONVSCAN_INVALID_ARGUMENT;
  if (p->heads != 0 && (p->groups == 0 || p->heads % p->groups != 0)) return CONVSCAN_INVALID_ARGUMENT;
  int64_t state;
  if (__builtin_mul_overflow(p->keys, p->values, &state) || !SizesAreValid(p->batch, p->heads, state, 0))
    return CONVSCAN_INVALID_ARGUMENT;
  if (!IsReal(p->dtype)) return CONVSCAN_UNSUPPORTED;
  if (p->batch == 0 || p->heads == 0) return CONVSCAN_OK;
  const int64_t element = ElementBytes(p->dtype), arithmetic = ComputeBytes(p->dtype);
  const bool is_mlstm = p->gates == CONVSCAN_GATES_MLSTM, is_ssd = p->gates == CONVSCAN_GATES_SSD;
  const int64_t decays = p->per_key && !is_mlstm && !is_ssd ? p->keys : 1;
  Arrays in, out;
  bool complete = true;
  const auto add = [&](Arrays &to, const void *address, int64_t bytes, int64_t heads, int64_t channels,
                       const convscan_step_strides &s, bool is_needed) {
    if (heads * channels == 0) return;
    complete = complete && (address != nullptr || !is_needed);
    to.Add(Heads(address, bytes, p->batch, 1, heads, channels, {s.batch, 0, s.head, s.channel}), bytes);
  };
  add(in, p->q, element, p->groups, p->keys, p->q_strides, true);
  add(in, p->k, element, p->groups, p->keys, p->k_strides, true);
  add(in, p->v, element, p->heads, p->values, p->v_strides, true);
  add(in, p->g, arithmetic, p->heads, decays, p->g_strides, true);
  add(in, p->i, arithmetic, p->heads, 1, p->i_strides, is_mlstm || p->gates == CONVSCAN_GATES_DELTA);
  add(in, p->bias, arithmetic, p->heads, 1, {0, p->bias_stride, 0}, false);
  add(in, p->rate, arithmetic, p->heads, 1, {0, p->rate_stride, 0}, is_ssd);
  add(in, p->skip, arithmetic, p->heads, p->values, {0, p->skip_head_stride, p->skip_channel_stride}, false);
  add(in, p->z, element, p->heads, p->values, p->z_strides, false);
  add(out, p->y, element, p->heads, p->values, p->y_strides, true);
  Array s = {reinterpret_cast<uintptr_t>(p->s), arithmetic, {p->batch, p->heads, p->keys, p->values, 1}, {}};
  for (int i = 0; i < 4; ++i) s.strides[i] = p->s_strides[i];
  Array n = {reinterpret_cast<uintptr_t>(p->n), arithmetic, {p->batch, p->heads, p->keys, 1, 1}, {}};
  for (int i = 0; i < 3; ++i) n.strides[i] = p->n_strides[i];
  Array m = {reinterpret_cast<uintptr_t>(p->m), arithmetic, {p->batch, p->heads, 1, 1, 1}, {}};
  for (int i = 0; i < 2; ++i) m.strides[i] = p->m_strides[i];
  if (state != 0) out.Add(s, arithmetic);
  if (p->keys != 0) out.Add(n, arithmetic);
  out.Add(m, arithmetic);
  complete = complete && (state == 0 || p->s != nullptr) &&
             (!is_mlstm || (p->m != nullptr && (p->keys == 0 || p->n != nullptr)));
  return complete && in.AreValid() && out.AreValid() && AreApart(in, out) ? CONVSCAN_OK : CONVSCAN_INVALID_ARGUMENT;
}

bool IsEmpty(const convscan_attention_step &p) { return p.batch == 0 || p.heads == 0; }
bool IsEmpty(const convscan_attention &p) { return p.batch == 0 || p.heads == 0; }
bool IsEmpty(const convscan_attention_gradient &p) { return IsEmpty(p.forward); }
// ---- gated delta rule ----

// The states of a problem, which may be absent.
void AddState(Arrays &arrays, const convscan_delta_rule &p, const void *address, const int64_t (&strides)[5]) {
  const int64_t element = ComputeBytes(p.dtype);
  Array state = {reinterpret_cast<uintptr_t>(address), element, {p.batch, p.sequences, p.heads, p.keys, p.values}, {}};
  for (int i = 0; i < kAxes; ++i) state.strides[i] = strides[i];
  if (p.keys != 0 && p.values != 0) arrays.Add(state, element);
}

// A signal of heads, or of groups of them; false where it has elements and no memory.
bool AddHeads(Arrays &arrays, const convscan_delta_rule &p, const void *address, int64_t element, int64_t heads,
              int64_t channels, const convscan_head_strides &strides) {
  if (p.length == 0 || channels == 0) return true;
  arrays.Add(Heads(address, element, p.batch, p.length, heads, channels, strides), element);
  return address != nullptr;
}

// Everything of the problem but its outputs.
convscan_status CheckInputs(const convscan_delta_rule &p, Arrays &in) {
  int64_t state, steps;
  if (!SizesAreValid(p.batch, p.length, p.heads, p.threads) || p.sequences < 1 || p.sequences > int64_t{1} << 48 ||
      !IsKnown(p.dtype) || p.groups < 0 || (p.heads != 0 && (p.groups == 0 || p.heads % p.groups != 0)) ||
      __builtin_mul_overflow(p.batch, p.length + p.sequences, &steps) ||
      !SizesAreValid(steps, p.heads, p.keys, 0) || !SizesAreValid(steps, p.heads, p.values, 0) ||
      __builtin_mul_overflow(p.keys, p.values, &state) || !SizesAreValid(p.batch * p.sequences, p.heads, state, 0))
    return CONVSCAN_INVALID_ARGUMENT;
  if (p.boundaries == nullptr ? p.sequences != 1 : !BoundariesAreValid(p.boundaries, p.sequences, p.length))
    return CONVSCAN_INVALID_ARGUMENT;
  if (!IsReal(p.dtype) || p.dtype == CONVSCAN_WIDE_FLOAT32) return CONVSCAN_UNSUPPORTED;
  if (p.batch == 0 || p.heads == 0) return CONVSCAN_OK;
  const int64_t element = ElementBytes(p.dtype), arithmetic = ComputeBytes(p.dtype);
  const bool complete = AddHeads(in, p, p.q, element, p.groups, p.keys, p.q_strides) &&
                        AddHeads(in, p, p.k, element, p.groups, p.keys, p.k_strides) &&
                        AddHeads(in, p, p.v, element, p.heads, p.values, p.v_strides) &&
                        AddHeads(in, p, p.g, arithmetic, p.heads, p.per_key ? p.keys : 1, p.g_strides) &&
                        AddHeads(in, p, p.beta, arithmetic, p.heads, 1, p.beta_strides);
  return complete && in.AreValid() ? CONVSCAN_OK : CONVSCAN_INVALID_ARGUMENT;
}

convscan_status Check(const convscan_delta_rule *p) {
  if (p == nullptr) return CONVSCAN_INVALID_ARGUMENT;
  Arrays in, out;
  const convscan_status status = CheckInputs(*p, in);
  if (status != CONVSCAN_OK || p->batch == 0 || p->heads == 0) return status;
  const bool complete = AddHeads(out, *p, p->y, ElementBytes(p->dtype), p->heads, p->values, p->y_strides);
  AddState(out, *p, p->last, p->last_strides);
  // In place, a state is read before it is written: exactly the same memory is no conflict.
  bool in_place = p->initial == p->last;
  for (int i = 0; i < kAxes; ++i) in_place = in_place && p->initial_strides[i] == p->last_strides[i];
  if (!in_place) AddState(in, *p, p->initial, p->initial_strides);
  return complete && in.AreValid() && out.AreValid() && AreApart(in, out) ? CONVSCAN_OK : CONVSCAN_INVALID_ARGUMENT;
}

convscan_status Check(const convscan_delta_rule_gradient *p) {
  if (p == nullptr) return CONVSCAN_INVALID_ARGUMENT;
  const convscan_delta_rule &f = p->forward;
  Arrays in, out;
  const convscan_status status = CheckInputs(f, in);
  if (status != CONVSCAN_OK || f.batch == 0 || f.heads == 0) return status;
  const int64_t element = ElementBytes(f.dtype), arithmetic = ComputeBytes(f.dtype);
  const bool complete = AddHeads(in, f, p->dy, element, f.heads, f.values, p->dy_strides) &&
                        AddHeads(out, f, p->dq, arithmetic, f.heads, f.keys, p->dq_strides) &&
                        AddHeads(out, f, p->dk, arithmetic, f.heads, f.keys, p->dk_strides) &&
                        AddHeads(out, f, p->dv, element, f.heads, f.values, p->dv_strides) &&
                        AddHeads(out, f, p->dg, arithmetic, f.heads, f.per_key ? f.keys : 1, p->dg_strides) &&
                        AddHeads(out, f, p->dbeta, arithmetic, f.heads, 1, p->dbeta_strides);
  AddState(in, f, f.initial, f.initial_strides);
  AddState(in, f, p->dlast, p->dlast_strides);
  AddState(out, f, p->dinitial, p->dinitial_strides);
  return complete && in.AreValid() && out.AreValid() && AreApart(in, out) ? CONVSCAN_OK : CONVSCAN_INVALID_ARGUMENT;
}

bool IsEmpty(const convscan_delta_rule &p) { return p.batch == 0 || p.heads == 0; }
bool IsEmpty(const convscan_delta_rule_gradient &p) { return IsEmpty(p.forward); }
bool IsEmpty(const convscan_conv &p) { return p.batch == 0 || p.length == 0 || p.channels == 0; }
bool IsEmpty(const convscan_spectrum &p) { return p.filters == 0; }
bool IsEmpty(const convscan_conv_gradient &) { return false; }
bool IsEmpty(const convscan_scan &p) { return p.batch == 0 || p.length == 0 || p.channels == 0; }
bool IsEmpty(const convscan_scan_gradient &p) { return p.forward.batch == 0 || p.forward.channels == 0; }
bool IsEmpty(const convscan_selective &p) { return p.batch == 0 || p.channels == 0; }
bool IsEmpty(const convscan_selective_gradient &p) { return IsEmpty(p.forward); }
bool IsEmpty(const convscan_allpole &p) { return p.batch == 0 || p.length == 0 || p.channels == 0; }
bool IsEmpty(const convscan_vandermonde &p) { return p.rows == 0 || p.length == 0; }
bool IsEmpty(const convscan_cauchy &p) { return p.sides == 0 || p.rows == 0 || p.points == 0; }
bool IsEmpty(const convscan_vandermonde_adjoint &p) { return p.rows == 0 || p.terms == 0; }

// Checks the problem, then calls the active instruction set's kernel. Empty problems write nothing.
template <class Problem, class Kernel, class... Rest>
convscan_status Run(const Problem *problem, convscan_status status, Kernel Kernels::*kernel, Rest... rest) {
  if (status != CONVSCAN_OK || IsEmpty(*problem)) return status;
  return (ActiveKernels().*kernel)(*problem, rest...);
}

// ---- problems of several parts: each a problem of its own, and what one thread makes of it never depends on others ----

// run(part, threads) for 0 <= part < count, where size(part) says how much work it is: large parts one after another,
// each on all threads, then the small ones, each on one. Returns the first failure.
template <class Size, class RunPart>
convscan_status RunParts(int64_t count, int64_t total, int threads, const Size &size, const RunPart &run) {
  const int workers = threads > 0 ? threads : ThreadCount();
  const auto is_large = [&](int64_t part) { return workers == 1 || size(part) * 4 * workers >= total; };
  int status = CONVSCAN_OK;
  const auto note = [&](convscan_status result) {
    if (result != CONVSCAN_OK) __atomic_store_n(&status, static_cast<int>(result), __ATOMIC_RELAXED);
  };
  for (int64_t part = 0; part < count; ++part)
    if (size(part) > 0 && is_large(part)) note(run(part, threads));
  // A few parts at a time: short ones take less time than handing one out.
  const int64_t together = count / (32 * int64_t{workers}) + 1;
  if (workers > 1)
    ParallelFor((count + together - 1) / together, workers, [&](int64_t task) {
      for (int64_t part = task * together; part < count && part < (task + 1) * together; ++part)
        if (size(part) > 0 && !is_large(part)) note(run(part, 1));
    });
  return static_cast<convscan_status>(status);
}

const void *Advance(const void *array, int64_t elements, convscan_dtype dtype) {
  return array == nullptr ? nullptr : static_cast<const char *>(array) + elements * ElementBytes(dtype);
}

// Sequences first ... first + count - 1, of equal length, of a packed problem: with one element of the batch, a batch.
convscan_conv Unpacked(const convscan_conv &p, int64_t first, int64_t count) {
  const int64_t begin = p.boundaries[first];
  convscan_conv q = p;
  q.length = p.boundaries[first + 1] - begin;
  q.boundaries = nullptr;
  q.x = Advance(p.x, begin * p.x_strides.time, p.dtype);
  q.y = const_cast<void *>(Advance(p.y, begin * p.y_strides.time, p.dtype));
  q.pre_gate = Advance(p.pre_gate, begin * p.pre_gate_strides.time, p.dtype);
  q.post_gate = Advance(p.post_gate, begin * p.post_gate_strides.time, p.dtype);
  q.state = Advance(p.state, first * p.state_sequence_stride, p.dtype);
  if (count == 1) return q;
  q.batch = count;
  q.h_batch_stride = q.bias_batch_stride = 0;
  q.x_strides.batch = q.length * p.x_strides.time;
  q.y_strides.batch = q.length * p.y_strides.time;
  q.pre_gate_strides.batch = q.length * p.pre_gate_strides.time;
  q.post_gate_strides.batch = q.length * p.post_gate_strides.time;
  q.state_strides.batch = p.state_sequence_stride;
  return q;
}

// How many sequences from `first` on run as one batch.
int64_t AlikeFrom(const convscan_conv &p, int64_t first) {
  const auto length = [&](int64_t s) { return p.boundaries[s + 1] - p.boundaries[s]; };
  int64_t end = first + 1;
  while (p.batch == 1 && end < p.sequences && length(end) == length(first)) ++end;
  return end - first;
}

template <class RunOne>
convscan_status RunSequences(const convscan_conv *problem, convscan_status status, const RunOne &run) {
  if (status != CONVSCAN_OK || IsEmpty(*problem)) return status;
  const convscan_conv &p = *problem;
  if (p.boundaries == nullptr) return run(p);
  int64_t parts = 0;
  for (int64_t s = 0; s < p.sequences; s += AlikeFrom(p, s)) ++parts;
  int64_t *const first = new (std::nothrow) int64_t[static_cast<size_t>(parts) + 1];
  if (first == nullptr) return CONVSCAN_OUT_OF_MEMORY;
  first[parts] = p.sequences;
  for (int64_t s = 0, part = 0; s < p.sequences; s += AlikeFrom(p, s)) first[part++] = s;
  status = RunParts(
      parts, p.length, p.threads,
      [&](int64_t part) { return p.boundaries[first[part + 1]] - p.boundaries[first[part]]; },
      [&](int64_t part, int threads) {
        convscan_conv q = Unpacked(p, first[part], first[part + 1] - first[part]);
        q.threads = threads;
        return run(q);
      });
  delete[] first;
  return status;
}

// Gradients of filters of their own are problems of their own.
template <class RunOne>
convscan_status RunFilters(const convscan_filter_gradient *problem, convscan_status status, const RunOne &run) {
  if (status != CONVSCAN_OK || IsEmpty(*problem)) return status;
  const convscan_filter_gradient &p = *problem;
  if (p.dh_batch_stride == 0) return run(p);
  const int64_t gradient = ComputeBytes(p.dtype);
  return RunParts(
      p.batch, p.batch, p.threads, [](int64_t) { return 1; },
      [&](int64_t b, int threads) {
        convscan_filter_gradient q = p;
        q.batch = 1;
        q.threads = threads;
        q.x = Advance(p.x, b * p.x_strides.batch, p.dtype);
        q.x_gate = Advance(p.x_gate, b * p.x_gate_strides.batch, p.dtype);
        q.dz = Advance(p.dz, b * p.dz_strides.batch, p.dtype);
        q.dz_gate = Advance(p.dz_gate, b * p.dz_gate_strides.batch, p.dtype);
        q.state = Advance(p.state, b * p.state_strides.batch, p.dtype);
        q.dh = static_cast<char *>(p.dh) + b * p.dh_batch_stride * gradient;
        return run(q);
      });
}

// The transform of one sequence: as long as asked for, or shorter where that covers it.
int64_t TransformOf(const convscan_conv &p, int64_t transform_length) {
  if (transform_length == 0) return 0;
  const int64_t taps = p.state == nullptr && p.taps > p.origin + p.length ? p.origin + p.length : p.taps;
  const int64_t whole = convscan_fft_length((p.length + taps) / 2, p.dtype);
  return whole > 0 && whole < transform_length ? whole : transform_length;
}

}  // namespace

extern "C" {

convscan_status convscan_conv_direct(const convscan_conv *p) {
  return RunSequences(p, Check(p), [](const convscan_conv &q) { return ActiveKernels().conv_direct(q); });
}
convscan_status convscan_conv_toeplitz(const convscan_conv *p) {
  return RunSequences(p, Check(p), [](const convscan_conv &q) { return ActiveKernels().conv_toeplitz(q); });
}
convscan_status convscan_conv_recurrence(const convscan_conv *p) {
  return RunSequences(p, Check(p), [](const convscan_conv &q) { return ActiveKernels().conv_recurrence(q); });
}
convscan_status convscan_conv_fft(const convscan_conv *p, int64_t transform_length) {
  return RunSequences(p, Check(p), [&](const convscan_conv &q) {
    return ActiveKernels().conv_fft(q, p->boundaries == nullptr ? transform_length : TransformOf(q, transform_length));
  });
}
convscan_status convscan_conv_auto(const convscan_conv *p) {
  const convscan_status status = Check(p);
  if (status != CONVSCAN_OK || IsEmpty(*p)) return status;
  const ConvChoice choice = ChooseConv(*p, convscan_isa(), convscan_fft_length);
  switch (choice.method) {
    case ConvMethod::kDirect: return convscan_conv_direct(p);
    case ConvMethod::kToeplitz: return convscan_conv_toeplitz(p);
    case ConvMethod::kFft: break;
  }
  return convscan_conv_fft(p, choice.transform_length);
}
convscan_status convscan_conv_fft_kept(const convscan_conv *p, int64_t transform_length, const void *spectra,
                                       convscan_spectrum_storage storage) {
  const convscan_status status = CheckKept(p, transform_length, spectra, storage);
  return Run(p, status, &Kernels::conv_fft_kept, transform_length, spectra, storage);
}
convscan_status convscan_conv_fft_sparse(const convscan_conv *p, int64_t transform_length, const void *spectra,
                                         convscan_spectrum_storage storage, const void *pattern) {
  const convscan_status status = CheckKept(p, transform_length, spectra, storage);
  if (status == CONVSCAN_OK && !IsEmpty(*p)) {
    const Array y = View(p->y, ElementBytes(p->dtype), p->batch, p->length, p->channels, p->y_strides);
    const Array all = Plane(pattern, convscan_pattern_bytes(transform_length, p->dtype), 1, 1, 0, 1);
    if (!IsValid(all, kSpectrumAlignment) || Conflicts(y, all, false) || p->state != nullptr ||
        p->boundaries != nullptr)
      return CONVSCAN_INVALID_ARGUMENT;
    if (2 * transform_length < p->length + p->taps - 1) return CONVSCAN_UNSUPPORTED;
  }
  return Run(p, status, &Kernels::conv_fft_sparse, transform_length, spectra, storage, pattern);
}
int64_t convscan_pattern_bytes(int64_t transform_length, convscan_dtype dtype) {
  if (transform_length < 1 || convscan_fft_length(transform_length, dtype) != transform_length) return 0;
  return ActiveKernels().pattern_bytes(transform_length, dtype);
}
convscan_status convscan_filter_spectrum(const convscan_spectrum *p) {
  return Run(p, Check(p), &Kernels::filter_spectrum);
}
int64_t convscan_spectrum_bytes(int64_t transform_length, convscan_dtype dtype, convscan_spectrum_storage storage) {
  if (transform_length < 1 || convscan_fft_length(transform_length, dtype) != transform_length || !IsKnown(storage))
    return 0;
  return 2 * transform_length * (storage == CONVSCAN_SPECTRUM_BFLOAT16 ? 2 : ComputeBytes(dtype));
}
convscan_status convscan_filter_gradient_direct(const convscan_filter_gradient *p) {
  return RunFilters(p, Check(p),
                    [](const convscan_filter_gradient &q) { return ActiveKernels().filter_gradient_direct(q); });
}
convscan_status convscan_filter_gradient_fft(const convscan_filter_gradient *p, int64_t transform_length) {
  return RunFilters(p, Check(p), [&](const convscan_filter_gradient &q) {
    return ActiveKernels().filter_gradient_fft(q, transform_length);
  });
}
convscan_status convscan_conv_gradient_direct(const convscan_conv_gradient *p) {
  const convscan_status status = Check(p, 0);
  if (status == CONVSCAN_OK && p->dx != nullptr && p->dx == p->filter.dz) return CONVSCAN_INVALID_ARGUMENT;
  return Run(p, status, &Kernels::conv_gradient_direct);
}
convscan_status convscan_conv_gradient_fft(const convscan_conv_gradient *p, int64_t transform_length) {
  return Run(p, Check(p, transform_length), &Kernels::conv_gradient_fft, transform_length);
}
convscan_status convscan_scan_sequential(const convscan_scan *p) {
  return Run(p, Check(p, true), &Kernels::scan_sequential);
}
convscan_status convscan_scan_tiled(const convscan_scan *p) { return Run(p, Check(p, true), &Kernels::scan_tiled); }
convscan_status convscan_scan_parallel(const convscan_scan *p) {
  return Run(p, Check(p, true), &Kernels::scan_parallel);
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
  return Run(p, Check(p), &Kernels::scan_gradient_sequential);
}
convscan_status convscan_selective_over_channels(const convscan_selective *p) {
  return Run(p, Check(p), &Kernels::selective_over_channels);
}
convscan_status convscan_selective_over_states(const convscan_selective *p) {
  const convscan_status status = Check(p);
  if (status == CONVSCAN_OK && (p->checkpoints != nullptr || p->boundaries != nullptr)) return CONVSCAN_UNSUPPORTED;
  return Run(p, status, &Kernels::selective_over_states);
}
convscan_status convscan_selective_gradient_over_channels(const convscan_selective_gradient *p) {
  return Run(p, Check(p), &Kernels::selective_gradient_over_channels);
}
int64_t convscan_selective_checkpoints(int64_t length, int64_t sequences) {
  constexpr int64_t kTile = 64;  // kSelectiveSteps of scan/selective.h, whose FirstTile this has to agree with
  if (length <= 0) return 0;
  return sequences <= 1 ? (length - 1) / kTile + 1 : length / kTile + sequences;
}
convscan_status convscan_allpole_filter(const convscan_allpole *p) { return Run(p, Check(p), &Kernels::allpole); }
convscan_status convscan_vandermonde_product(const convscan_vandermonde *p) {
  return Run(p, Check(p), &Kernels::vandermonde);
}
convscan_status convscan_vandermonde_adjoint_product(const convscan_vandermonde_adjoint *p) {
  return Run(p, Check(p), &Kernels::vandermonde_adjoint);
}
convscan_status convscan_attention_chunked(const convscan_attention *p) {
  return Run(p, Check(p), &Kernels::attention_chunked);
}
convscan_status convscan_attention_gradient_chunked(const convscan_attention_gradient *p) {
  return Run(p, Check(p), &Kernels::attention_gradient_chunked);
}
convscan_status convscan_attention_step_in_place(const convscan_attention_step *p) {
  return Run(p, Check(p), &Kernels::attention_step);
}
convscan_status convscan_delta_rule_chunked(const convscan_delta_rule *p) {
  return Run(p, Check(p), &Kernels::delta_rule_chunked);
}
convscan_status convscan_delta_rule_gradient_chunked(const convscan_delta_rule_gradient *p) {
  return Run(p, Check(p), &Kernels::delta_rule_gradient_chunked);
}
convscan_status convscan_cauchy_product(const convscan_cauchy *p) { return Run(p, Check(p), &Kernels::cauchy); }

convscan_status convscan_online_measure(const convscan_online *p, convscan_online_sizes *sizes) {
  const convscan_status status = sizes == nullptr ? CONVSCAN_INVALID_ARGUMENT : CheckSizes(p);
  if (status == CONVSCAN_OK) ActiveKernels().online_measure(*p, *sizes);
  return status;
}
convscan_status convscan_online_prepare(const convscan_online *p, const void *h, int64_t tap_stride,
                                        int64_t channel_stride) {
  const convscan_status status = CheckSizes(p);
  if (status != CONVSCAN_OK || p->channels == 0) return status;
  convscan_online_sizes sizes;
  ActiveKernels().online_measure(*p, sizes);
  const int64_t element = ElementBytes(p->dtype), value = ComputeBytes(p->dtype);
  const Array filter = Values(p->filter, value, sizes.filter);
  const Array taps = Plane(h, element, p->taps, p->shares_filter ? 1 : p->channels, tap_stride, channel_stride);
  if (!IsValid(filter, value) || !IsValid(taps, element) || Conflicts(filter, taps, false))
    return CONVSCAN_INVALID_ARGUMENT;
  return ActiveKernels().online_prepare(*p, h, tap_stride, channel_stride);
}
convscan_status convscan_online_extend(const convscan_online *p) {
  const convscan_status status = Check(p, true);
  if (status != CONVSCAN_OK || p->length == 0) return status;
  return ActiveKernels().online_extend(*p);
}
convscan_status convscan_online_rewind(const convscan_online *p, int64_t steps) {
  const convscan_status status = Check(p, false);
  if (status != CONVSCAN_OK) return status;
  const bool is_whole = p->schedule != CONVSCAN_ONLINE_UNIFORM || steps % p->block == 0;
  if (steps < 0 || steps > p->clock[0] || !is_whole || p->clock[1] - (p->clock[0] - steps) > p->max_rewind)
    return CONVSCAN_INVALID_ARGUMENT;
  return ActiveKernels().online_rewind(*p, steps);
}

int64_t convscan_fft_length(int64_t points, convscan_dtype dtype) {
  if (points < 1 || points > int64_t{1} << 40 || !IsReal(dtype)) return 0;
  return ActiveKernels().fft_length(points, dtype);
}

const char *convscan_isa(void) { return ActiveKernels().isa; }
int convscan_isa_count(void) { return IsaCount(); }
const char *convscan_isa_name(int index) { return IsaAt(index) == nullptr ? nullptr : IsaAt(index)->isa; }
convscan_status convscan_set_isa(const char *name) { return SetIsa(name) ? CONVSCAN_OK : CONVSCAN_INVALID_ARGUMENT; }

int64_t convscan_multiply_adds(int64_t rounds, int threads) { return ActiveKernels().multiply_adds(rounds, threads); }
int convscan_thread_count(void) { return ThreadCount(); }
void convscan_use_pool(const convscan_pool *pool) { UsePool(pool); }

int64_t convscan_workspace_current(void) { return WorkspaceCurrent(); }
int64_t convscan_workspace_peak(void) { return WorkspacePeak(); }
int64_t convscan_tables_current(void) { return TablesCurrent(); }
void convscan_workspace_reset_peak(void) {
  // A loop would not do: one thread may take all of its iterations.
  OnEveryThread(ReleaseWorkspace);
  ResetWorkspacePeak();
}

void convscan_advise_huge_pages(void *address, size_t bytes) {
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = uintptr_t{4096};
  if (address == nullptr || bytes < size_t{2} << 20) return;
  const uintptr_t low = (reinterpret_cast<uintptr_t>(address) + kPage - 1) / kPage * kPage;
  const uintptr_t high = (reinterpret_cast<uintptr_t>(address) + bytes) / kPage * kPage;
  if (high > low) madvise(reinterpret_cast<void *>(low), high - low, MADV_HUGEPAGE);
#else
  (void)address;
  (void)bytes;
#endif
}

const char *convscan_status_message(convscan_status status) {
  switch (status) {
    case CONVSCAN_OK: return "ok";
    case CONVSCAN_OUT_OF_MEMORY: return "workspace could not be allocated";
    case CONVSCAN_INVALID_ARGUMENT:
      return "invalid argument: a null pointer, a bad size, or misaligned or overlapping memory";
    case CONVSCAN_UNSUPPORTED: return "this kernel does not run this dtype or these strides";
  }
  return "unknown status";
}

}  // extern "C"
