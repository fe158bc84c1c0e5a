// A stretch of time of neighbouring channels of one batch entry: the unit that the scans divide their work into.
#pragma once

#include "convscan.h"
#include "core/cache.h"
#include "core/parallel.h"
#include "core/vector.h"
#include "scan/element.h"

namespace convscan::CONVSCAN_ISA {

struct Packing;

// Addresses are those of the first step (in the order of the recurrence) and channel; strides count numbers.
struct Segment {
  int64_t length, channels;
  const void *x, *a;
  void *y;
  int64_t x_time, x_channel, a_time, a_channel, y_time, y_channel;
  bool streams = false;  // y is too large for the caches and nothing aliases it: stores may go past them
  const Packing *packing = nullptr;  // of all of time; null: one stretch of one sequence, which starts from `state`
};

// Runs a segment. `state` holds y[-1] of every channel, in the type computed in, and then y[length - 1].
using SegmentKernel = void (*)(const Segment &, void *state);

// In time order, lanes over channels. The only one to look at `packing`. With `conjugates`, of the conjugate coefficients.
SegmentKernel SequentialSegment(convscan_dtype, bool conjugates = false);
// A scan inside vector registers, lanes over time; null where steps of the problem, which runs forwards, do not lie so in
// memory that a vector holds several of them.
SegmentKernel ParallelSegment(const convscan_scan &, bool conjugates = false);

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

// The sequences that lie behind one another along time, in the order in which a pass over time meets them; one where the
// problem is not packed. `from_end`: the pass starts at the end.
struct Sequences {
  const int64_t *boundaries;
  int64_t count, length;
  bool from_end;

  Sequences(const convscan_scan &p, bool from_end)
      : boundaries(p.boundaries), count(p.boundaries == nullptr ? 1 : p.sequences), length(p.length),
        from_end(from_end) {}

  // Steps as the pass counts them.
  CONVSCAN_INLINE int64_t Begin(int64_t s) const { return s == 0 ? 0 : End(s - 1); }
  CONVSCAN_INLINE int64_t End(int64_t s) const {
    if (boundaries == nullptr) return length;
    return from_end ? length - boundaries[count - 1 - s] : boundaries[s + 1];
  }
  // Where initial states have the sequence.
  CONVSCAN_INLINE int64_t Index(int64_t s) const { return from_end ? count - 1 - s : s; }

  // The sequence of step t < length.
  int64_t At(int64_t t) const {
    int64_t low = 0, high = count - 1;
    while (low < high) {
      const int64_t middle = low + (high - low) / 2;
      if (End(middle) > t) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    return low;
  }
};

// The problem with time running forwards: reversal is a negative stride. Its sequences are those of the problem it came
// from, met from their end.
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

// y_init of channels [c, c + channels) of a sequence of batch entry b, in the type computed in; zeros where there is none.
void LoadInitialState(const convscan_scan &p, int64_t b, int64_t sequence, int64_t c, int64_t channels, void *state);

// Calls run(t, stop) for the stretches of steps [t, end) that lie within one sequence, in order. `state` is what comes
// before step t, and is replaced wherever a sequence begins.
template <class Run>
CONVSCAN_INLINE void ForEachStretch(const convscan_scan &p, const Sequences &sequences, int64_t b, int64_t t,
                                    int64_t end, int64_t c, int64_t channels, void *state, const Run &run) {
  if (t >= end) return;
  for (int64_t s = sequences.At(t); t < end; ++s) {
    const int64_t stop = Min(end, sequences.End(s));
    if (stop == t) continue;
    if (t == sequences.Begin(s)) LoadInitialState(p, b, sequences.Index(s), c, channels, state);
    run(t, stop);
    t = stop;
  }
}

// The same for a segment of all of time and channels from c on.
struct Packing {
  const convscan_scan &p;
  const Sequences &sequences;
  int64_t b, c;
};

// Runs steps [t, end) of channels [c, c + channels) of batch entry b, one stretch after the other.
inline void RunSteps(const convscan_scan &p, const Sequences &sequences, SegmentKernel kernel, int64_t b, int64_t t,
                     int64_t end, int64_t c, int64_t channels, bool streams, void *state) {
  ForEachStretch(p, sequences, b, t, end, c, channels, state, [&](int64_t first, int64_t stop) {
    Segment segment = Cut(p, b, first, stop - first, c, channels);
    segment.streams = streams;
    kernel(segment, state);
  });
}

// Whether `arrays` signals of a problem, of which the outputs are no inputs, are more than the caches hold: then stores go
// past them. What is read next is not there anyway, and lines that are written whole need not be read first.
inline bool IsTooLargeForCaches(const convscan_scan &p, int64_t arrays) {
  return arrays * p.batch * p.length * p.channels * StorageBytes(p.dtype) > LastLevelCacheBytes();
}
inline bool IsTooLargeForCaches(const convscan_scan &p) {
  return p.x != p.y && IsTooLargeForCaches(p, p.a_strides.time == 0 ? 2 : 3);
}

// Whether the sequential scan's may: where channels are neighbours, rows of y are whole cache lines. (Along time every group
// of channels looks itself.)
inline bool StoresMayStream(const convscan_scan &p) {
  const int64_t bytes = StorageBytes(p.dtype);
  const auto is_whole = [=](int64_t stride) { return stride * bytes % 64 == 0; };
  return IsTooLargeForCaches(p) &&
         (p.y_strides.channel != 1 || (reinterpret_cast<uintptr_t>(p.y) % kBlockBytes == 0 && is_whole(p.y_strides.time) &&
                                       is_whole(p.y_strides.batch)));
}

// Channels of a task where rows of time are walked one group of channels after the other: some tasks for each thread, so
// that one which is held up does not hold up all.
inline int64_t BlockWidth(const convscan_scan &p, int threads) {
  const int64_t tasks = 4 * int64_t{threads > 0 ? threads : ThreadCount()};
  return Max(1, CeilDiv(p.channels, CeilDiv(tasks, p.batch)));
}

// Below this many numbers the work is done before a second thread would have started (about 10 us).
inline constexpr int64_t kSmallProblem = 32768;

}  // namespace convscan::CONVSCAN_ISA
