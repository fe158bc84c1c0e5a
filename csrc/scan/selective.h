// What the selective scan and its gradient share: blocks of channels, tiles of time, and the gates exp(dt A).
//
//   h[t,n] = exp(dt[t] A[n]) h[t-1,n] + dt[t] u[t] B[t,n],   y[t] = sum_n C[t,n] h[t,n]     in every channel
//
// Lanes are channels. A tile of time of a block of channels is brought into vectors, [channels / lanes][steps][lanes],
// whatever its order in memory. Then the states are followed through the tile a few at a time: they stay in registers,
// and nothing of the size (time, channels, states) exists. B and C, which all channels of a group share, are spread over
// lanes once for all of the block's vectors.
#pragma once

#include "conv/activation.h"
#include "core/arena.h"
#include "core/exp.h"
#include "core/parallel.h"
#include "core/workspace.h"
#include "scan/plane.h"

namespace convscan::CONVSCAN_ISA {

// Steps of a tile and most channels of a block: the rows of a block, three arrays in single precision, take 48 KiB.
inline constexpr int64_t kSelectiveSteps = 64, kSelectiveChannels = 64;

// W numbers of P parts: the real parts, and the imaginary ones of complex numbers.
template <class T, int P>
struct Planar {
  Vec<T> part[P];
};

template <class T, int P>
CONVSCAN_INLINE Planar<T, P> LoadPlanar(const T *p) {
  Planar<T, P> v;
#pragma GCC unroll 2
  for (int i = 0; i < P; ++i) v.part[i] = Load<kLanes<T>>(p + i * kLanes<T>);
  return v;
}
template <class T, int P>
CONVSCAN_INLINE void StorePlanar(T *p, const Planar<T, P> &v) {
#pragma GCC unroll 2
  for (int i = 0; i < P; ++i) Store<kLanes<T>>(p + i * kLanes<T>, v.part[i]);
}

// a h + x b for a real x.
template <class T, int P>
CONVSCAN_INLINE Planar<T, P> Next(const Planar<T, P> &a, const Planar<T, P> &h, Vec<T> x, const Planar<T, P> &b) {
  if constexpr (P == 1) {
    return {{a.part[0] * h.part[0] + x * b.part[0]}};
  } else {
    return {{a.part[0] * h.part[0] + (x * b.part[0] - a.part[1] * h.part[1]),
             a.part[0] * h.part[1] + (x * b.part[1] + a.part[1] * h.part[0])}};
  }
}

// The sum over parts, which is Re(conj(a) b).
template <class T, int P>
CONVSCAN_INLINE Vec<T> Dot(const Planar<T, P> &a, const Planar<T, P> &b) {
  if constexpr (P == 1) {
    return a.part[0] * b.part[0];
  } else {
    return a.part[0] * b.part[0] + a.part[1] * b.part[1];
  }
}

// conj(a) b
template <class T, int P>
CONVSCAN_INLINE Planar<T, P> ConjugateProduct(const Planar<T, P> &a, const Planar<T, P> &b) {
  if constexpr (P == 1) {
    return {{a.part[0] * b.part[0]}};
  } else {
    return {{a.part[0] * b.part[0] + a.part[1] * b.part[1], a.part[0] * b.part[1] - a.part[1] * b.part[0]}};
  }
}

// A in the units of the exponentials: log2 e Re A, and for complex numbers 2 / pi Im A, each as a sum of two numbers.
template <class T, int P>
struct Rate {
  Split<kLanes<T>, T> parts[P];
};

template <class T, int P>
CONVSCAN_INLINE Rate<T, P> LoadRate(const T *p) {
  Rate<T, P> rate;
#pragma GCC unroll 2
  for (int i = 0; i < P; ++i)
    rate.parts[i] = {Load<kLanes<T>>(p + 2 * i * kLanes<T>), Load<kLanes<T>>(p + (2 * i + 1) * kLanes<T>)};
  return rate;
}

// exp(dt A)
template <class T, int P>
CONVSCAN_INLINE Planar<T, P> Gate(Vec<T> dt, const Rate<T, P> &rate) {
  constexpr int W = kLanes<T>;
  const Vec<T> magnitude = Exp2OfProduct<W, T>(dt, rate.parts[0]);
  if constexpr (P == 1) {
    return {{magnitude}};
  } else {
    Vec<T> cosine, sine;
    CosSinOfProduct<W, T>(dt, rate.parts[1], cosine, sine);
    return {{magnitude * cosine, magnitude * sine}};
  }
}

// ---- blocks ----

// Some channels of one group of one batch entry, and which of its sequences.
struct SelectiveBlock {
  int64_t batch, group, channel, channels, vectors;
  int64_t first_sequence, last_sequence;
};

// Steps [begin, end) of one sequence, and the first of its tiles among those of all: each has its own row of checkpoints.
struct SelectiveSpan {
  int64_t begin, end, first_tile;

