// Convolutions of streams.
#include "api/run.h"

using namespace convscan;

namespace {

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

}  // namespace

extern "C" {

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

}  // extern "C"
