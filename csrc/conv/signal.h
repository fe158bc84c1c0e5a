// Reading the input of a convolution from any layout into packed tiles, and writing its output back.
//
// Two packed forms: a row (one batch and channel, consecutive times) and lanes (rows of W values, one per time, a lane
// being a channel or a segment of time). Both are in the compute type, and whatever surrounds the sequence is filled
// in, so that the arithmetic meets neither edges nor strides nor half types.
#pragma once

#include <string.h>

#include "conv/activation.h"
#include "conv/gate.h"
#include "convscan.h"
#include "core/arena.h"
#include "core/parallel.h"
#include "core/vector.h"
#include "core/workspace.h"

namespace convscan::CONVSCAN_ISA {

// Multiply-adds below which one thread works alone: that is some 5 microseconds at most (32768 with K = 4 are 2.7),
// about what waking another costs, and much less than waiting for one on a busy machine.
inline constexpr int64_t kSerialWork = 65536;

CONVSCAN_INLINE int Threads(int asked, int64_t work) {
  if (work < kSerialWork) return 1;
  return asked > 0 ? asked : ThreadCount();
}

// How many pieces of time each of `tasks` independent sequences is cut into, so that threads finish together.
// Working in place, a sequence is one piece: the next piece's past would be overwritten.
inline int64_t TimePieces(int64_t tasks, int threads, int64_t length, int64_t smallest, bool in_place) {
  if (threads == 1 || in_place || tasks >= 8 * threads) return 1;
  return Max(1, Min(CeilDiv(8 * threads, tasks), length / smallest));
}

CONVSCAN_INLINE int64_t RoundUp(int64_t n, int64_t multiple) { return CeilDiv(n, multiple) * multiple; }

// The samples of one array, times a gate if it has one, and what lies around them: zeros, or `state` just before time 0.
template <class S>
struct Signal {
  using T = Compute<S>;
  static constexpr int W = kLanes<T>;

  const S *x;
  convscan_strides strides;
  const S *state;
  convscan_strides state_strides;
  int64_t length, channels, history;  // history: samples in state
  Gate<S> gate{};

  const S *At(int64_t b, int64_t t, int64_t n) const {
    return x + b * strides.batch + t * strides.time + n * strides.channel;
  }
  const S *StateAt(int64_t b, int64_t t, int64_t n) const {
    return state + b * state_strides.batch + (t + history) * state_strides.time + n * state_strides.channel;
  }
  T Sample(int64_t b, int64_t t, int64_t n) const {
    if (t >= 0) return t < length ? LoadScalar(At(b, t, n)) : T(0);
    return state != nullptr && t >= -history ? LoadScalar(StateAt(b, t, n)) : T(0);
  }

  // out[i] = x[b, t + i, n], 0 <= i < count.
  void PackRow(int64_t b, int64_t n, int64_t t, int64_t count, T *out) const {
    const int64_t inside = Min(count, length - t);
    int64_t i = Min(count, Max(0, state == nullptr ? -t : -history - t));  // nothing lies before
    memset(out, 0, static_cast<size_t>(i) * sizeof(T));
    for (; i < count && t + i < 0; ++i) out[i] = Sample(b, t + i, n);
    if (i < inside) {
      const S *from = At(b, t, n);
      if (strides.time == 1)
        for (; i + W <= inside; i += W) Store<W>(out + i, Load<W>(from + i));
      for (; i < inside; ++i) out[i] = LoadScalar(from + i * strides.time);
    }
    for (; i < count; ++i) out[i] = T(0);
    gate.MultiplyRow(b, n, t, count, out);
  }

