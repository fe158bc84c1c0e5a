// Convolutions: checks, packed sequences and filters of their own as problems of several parts, and the kernels.
#include <new>

#include "api/run.h"
#include "core/choose.h"
#include "core/parallel.h"

using namespace convscan;

namespace {

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

bool IsEmpty(const convscan_conv &p) { return p.batch == 0 || p.length == 0 || p.channels == 0; }
bool IsEmpty(const convscan_spectrum &p) { return p.filters == 0; }
bool IsEmpty(const convscan_conv_gradient &) { return false; }

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
  return Run(p, status, IsEmpty, &Kernels::conv_fft_kept, transform_length, spectra, storage);
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
  return Run(p, status, IsEmpty, &Kernels::conv_fft_sparse, transform_length, spectra, storage, pattern);
}
int64_t convscan_pattern_bytes(int64_t transform_length, convscan_dtype dtype) {
  if (transform_length < 1 || convscan_fft_length(transform_length, dtype) != transform_length) return 0;
  return ActiveKernels().pattern_bytes(transform_length, dtype);
}
convscan_status convscan_filter_spectrum(const convscan_spectrum *p) {
  return Run(p, Check(p), IsEmpty, &Kernels::filter_spectrum);
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
  return Run(p, status, IsEmpty, &Kernels::conv_gradient_direct);
}
convscan_status convscan_conv_gradient_fft(const convscan_conv_gradient *p, int64_t transform_length) {
  return Run(p, Check(p, transform_length), IsEmpty, &Kernels::conv_gradient_fft, transform_length);
}
int64_t convscan_fft_length(int64_t points, convscan_dtype dtype) {
  if (points < 1 || points > int64_t{1} << 40 || !IsReal(dtype)) return 0;
  return ActiveKernels().fft_length(points, dtype);
}

}  // extern "C"
