// Selective scans.
#include "api/run.h"

using namespace convscan;

namespace {

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

bool IsEmpty(const convscan_selective &p) { return p.batch == 0 || p.channels == 0; }
bool IsEmpty(const convscan_selective_gradient &p) { return IsEmpty(p.forward); }

}  // namespace

extern "C" {

convscan_status convscan_selective_over_channels(const convscan_selective *p) {
  return Run(p, Check(p), IsEmpty, &Kernels::selective_over_channels);
}
convscan_status convscan_selective_over_states(const convscan_selective *p) {
  const convscan_status status = Check(p);
  if (status == CONVSCAN_OK && (p->checkpoints != nullptr || p->boundaries != nullptr)) return CONVSCAN_UNSUPPORTED;
  return Run(p, status, IsEmpty, &Kernels::selective_over_states);
}
convscan_status convscan_selective_gradient_over_channels(const convscan_selective_gradient *p) {
  return Run(p, Check(p), IsEmpty, &Kernels::selective_gradient_over_channels);
}
int64_t convscan_selective_checkpoints(int64_t length, int64_t sequences) {
  constexpr int64_t kTile = 64;  // kSelectiveSteps of scan/selective.h, whose FirstTile this has to agree with
  if (length <= 0) return 0;
  return sequences <= 1 ? (length - 1) / kTile + 1 : length / kTile + sequences;
}

}  // extern "C"