  // x[b, t + i, n + c W + lane] to out[i row + c plane + lane], 0 <= i < count; zero beyond the last channel. Rows in
  // order, so that memory sees whole rows of channels. U vectors c stand side by side (see ColumnAt).
  template <int U = 1>
  void PackColumns(int64_t b, int64_t n, int64_t columns, int64_t t, int64_t count, T *out, int64_t row,
                   int64_t plane) const {
    const int64_t width = Min(columns * W, channels - n);
    for (int64_t i = 0; i < count; ++i) {
      const bool inside = t + i >= 0 && t + i < length;
      const bool before = t + i < 0 && state != nullptr && t + i >= -history;
      const S *from = inside ? At(b, t + i, n) : before ? StateAt(b, t + i, n) : nullptr;
      PackChannels<U>(from, inside ? strides.channel : state_strides.channel, width, columns, out + i * row, plane);
    }
    gate.template MultiplyColumns<U>(b, n, columns, t, count, out, row, plane);
  }

  // out[i][lane] = x at time start + t + i of each lane, 0 <= i < count.
  void PackLanes(const Lane (&lanes)[W], int64_t t, int64_t count, T *out) const {
    int64_t low = -t, high = length - t;
    const S *from[W];
    for (int l = 0; l < W; ++l) {
      from[l] = At(lanes[l].batch, lanes[l].start + t, lanes[l].channel);
      low = Max(low, -lanes[l].start - t);
      high = Min(high, length - lanes[l].start - t);
    }
    low = Min(Max(low, 0), count);
    high = Max(Min(high, count), low);
    PackEdge(lanes, t, 0, low, out);
    int64_t i = low;
    if (strides.time == 1) {
      for (; i + W <= high; i += W) {
        Vec<T, W> v[W];
#pragma GCC unroll 16
        for (int l = 0; l < W; ++l) v[l] = Load<W>(from[l] + i);
        Transpose<T, W>(v);
#pragma GCC unroll 16
        for (int l = 0; l < W; ++l) Store<W>(out + (i + l) * W, v[l]);
      }
    }
    for (; i < high; ++i)
      for (int l = 0; l < W; ++l) out[i * W + l] = LoadScalar(from[l] + i * strides.time);
    PackEdge(lanes, t, high, count, out);
    gate.MultiplyLanes(lanes, t, count, out);
  }

 private:
  template <int U>
  static void PackChannels(const S *from, int64_t stride, int64_t width, int64_t columns, T *out, int64_t plane) {
    int64_t c = 0;
    if (from == nullptr) {
      for (; c < columns; ++c) Store<W>(out + ColumnAt<U, W>(c, plane), Vec<T, W>{});
      return;
    }
    if (stride == 1)
      for (; (c + 1) * W <= width; ++c) Store<W>(out + ColumnAt<U, W>(c, plane), Load<W>(from + c * W));
    for (; c < columns; ++c)
      for (int l = 0; l < W; ++l)
        out[ColumnAt<U, W>(c, plane) + l] = c * W + l < width ? LoadScalar(from + (c * W + l) * stride) : T(0);
  }

  void PackEdge(const Lane (&lanes)[W], int64_t t, int64_t begin, int64_t end, T *out) const {
    for (int64_t i = begin; i < end; ++i)
      for (int l = 0; l < W; ++l) out[i * W + l] = Sample(lanes[l].batch, lanes[l].start + t + i, lanes[l].channel);
  }
};

template <int W, class S>
CONVSCAN_INLINE void StoreStreamAs(S *p, Vec<Compute<S>, W> v) {
  if constexpr (kSame<S, BFloat16>) {
    StoreStream<W, uint16_t>(&p->bits, ToBFloat16<W>(v));
  } else if constexpr (kSame<S, Float16>) {
    StoreStream<W, uint16_t>(&p->bits, ToFloat16<W>(v));
  } else if constexpr (kSame<S, WideFloat32>) {
    StoreStream<W, float>(&p->value, __builtin_convertvector(v, Vec<float, W>));
  } else {
    StoreStream<W, S>(p, v);
  }
}

// Where results go that lie packed as a Signal does; times outside of 0 <= t < length are left out.
template <class S>
struct Target {
  using T = Compute<S>;
  static constexpr int W = kLanes<T>;

  S *y;
  convscan_strides strides;
  int64_t length, channels;