  SelectiveSpan(const convscan_selective &p, int64_t sequence)
      : begin(p.boundaries == nullptr ? 0 : p.boundaries[sequence]),
        end(p.boundaries == nullptr ? p.length : p.boundaries[sequence + 1]),
        // A sequence has at most one tile more than whole ones.
        first_tile(begin / kSelectiveSteps + sequence) {}
  int64_t Tiles() const { return CeilDiv(end - begin, kSelectiveSteps); }
};

inline int64_t SelectiveTiles(const convscan_selective &p) {
  return p.sequences == 1 ? CeilDiv(p.length, kSelectiveSteps) : p.length / kSelectiveSteps + p.sequences;
}

// Calls run(block) for the blocks of every batch entry and group, `width` channels a task and one of `parts` parts of the
// sequences, in parallel.
template <class T, class Run>
bool ForEachSelectiveTask(const convscan_selective &p, int64_t width, int64_t parts, size_t workspace, const Run &run) {
  const int64_t in_group = p.channels / p.groups, shards = CeilDiv(in_group, width);
  constexpr int64_t kSmallProblem = 1 << 13;  // numbers whose gates one thread computes before another has woken up
  const bool is_small = p.batch * p.length * p.channels * Max(1, p.states) < kSmallProblem;
  bool failed = false;
  ParallelFor(p.batch * p.groups * shards * parts, is_small ? 1 : p.threads, [&](int64_t task) {
    void *const memory = Workspace(workspace);
    if (memory == nullptr) {
      __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
      return;
    }
    const int64_t part = task % parts, shard = task / parts % shards, group = task / parts / shards % p.groups;
    const int64_t end = Min(in_group, (shard + 1) * width);
    for (int64_t c = shard * width; c < end; c += kSelectiveChannels) {
      const int64_t channels = Min(kSelectiveChannels, end - c);
      run(SelectiveBlock{task / parts / shards / p.groups, group, group * in_group + c, channels,
                         CeilDiv(channels, kLanes<T>), part * p.sequences / parts, (part + 1) * p.sequences / parts},
          shard, memory);
    }
  });
  return !failed;
}

// The first `count` lanes, zero in the others.
template <class S, class T = Compute<S>>
CONVSCAN_INLINE Vec<T> LoadLanes(const S *p, int64_t count) {
  if (count >= kLanes<T>) return Load<kLanes<T>>(p);
  if constexpr (kSame<S, T>) return LoadPart<kLanes<T>>(p, count);
  T lanes[kLanes<T>] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i] = LoadScalar(p + i);
  return Load<kLanes<T>>(lanes);
}
template <class S, class T = Compute<S>>
CONVSCAN_INLINE void StoreLanes(S *p, Vec<T> v, int64_t count) {
  if (count >= kLanes<T>) return Store<kLanes<T>>(p, v);
  if constexpr (kSame<S, T>) return StorePart<kLanes<T>>(p, v, count);
  T lanes[kLanes<T>];
  Store<kLanes<T>>(lanes, v);
  for (int64_t i = 0; i < count; ++i) StoreScalar(p + i, lanes[i]);
}

// value(i) for the channels of a block, in [vectors][lanes]; zero in the lanes beyond.
template <class T, class Value>
CONVSCAN_INLINE void FillChannels(const SelectiveBlock &block, T *out, const Value &value) {
  for (int64_t i = 0; i < block.vectors * kLanes<T>; ++i) out[i] = i < block.channels ? value(i) : T(0);
}

// value(n, i, part) for states and channels, in [states][vectors][parts][lanes], zero in the lanes beyond.
template <class T, int P, class Value>
CONVSCAN_INLINE void FillStates(const SelectiveBlock &block, int64_t states, T *out, const Value &value) {
  constexpr int W = kLanes<T>;
  for (int64_t n = 0; n < states; ++n)
    for (int64_t i = 0; i < block.vectors * W; ++i)
      for (int part = 0; part < P; ++part)
        out[((n * block.vectors + i / W) * P + part) * W + i % W] = i < block.channels ? value(n, i, part) : T(0);
}

// The states of a block to an array.
template <class T, int P>
CONVSCAN_INLINE void PutStates(const convscan_states &out, const SelectiveBlock &block, int64_t sequence,
                               int64_t count, const T *states) {
  constexpr int W = kLanes<T>;
  T *const data = static_cast<T *>(out.data);
  for (int64_t i = 0; i < block.channels; ++i)
    for (int64_t n = 0; n < count; ++n)
      for (int part = 0; part < P; ++part)
        data[(block.batch * out.batch + sequence * out.sequence + (block.channel + i) * out.channel + n * out.state) *
                 P +
             part] = states[((n * block.vectors + i / W) * P + part) * W + i % W];
}

