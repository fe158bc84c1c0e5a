// A stretch of time of neighbouring channels of one batch entry: the unit that the scans divide their work into.
#pragma once

#include "convscan.h"
#include "core/vector.h"

namespace convscan::CONVSCAN_ISA {

// Addresses are those of the first step (in the order of the recurrence) and channel; strides count numbers.
struct Segment {
  int64_t length, channels;
  const void *x, *a;
  void *y;
  int64_t x_time, x_channel, a_time, a_channel, y_time, y_channel;
  bool streams = false;  // y is too large for the caches and nothing aliases it: stores may go past them
};

// Runs a segment. `state` holds y[-1] of every channel, in the type computed in, and then y[length - 1].
using SegmentKernel = void (*)(const Segment &, void *state);

// In time order, lanes over channels.
SegmentKernel SequentialSegment(convscan_dtype);
// A scan inside vector registers, lanes over time.
SegmentKernel ParallelSegment(convscan_dtype);

// Bytes of a number as stored and as computed.
inline int64_t StorageBytes(convscan_dtype dtype) {
  switch (dtype) {
    case CONVSCAN_BFLOAT16:
    case CONVSCAN_FLOAT16: return 2;
    case CONVSCAN_FLOAT32: return 4;
    case CONVSCAN_COMPLEX128: return 16;
    default: return 8;
  }
}
inline int64_t ComputeBytes(convscan_dtype dtype) { return Max(4, StorageBytes(dtype)); }

template <class Pointer>
CONVSCAN_INLINE Pointer Advance(Pointer p, int64_t bytes) {
  return p == nullptr ? p : (Pointer)((intptr_t)p + bytes);
}

// The problem with time running forwards: reversal is a negative stride.
inline convscan_scan Forwards(convscan_scan p) {
  if (!p.reverse) return p;
  const int64_t last = (p.length - 1) * StorageBytes(p.dtype);
  p.x = Advance(p.x, last * p.x_strides.time);
  p.a = Advance(p.a, last * p.a_strides.time);
  p.y = Advance(p.y, last * p.y_strides.time);
  p.x_strides.time = -p.x_strides.time;
  p.a_strides.time = -p.a_strides.time;
  p.y_strides.time = -p.y_strides.time;
  p.reverse = 0;
  return p;
}

// Steps [t, t + length) of channels [c, c + channels) of batch entry b.
inline Segment Cut(const convscan_scan &p, int64_t b, int64_t t, int64_t length, int64_t c, int64_t channels) {
  const int64_t bytes = StorageBytes(p.dtype);
  const auto at = [=](const convscan_strides &s) { return bytes * (b * s.batch + t * s.time + c * s.channel); };
  return {length,
          channels,
          Advance(p.x, at(p.x_strides)),
          Advance(p.a, at(p.a_strides)),
          Advance(p.y, at(p.y_strides)),
          p.x_strides.time,
          p.x_strides.channel,
          p.a_strides.time,
          p.a_strides.channel,
          p.y_strides.time,
          p.y_strides.channel};
}

// y_init of channels [c, c + channels) of batch entry b, in the type computed in; zeros where there is none.
void LoadInitialState(const convscan_scan &p, int64_t b, int64_t c, int64_t channels, void *state);

// Whether stores may go past the caches, as far as sizes say. In place they may not: the lines are there already.
inline bool IsTooLargeForCaches(const convscan_scan &p) {
  return p.x != p.y && p.batch * p.length * p.channels * StorageBytes(p.dtype) >= kStreamBytes;
}

// Below this many numbers the work is done before a second thread would have started (about 10 us).
inline constexpr int64_t kSmallProblem = 32768;

}  // namespace convscan::CONVSCAN_ISA