  S *At(int64_t b, int64_t t, int64_t n) const {
    return y + b * strides.batch + t * strides.time + n * strides.channel;
  }

  // z[i W + c plane + lane] to y[b, t + i, n + c W + lane], 0 <= i < count.
  void StoreColumns(int64_t b, int64_t n, int64_t columns, int64_t t, int64_t count, const T *z, int64_t plane,
                    bool stream = false) const {
    const int64_t width = Min(columns * W, channels - n), end = Min(count, length - t);
    for (int64_t i = Max(0, -t); i < end; ++i) {
      S *const to = At(b, t + i, n);
      const T *const from = z + i * W;
      int64_t c = 0;
      if (strides.channel == 1) {
        if (stream)
          for (; (c + 1) * W <= width; ++c) StoreStreamAs<W, S>(to + c * W, Load<W>(from + c * plane));
        else
          for (; (c + 1) * W <= width; ++c) Store<W>(to + c * W, Load<W>(from + c * plane));
      }
      for (int64_t m = c * W; m < width; ++m) StoreScalar(to + m * strides.channel, from[m / W * plane + m % W]);
    }
  }

  // z[i][lane] to the time start + t + i of each of the first lane_count lanes.
  void StoreLanes(const Lane (&lanes)[W], int lane_count, int64_t t, int64_t count, const T *z,
                  bool stream = false) const {
    S *to[W];
    int64_t begin[W], end[W], low = 0, high = count;
    for (int l = 0; l < lane_count; ++l) {
      const int64_t start = lanes[l].start + t;
      to[l] = At(lanes[l].batch, start, lanes[l].channel);
      end[l] = Max(0, Min(count, length - start));
      begin[l] = Min(end[l], Max(0, -start));
      low = Max(low, begin[l]);
      high = Min(high, end[l]);
    }
    int64_t i = low;
    if (strides.time == 1) {
      for (; i + W <= high; i += W) {
        Vec<T> v[W];
#pragma GCC unroll 16
        for (int r = 0; r < W; ++r) v[r] = Load<W>(z + (i + r) * W);
        Transpose<T>(v);
        if (stream && reinterpret_cast<uintptr_t>(to[0] + i) % 64 == 0)
          for (int l = 0; l < lane_count; ++l) StoreStreamAs<W, S>(to[l] + i, v[l]);
        else
          for (int l = 0; l < lane_count; ++l) Store<W>(to[l] + i, v[l]);
      }
    }
    for (int l = 0; l < lane_count; ++l) {
      for (int64_t r = begin[l]; r < Min(low, end[l]); ++r) StoreScalar(to[l] + r * strides.time, z[r * W + l]);
      for (int64_t r = Max(i, begin[l]); r < end[l]; ++r) StoreScalar(to[l] + r * strides.time, z[r * W + l]);
    }
  }
};

template <class S>
Gate<S> PreGate(const convscan_conv &p) {
  return {static_cast<const S *>(p.pre_gate), p.pre_gate_strides, p.length, p.channels};
}
template <class S>
Gate<S> PostGate(const convscan_conv &p) {
  return {static_cast<const S *>(p.post_gate), p.post_gate_strides, p.length, p.channels};
}

template <class S>
Signal<S> InputOf(const convscan_conv &p) {
  return {static_cast<const S *>(p.x),
          p.x_strides,
          p.taps > 1 ? static_cast<const S *>(p.state) : nullptr,
          p.state_strides,
          p.length,
          p.channels,
          p.taps - 1,
          PreGate<S>(p)};
}

template <class S>
Target<S> OutputOf(const convscan_conv &p) {
  return {static_cast<S *>(p.y), p.y_strides, p.length, p.channels};
}

// Samples before an output that can matter: all of the filter's, unless only zeros lie there.
inline int64_t Reach(const convscan_conv &p) {
  return p.state != nullptr ? p.taps - 1 : Min(p.taps - 1, p.length - 1 + p.origin);
}

template <class S>
const S *FilterOf(const convscan_conv &p, int64_t b, int64_t n) {
  return static_cast<const S *>(p.h) + b * p.h_batch_stride +
         (p.filter_group > 1 ? n / p.filter_group : n) * p.h_channel_stride;
}
template <class S>
Compute<S> BiasOf(const convscan_conv &p, int64_t b, int64_t n) {
  return p.bias == nullptr
             ? Compute<S>(0)
             : LoadScalar(static_cast<const S *>(p.bias) + b * p.bias_batch_stride + n * p.bias_stride);
}

// The first `taps` taps of adjacent channels, as Signal::PackColumns packs times.
template <class S, int U = 1>
void PackFilterColumns(const convscan_conv &p, int64_t b, int64_t n, int64_t columns, int64_t taps, Compute<S> *out,
                       int64_t row, int64_t plane) {
  if (p.filter_group <= 1) {
    const Signal<S> filters{static_cast<const S *>(p.h), {p.h_batch_stride, p.h_tap_stride, p.h_channel_stride},
                            nullptr,                     {},
                            p.taps,                      p.channels,
                            0};
    return filters.template PackColumns<U>(b, n, columns, 0, taps, out, row, plane);
  }
  constexpr int W = Signal<S>::W;
  for (int64_t i = 0; i < columns * W; ++i) {
    const S *const from = n + i < p.channels ? FilterOf<S>(p, b, n + i) : nullptr;
    for (int64_t k = 0; k < taps; ++k)
      out[k * row + ColumnAt<U, W>(i / W, plane) + i % W] =
          from == nullptr ? Compute<S>(0) : LoadScalar(from + k * p.h_tap_stride);
  }
}

// The bias of adjacent channels likewise; no bias is zeros.
template <class S, int U = 1>
void PackBiasColumns(const convscan_conv &p, int64_t b, int64_t n, int64_t columns, Compute<S> *out, int64_t plane) {
  const Signal<S> bias{static_cast<const S *>(p.bias), {p.bias_batch_stride, 0, p.bias_stride}, nullptr, {},
                       p.bias != nullptr,              p.channels,                              0};
  bias.template PackColumns<U>(b, n, columns, 0, 1, out, 0, plane);
}

// ---- the filter's gradient ----

inline int64_t Sequences(const convscan_filter_gradient &p) { return p.boundaries == nullptr ? 1 : p.sequences; }
inline int64_t SequenceBegin(const convscan_filter_gradient &p, int64_t s) {
  return p.boundaries == nullptr ? 0 : p.boundaries[s];
}
inline int64_t SequenceEnd(const convscan_filter_gradient &p, int64_t s) {
  return p.boundaries == nullptr ? p.length : p.boundaries[s + 1];
}

inline int64_t LongestSequence(const convscan_conv &p) { return p.length; }  // packed ones have been taken apart
inline int64_t LongestSequence(const convscan_filter_gradient &p) {
  int64_t longest = 1;
  for (int64_t s = 0; s < Sequences(p); ++s) longest = Max(longest, SequenceEnd(p, s) - SequenceBegin(p, s));
  return longest;
}

// The samples of one sequence, or their gradient, with their gates.
template <class S>
Signal<S> SamplesOf(const convscan_filter_gradient &p, int64_t begin, int64_t length, int64_t sequence) {
  const S *const state = p.taps > 1 ? static_cast<const S *>(p.state) : nullptr;
  const Gate<S> gate{p.x_gate == nullptr ? nullptr : static_cast<const S *>(p.x_gate) + begin * p.x_gate_strides.time,
                     p.x_gate_strides, length, p.channels};
  return {static_cast<const S *>(p.x) + begin * p.x_strides.time,
          p.x_strides,
          state == nullptr ? nullptr : state + sequence * p.state_sequence_stride,
          p.state_strides,
          length,
          p.channels,
          p.taps - 1,
          gate};
}
template <class S>
Signal<S> GradientOf(const convscan_filter_gradient &p, int64_t begin, int64_t length) {
  const Gate<S> gate{p.dz_gate == nullptr ? nullptr : static_cast<const S *>(p.dz_gate) + begin * p.dz_gate_strides.time,
                     p.dz_gate_strides, length, p.channels};
  return {static_cast<const S *>(p.dz) + begin * p.dz_strides.time, p.dz_strides, nullptr, {}, length, p.channels, 0,
          gate};
}

// The problem without the taps that meet no sample, whose gradient it sets to zero.
template <class S>
convscan_filter_gradient WithoutIdleTaps(const convscan_filter_gradient &problem) {
  using T = Compute<S>;
  convscan_filter_gradient p = problem;
  const int64_t samples = p.batch == 0 ? 0 : p.length;
  int64_t first = 0, end = p.taps;
  if (p.state == nullptr || samples == 0) {
    first = Max(0, Min(p.taps, p.origin - (samples - 1)));
    end = Max(first, Min(p.taps, samples == 0 ? 0 : p.origin + samples));
  }
  for (int64_t k = 0; k < p.taps; ++k)
    for (int64_t c = 0; (k < first || k >= end) && c < p.channels; ++c)
      static_cast<T *>(p.dh)[k * p.dh_tap_stride + c * p.dh_channel_stride] = T{0};
  p.dh = static_cast<T *>(p.dh) + first * p.dh_tap_stride;
  p.taps = end - first;
  p.origin -= first;
  return p;
}

template <class S>
bool IsInPlace(const convscan_conv &p) {
  return p.x == p.y;
}

// ---- output ----

// Input and output together exceed what a last-level cache usually holds. Below, streaming is bound by memory where an
// ordinary store is not (Zen 5 with 32 MiB, copying 16 and 24 MiB: 86 GB/s against 220 and 190).
template <class S>
bool StreamsOutput(const convscan_conv &p) {
  return p.x != p.y && p.batch * p.length * p.channels * static_cast<int64_t>(sizeof(S)) >= 2 * kStreamBytes;
}

// z[i] = act(z[i]), 0 <= i < count; may also touch up to the next multiple of W.
template <class T>
void ActivateRow(T *z, int64_t count, convscan_activation activation) {
  constexpr int W = kLanes<T>, N = 4;
  const auto run = [&](const auto &activate) {
    int64_t i = 0;
    for (; i + (N - 1) * W < count; i += N * W) {
      Vec<T> v[N];
#pragma GCC unroll 4
      for (int k = 0; k < N; ++k) v[k] = Load<W>(z + i + k * W);
      activate(v);
#pragma GCC unroll 4
      for (int k = 0; k < N; ++k) Store<W>(z + i + k * W, v[k]);
    }
    for (; i < count; i += W) {
      Vec<T> v[] = {Load<W>(z + i)};
      activate(v);
      Store<W>(z + i, v[0]);
    }
  };
  if (activation == CONVSCAN_SILU) run([](auto &v) { Silu<W, T>(v); });
  else if (activation == CONVSCAN_GELU) run([](auto &v) { Gelu<W, T>(v); });
}

// y[i stride] = z[i], 0 <= i < count.
template <class S>
void StoreRow(S *y, int64_t stride, const Compute<S> *z, int64_t count, bool stream) {
  constexpr int W = kLanes<Compute<S>>;
  int64_t i = 0;
  if (stride == 1) {
    if (stream) {
      // Whole lines only: one written partly past the caches and partly through them costs more than either.
      constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(S));
      const int64_t misaligned = static_cast<int64_t>(reinterpret_cast<uintptr_t>(y) % 64 / sizeof(S));
      for (const int64_t first = Min(count, (kLine - misaligned) % kLine); i < first; ++i) StoreScalar(y + i, z[i]);
      for (const int64_t last = i + (count - i) / kLine * kLine; i < last; i += W)
        StoreStreamAs<W, S>(y + i, Load<W>(z + i));
    }
    for (; i + W <= count; i += W) Store<W>(y + i, Load<W>(z + i));
  }
  for (; i < count; ++i) StoreScalar(y + i * stride, z[i]);
}

}  // namespace convscan::CONVSCAN_ISA