template <class T, int P>
void FillRates(const convscan_selective &p, const SelectiveBlock &block, T *rates) {
  constexpr double kUnits[] = {1.4426950408889634074, 0.63661977236758134308};  // log2 e, 2 / pi
  constexpr double kUnitErrors[] = {2.0355273740931033e-17, -3.935735335036497e-17};
  const T *const a = static_cast<const T *>(p.a.data);
  FillStates<T, 2 * P>(block, p.states, rates, [&](int64_t n, int64_t i, int part) -> T {
    const double unit = kUnits[part / 2], error = kUnitErrors[part / 2];
    const double value = a[((block.channel + i) * p.a.channel + n * p.a.state) * P + part / 2];
    const T high = static_cast<T>(value * unit);
    if (part % 2 == 0) return high;
    // value unit - high: the product in two doubles, by a fused multiply-add or exactly in single precision.
    const T low = static_cast<T>(__builtin_fma(value, unit, -static_cast<double>(high)) + value * error);
    return high - high == 0 ? low : T(0);
  });
}

template <class T, int P>
void FillFrom(const convscan_states &in, const SelectiveBlock &block, int64_t sequence, int64_t states, T *out) {
  const T *const data = static_cast<const T *>(in.data);
  FillStates<T, P>(block, states, out, [&](int64_t n, int64_t i, int part) -> T {
    if (data == nullptr) return 0;
    return data[(block.batch * in.batch + sequence * in.sequence + (block.channel + i) * in.channel + n * in.state) *
                    P +
                part];
  });
}

// ---- B and C ----

// Values of B or C for kStates states: at(cv, t) has [kStates][parts][lanes].
template <class T>
struct Spread {
  const T *base;
  int64_t vector, time;
  CONVSCAN_INLINE const T *At(int64_t cv, int64_t t) const { return base + cv * vector + t * time; }
};

// Numbers that Spread needs for a block.
template <class T, int P>
constexpr int64_t kSpreadNumbers = kSelectiveSteps * P * kLanes<T>;
static_assert(kSelectiveChannels <= kSelectiveSteps);

// Spreads states n to n + count over lanes; parts are multiplied by `scales`.
template <class T, int P>
CONVSCAN_INLINE Spread<T> SpreadStates(const convscan_projection &b, const SelectiveBlock &block, int64_t t0,
                                       int64_t steps, int64_t n, int64_t count, const T (&scales)[2], T *out) {
  constexpr int W = kLanes<T>;
  const T *const data = static_cast<const T *>(b.data);
  if (b.is_constant) {
    for (int64_t cv = 0; cv < block.vectors; ++cv)
      for (int64_t m = 0; m < count; ++m)
        for (int part = 0; part < P; ++part)
          for (int64_t lane = 0; lane < W; ++lane) {
            const int64_t i = cv * W + lane;
            out[((cv * count + m) * P + part) * W + lane] =
                i < block.channels
                    ? data[((block.channel + i) * b.group + (n + m) * b.state) * P + part] * scales[part]
                    : T(0);
          }
    return {out, count * P * W, 0};
  }
  const T *const row = data + (block.batch * b.batch + block.group * b.group + t0 * b.time + n * b.state) * P;
  for (int64_t t = 0; t < steps; ++t)
    for (int64_t m = 0; m < count; ++m)
      for (int part = 0; part < P; ++part)
        Store<W>(out + ((t * count + m) * P + part) * W,
                 Broadcast<T>(row[(t * b.time + m * b.state) * P + part] * scales[part]));
  return {out, 0, count * P * W};
}

// y = Re(C h), times two where conjugate pairs are represented by one state each.
template <class T, int P>
inline constexpr T kOutputScales[2] = {T(P), T(-P)};
template <class T>
inline constexpr T kInputScales[2] = {T(1), T(1)};

// ---- rows ----

template <class T>
CONVSCAN_INLINE T *RowAt(T *rows, int64_t cv, int64_t t) {
  return rows + (cv * kSelectiveSteps + t) * kLanes<T>;
}

// The step sizes that a row of delta makes.
template <class T>
CONVSCAN_INLINE Vec<T> StepSize(const convscan_selective &p, Vec<T> delta) {
  return p.softplus ? Softplus<kLanes<T>, T>(delta) : delta;
}

// Lanes of vector cv that are channels.
template <class T>
CONVSCAN_INLINE int64_t LanesOf(const SelectiveBlock &block, int64_t cv) {
  return block.channels - cv * kLanes<T>;
}

}  // namespace convscan::CONVSCAN_ISA
