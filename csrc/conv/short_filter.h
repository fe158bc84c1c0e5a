// Direct convolution with a few taps, bound by memory: every sample is read once, in the order memory likes, and what
// the taps look back on stays in registers or in the first-level cache.
//
// Channels adjacent: blocks of a few rows of time by some hundreds of channels. The taps-1 samples before a block are
// kept in workspace, which also makes the edges, the state and working in place nothing special.
// Otherwise: row after row, vectors along time. Where samples lie side by side in the compute type, they are read and
// written where they lie; tiles of workspace stand for everything else: edges, strides, gates, half types.
// Outputs that no cache could hold are streamed past it in whole lines.
#pragma once

#include "conv/signal.h"

namespace convscan::CONVSCAN_ISA {

inline constexpr int kShortTaps = 16;

// ---- channels adjacent ----

// Rows of time per step: taps and past are loaded once for all of them, and each has an accumulator in a register.
inline constexpr int kShortRows = kVectorRegisters == 32 ? 8 : 4;

// Vectors of channels that go through a step together: as many as fill a line of memory, which is what streaming stores
// want whole, and pairs on AArch64, which moves two vectors in one instruction.
template <class S>
inline constexpr int kShortGroup =
    kVectorBytes == 16 ? 2 : 64 / (kLanes<Compute<S>> * static_cast<int>(sizeof(S)));

// Taps and past of a block of channels. Long pieces of rows suit memory better than a block that leaves room in the
// first-level cache (Zen 5, two threads, 1024 x 1536, K = 4: 115 to 143 GB/s with 48 KiB, 57 to 147 with 16, copying 250).
inline constexpr int64_t kShortBytes = 48 << 10;

template <class S>
struct ShortStep {
  using T = Compute<S>;
  static constexpr int W = kLanes<T>, U = kShortGroup<S>;

  const S *x;  // the first row of samples, and how far the next is
  int64_t x_step;
  S *y;
  int64_t y_step;
  const S *pre, *post;  // gates of these rows, or rows of ones; null where there is neither
  int64_t pre_step, post_step;
  // Per vector of channels, W values each: taps-1 rows of past, oldest first, which a step moves on; the taps; the bias.
  T *columns;
  bool has_bias, streams;
  convscan_activation activation;

  static constexpr int64_t Plane(int64_t taps) { return 2 * taps * W; }

  // `steps` times R rows of `width` channels, a multiple of U W. Older samples are added first, whatever R is. The past
  // has had its gate.
  template <bool kGated, int K, int R>
  static void Run(const ShortStep &of, int64_t width, int64_t steps) {
    ShortStep step = of;  // which no store can change
    for (int64_t i = 0; i < steps; ++i) {
      step.template RunRows<kGated, K, R>(width);
      step.x += R * step.x_step;
      step.y += R * step.y_step;
      if constexpr (kGated) {
        step.pre += R * step.pre_step;
        step.post += R * step.post_step;
      }
    }
  }

 private:
  template <bool kGated, int K, int R>
  CONVSCAN_INLINE void RunRows(int64_t width) const {
    const ShortStep &step = *this;
    T *column = step.columns;
    for (int64_t n = 0; n < width; n += U * W, column += U * Plane(K)) {
      Vec<T, W> tap[U][K], past[U][K], sum[U][R];
#pragma GCC unroll 4
      for (int u = 0; u < U; ++u) {
#pragma GCC unroll 16
        for (int k = 0; k < K; ++k) tap[u][k] = Load<W>(column + u * Plane(K) + (K - 1 + k) * W);
#pragma GCC unroll 16
        for (int j = 0; j < K - 1; ++j) past[u][j] = Load<W>(column + u * Plane(K) + j * W);
      }
      // From memory, the rows of the next step come meanwhile: their segments are too short for the processor to see.
      if (step.streams) {
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          __builtin_prefetch(step.x + (R + r) * step.x_step + n);
          if constexpr (kGated) {
            __builtin_prefetch(step.pre + (R + r) * step.pre_step + n);
            __builtin_prefetch(step.post + (R + r) * step.post_step + n);
          }
        }
      }
#pragma GCC unroll 32
      for (int j = 0; j < K - 1 + R; ++j) {
        const int now = j - (K - 1);
        Vec<T, W> sample[U];
#pragma GCC unroll 4
        for (int u = 0; u < U; ++u) {
          sample[u] = now < 0 ? past[u][now < 0 ? j : 0] : Load<W>(step.x + now * step.x_step + n + u * W);
          if constexpr (kGated)
            if (now >= 0) sample[u] *= Load<W>(step.pre + now * step.pre_step + n + u * W);
          if (j >= R) Store<W>(column + u * Plane(K) + (j - R) * W, sample[u]);
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          const int k = r - now;
#pragma GCC unroll 4
          for (int u = 0; u < U; ++u) {
            if (k == K - 1) sum[u][r] = sample[u] * tap[u][k];
            else if (k >= 0 && k < K) sum[u][r] += sample[u] * tap[u][k];
          }
        }
      }
      if (step.has_bias) {
#pragma GCC unroll 4
        for (int u = 0; u < U; ++u) {
          const Vec<T, W> bias = Load<W>(column + u * Plane(K) + (2 * K - 1) * W);
#pragma GCC unroll 8
          for (int r = 0; r < R; ++r) sum[u][r] += bias;
        }
      }
      if constexpr (kGated) {
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
          for (int u = 0; u < U; ++u) sum[u][r] *= Load<W>(step.post + r * step.post_step + n + u * W);
      }
      if (step.activation == CONVSCAN_IDENTITY) {
        StoreRows<R>(step, sum, n);
      } else {
        Vec<T, W> z[U][R];
#pragma GCC unroll 4
        for (int u = 0; u < U; ++u)
#pragma GCC unroll 8
          for (int r = 0; r < R; ++r) z[u][r] = sum[u][r];
        ActivateRow<T>(reinterpret_cast<T *>(z), U * R * W, step.activation);
        StoreRows<R>(step, z, n);
      }
    }
  }

  template <int R>
  static CONVSCAN_INLINE void StoreRows(const ShortStep &step, const Vec<T, W> (&sum)[U][R], int64_t n) {
    if (step.streams) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int u = 0; u < U; ++u) StoreStreamAs<W, S>(step.y + r * step.y_step + n + u * W, sum[u][r]);
    } else {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int u = 0; u < U; ++u) Store<W>(step.y + r * step.y_step + n + u * W, sum[u][r]);
    }
  }
};

// The two ways of ShortStep::Run for a number of taps: several rows at once, and one.
template <class S>
struct ShortRun {
  void (*rows)(const ShortStep<S> &, int64_t, int64_t);
  void (*row)(const ShortStep<S> &, int64_t, int64_t);
};
template <class S, bool kGated, int... I>
ShortRun<S> ChooseShortRun(int64_t taps, Indices<I...>) {
  static constexpr ShortRun<S> kRuns[] = {
      {ShortStep<S>::template Run<kGated, I + 1, kShortRows>, ShortStep<S>::template Run<kGated, I + 1, 1>}...};
  return kRuns[taps - 1];
}

// Workspace of one block of channels.
template <class S>
struct ShortColumns {
  using T = Compute<S>;
  static constexpr int W = kLanes<T>, kGroup = kShortGroup<S> * W;

  const convscan_conv &p;
  int64_t width, stride, plane;
  bool is_gated;
  ShortRun<S> run;
  T *columns;
  S *zeros, *edge, *ones, *gates;
  size_t bytes;

  ShortColumns(const convscan_conv &p, int64_t width, void *workspace)
      : p(p),
        width(width),
        stride(RoundUp(width, kGroup)),
        plane(ShortStep<S>::Plane(p.taps)),
        is_gated(p.pre_gate != nullptr || p.post_gate != nullptr),
        run(is_gated ? ChooseShortRun<S, true>(p.taps, MakeIndices<kShortTaps>{})
                     : ChooseShortRun<S, false>(p.taps, MakeIndices<kShortTaps>{})) {
    Arena arena(workspace);
    columns = arena.Take<T>(stride / W * plane);
    zeros = arena.Take<S>(stride);
    edge = arena.Take<S>((is_gated ? 4 : 2) * kShortRows * kGroup);
    ones = arena.Take<S>(is_gated ? stride : 0);
    gates = arena.Take<S>(CopiedGates(p) * kShortRows * stride);
    bytes = arena.Used();
  }

  // Gates whose channels are not adjacent, which a step reads from a copy.
  static int64_t CopiedGates(const convscan_conv &p) {
    return (p.pre_gate != nullptr && p.pre_gate_strides.channel != 1) +
           (p.post_gate != nullptr && p.post_gate_strides.channel != 1);
  }
  static int64_t BytesPerChannel(const convscan_conv &p) {
    return 2 * p.taps * static_cast<int64_t>(sizeof(T)) + CopiedGates(p) * kShortRows * static_cast<int64_t>(sizeof(S));
  }

  // Outputs [begin, end) of channels [n, n + width) of batch b.
  void Run(int64_t b, int64_t n, int64_t begin, int64_t end, bool stream) {
    const Signal<S> x = InputOf<S>(p);
    const Gate<S> pre = PreGate<S>(p), post = PostGate<S>(p);
    S *const pre_rows = gates;
    S *const post_rows = gates + (pre.factors != nullptr && pre.strides.channel != 1 ? kShortRows * stride : 0);
    x.PackColumns(b, n, stride / W, begin + p.origin - (p.taps - 1), p.taps - 1, columns, W, plane);
    PackParameters(b, n);
    const int64_t whole = width / kGroup * kGroup;
    // Gates that are copied, and channels that whole groups leave over, are seen to step by step.
    const bool runs_on = whole == width && CopiedGates(p) == 0;
    for (int64_t t = begin; t < end;) {
      // Samples past the end are zeros: rows of them are steps of their own.
      const int64_t now = t + p.origin;
      const bool has_samples = now < p.length;
      const int64_t alike = has_samples ? Min(end - t, p.length - now) : end - t;
      const bool is_row = alike < kShortRows;
      const int64_t rows = is_row ? 1 : kShortRows, steps = runs_on ? alike / rows : 1;
      ShortStep<S> step{has_samples ? x.At(b, now, n) : zeros,
                        has_samples ? p.x_strides.time : 0,
                        static_cast<S *>(p.y) + b * p.y_strides.batch + t * p.y_strides.time + n * p.y_strides.channel,
                        p.y_strides.time,
                        nullptr,
                        nullptr,
                        0,
                        0,
                        columns,
                        p.bias != nullptr,
                        stream,
                        p.activation};
      if (is_gated) {
        step.pre = GateRows(pre, b, now, n, rows, pre_rows, step.pre_step);
        step.post = GateRows(post, b, t, n, rows, post_rows, step.post_step);
      }
      if (whole < width) RunEdge(step, whole, rows);
      (is_row ? run.row : run.rows)(step, whole, steps);
      t += rows * steps;
    }
    if (stream) StreamFence();
  }

 private:
  void PackParameters(int64_t b, int64_t n) {
    PackFilterColumns<S>(p, b, n, stride / W, p.taps, columns + (p.taps - 1) * W, W, plane);
    PackBiasColumns<S>(p, b, n, stride / W, columns + (2 * p.taps - 1) * W, plane);
    memset(zeros, 0, static_cast<size_t>(stride) * sizeof(S));
    for (int64_t i = 0; is_gated && i < stride; ++i) StoreScalar(ones + i, T(1));
  }

  // The factors of the block's channels from time t on: where they lie, or copied, or ones.
  const S *GateRows(const Gate<S> &gate, int64_t b, int64_t t, int64_t n, int64_t count, S *copy,
                    int64_t &step) const {
    step = 0;
    if (gate.factors == nullptr || t >= p.length) return ones;
    step = gate.strides.time;
    if (gate.strides.channel == 1) return gate.At(b, t, n);
    step = stride;
    for (int64_t r = 0; r < count; ++r) {
      const S *const from = gate.At(b, t + r, n);
      for (int64_t i = 0; i < width; ++i) copy[r * stride + i] = from[i * gate.strides.channel];
    }
    return copy;
  }

  // The channels left over by whole groups, through a padded copy.
  void RunEdge(const ShortStep<S> &step, int64_t whole, int64_t count) {
    constexpr int64_t kRows = kShortRows * kGroup;
    ShortStep<S> last = step;
    const auto copy = [&](const S *from, int64_t from_step, int at) {
      S *const to = edge + at * kRows;
      for (int64_t r = 0; r < count; ++r)
        for (int64_t i = 0; i < kGroup; ++i)
          to[r * kGroup + i] = whole + i < width ? from[r * from_step + whole + i] : S{};
      return to;
    };
    last.x = copy(step.x, step.x_step, 0);
    last.y = edge + kRows;
    last.x_step = last.y_step = last.pre_step = last.post_step = kGroup;
    last.columns = columns + whole / W * plane;
    last.streams = false;
    if (is_gated) {
      last.pre = copy(step.pre, step.pre_step, 2);
      last.post = copy(step.post, step.post_step, 3);
    }
    (count == 1 ? run.row : run.rows)(last, kGroup, 1);
    for (int64_t r = 0; r < count; ++r)
      for (int64_t i = whole; i < width; ++i) step.y[r * step.y_step + i] = last.y[r * kGroup + i - whole];
  }
};

template <class S>
convscan_status ConvShortColumns(const convscan_conv &p) {
  constexpr int64_t kItem = static_cast<int64_t>(sizeof(S)), kLine = 64 / kItem;
  constexpr bool kFillsLines = ShortColumns<S>::kGroup * kItem % 64 == 0;
  const int threads = Threads(p.threads, p.batch * p.length * p.channels * p.taps);
  int64_t widest = kShortBytes / ShortColumns<S>::BytesPerChannel(p);
  if (IsInPlace<S>(p) && p.batch < threads) widest = Min(widest, CeilDiv(p.channels * p.batch, threads));
  widest = Max(kLine, widest / kLine * kLine);
  const int64_t width = RoundUp(CeilDiv(p.channels, CeilDiv(p.channels, widest)), kLine);
  const int64_t blocks = CeilDiv(p.channels, width);
  const int64_t pieces = TimePieces(p.batch * blocks, threads, p.length, 16 * p.taps, IsInPlace<S>(p));
  const int64_t piece = RoundUp(CeilDiv(p.length, pieces), kShortRows);
  const uintptr_t offsets = reinterpret_cast<uintptr_t>(p.y) |
                            static_cast<uintptr_t>((p.y_strides.time | p.y_strides.batch) * kItem);
  const bool stream = kFillsLines && StreamsOutput<S>(p) && offsets % 64 == 0;
  bool failed = false;
  ParallelFor(p.batch * blocks * pieces, threads, [&](int64_t task) {
    const int64_t n = task % blocks * width, b = task / blocks % p.batch, begin = task / blocks / p.batch * piece;
    const int64_t channels = Min(width, p.channels - n), end = Min(begin + piece, p.length);
    if (begin >= end) return;
    void *workspace = Workspace(ShortColumns<S>(p, width, nullptr).bytes);
    if (workspace == nullptr) return __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
    ShortColumns<S>(p, channels, workspace).Run(b, n, begin, end, stream);
  });
  return failed ? CONVSCAN_OUT_OF_MEMORY : CONVSCAN_OK;
}

// ---- vectors along time ----

// How a vector reaches back in time. On AVX-512 nearly every unaligned vector straddles two lines, which costs a load
// each: there the samples are shifted in registers, and sums of kShortPhases taps are shifted once more (K = 8, 8 MiB:
// 102 GB/s, 60 with unaligned loads, copying 94). Others load a vector for every tap.
inline constexpr bool kShiftsInRegisters = kVectorBytes == 64;
template <class T>
inline constexpr int kShortPhases = kLanes<T> == 16 ? 4 : kLanes<T>;

// Samples before the first output that are read, though not all of them count. Only unaligned loads want them where the
// first output's sample lies.
template <class T>
int64_t ShortPast(int64_t taps) {
  return kShiftsInRegisters ? 2 * kLanes<T> : taps - 1;
}

// Times per packed tile, which stays in the first-level cache, and vectors per step.
inline constexpr int64_t kShortTile = 256;
inline constexpr int kShortVectors = 4;

// Lanes of two consecutive vectors, kDistance of them from the first.
template <int kDistance, class V, int... I>
CONVSCAN_INLINE V ShiftLanes(V before, V now, Indices<I...>) {
#if defined(__AVX512F__)  // GCC makes a permutation with an index vector of it
  constexpr int kW = sizeof...(I);
  if constexpr (kW == 16) return (V)_mm512_alignr_epi32((__m512i)now, (__m512i)before, kW - kDistance);
  if constexpr (kW == 8 && sizeof(V) == 64) return (V)_mm512_alignr_epi64((__m512i)now, (__m512i)before, kW - kDistance);
#endif
  return __builtin_shufflevector(before, now, (static_cast<int>(sizeof...(I)) - kDistance + I)...);
}
template <int kDistance, class T>
CONVSCAN_INLINE Vec<T> ShiftLanes(Vec<T> before, Vec<T> now) {
  if constexpr (kDistance == 0) return now;
  else if constexpr (kDistance == kLanes<T>) return before;
  else return ShiftLanes<kDistance>(before, now, MakeIndices<kLanes<T>>{});
}

// y[i] = bias + sum_k h[k] x[i - k], 0 <= i < count, a multiple of W. Older samples are added first, within their phases
// where registers are shifted.
template <int K, class T>
struct ShortRow {
  static constexpr int W = kLanes<T>, P = kShortPhases<T>, kParts = (K + P - 1) / P, kVectors = kShortVectors;
  Vec<T> tap[K], bias, before, part[kParts];  // the last vector of samples and its sums of each part of the taps

  ShortRow(const T *past, const T *h, T constant) : bias(Broadcast<T>(constant)) {
#pragma GCC unroll 16
    for (int k = 0; k < K; ++k) tap[k] = Broadcast<T>(h[k]);
    if constexpr (kShiftsInRegisters) {
      before = Load<W>(past + W);
      Sum(Load<W>(past), before, part, MakeIndices<P>{});
    }
  }

  template <int... B>
  CONVSCAN_INLINE void Sum(Vec<T> older, Vec<T> now, Vec<T> (&sum)[kParts], Indices<B...>) const {
    const Vec<T> phase[] = {ShiftLanes<B, T>(older, now)...};
#pragma GCC unroll 8
    for (int a = 0; a < kParts; ++a) {
      const int last = K - a * P < P ? K - a * P - 1 : P - 1;
      sum[a] = phase[last] * tap[a * P + last];
#pragma GCC unroll 8
      for (int b = last - 1; b >= 0; --b) sum[a] += phase[b] * tap[a * P + b];
    }
  }

  template <int... A>
  CONVSCAN_INLINE Vec<T> Join(const Vec<T> (&now)[kParts], Indices<A...>) const {
    Vec<T> sum = ShiftLanes<P * (kParts - 1), T>(part[kParts - 1], now[kParts - 1]);
    ((sum += ShiftLanes<P * (kParts - 2 - A), T>(part[kParts - 2 - A], now[kParts - 2 - A])), ...);
    return sum;
  }

  // N vectors of outputs, whose newest samples are at x.
  template <int N>
  CONVSCAN_INLINE void Run(const T *x, Vec<T> (&sum)[N]) {
    if constexpr (kShiftsInRegisters) {
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) {
        const Vec<T> now = Load<W>(x + v * W);
        Vec<T> parts[kParts];
        Sum(before, now, parts, MakeIndices<P>{});
        sum[v] = Join(parts, MakeIndices<kParts - 1>{});
        before = now;
#pragma GCC unroll 8
        for (int a = 0; a < kParts; ++a) part[a] = parts[a];
      }
    } else {
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) sum[v] = tap[K - 1] * Load<W>(x + v * W - (K - 1));
#pragma GCC unroll 16
      for (int k = K - 2; k >= 0; --k)
#pragma GCC unroll 4
        for (int v = 0; v < N; ++v) sum[v] += tap[k] * Load<W>(x + v * W - k);
    }
  }

  static void Convolve(const T *past, const T *x, const T *h, T constant, T *y, int64_t count, bool has_bias,
                       bool stream) {
    ShortRow row(past, h, constant);
    int64_t i = 0;
    for (; i + kVectors * W <= count; i += kVectors * W) {
      if (!stream)
#pragma GCC unroll 4
        for (int line = 0; line < kVectors * kVectorBytes; line += 64)
          __builtin_prefetch(reinterpret_cast<const char *>(x + i) + 1024 + line);
      Vec<T> sum[kVectors];
      row.template Run<kVectors>(x + i, sum);
      row.template Finish<kVectors>(sum, y + i, has_bias, stream);
    }
    for (; i < count; i += W) {
      Vec<T> sum[1];
      row.template Run<1>(x + i, sum);
      row.template Finish<1>(sum, y + i, has_bias, stream);
    }
  }

 private:
  template <int N>
  CONVSCAN_INLINE void Finish(Vec<T> (&sum)[N], T *y, bool has_bias, bool stream) const {
    if (has_bias)
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) sum[v] += bias;
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) {
      if (stream) StoreStream<W, T>(y + v * W, sum[v]);
      else Store<W>(y + v * W, sum[v]);
    }
  }
};

template <class T>
using ConvolveShortRow = decltype(&ShortRow<1, T>::Convolve);
template <class T, int... I>
ConvolveShortRow<T> ChooseShortRow(int64_t taps, Indices<I...>) {
  static constexpr ConvolveShortRow<T> kRows[] = {ShortRow<I + 1, T>::Convolve...};
  return kRows[taps - 1];
}

template <class S>
struct ShortRows {
  using T = Compute<S>;
  static constexpr int W = kLanes<T>;

  const convscan_conv &p;
  ConvolveShortRow<T> convolve;
  int64_t past, tile;
  T *x, *z, *taps;
  size_t bytes;

  ShortRows(const convscan_conv &p, void *workspace)
      : p(p),
        convolve(ChooseShortRow<T>(p.taps, MakeIndices<kShortTaps>{})),
        past(ShortPast<T>(p.taps)),
        tile(Min(kShortTile, RoundUp(p.length, W))) {
    Arena arena(workspace);
    x = arena.Take<T>(past + tile);
    z = arena.Take<T>(tile);
    taps = arena.Take<T>(p.taps);
    bytes = arena.Used();
  }

  // Outputs [begin, end) of one row.
  void Run(int64_t b, int64_t n, int64_t begin, int64_t end, bool stream) {
    const Signal<S> input = InputOf<S>(p);
    const S *h = FilterOf<S>(p, b, n);
    for (int64_t k = 0; k < p.taps; ++k) taps[k] = LoadScalar(h + k * p.h_tap_stride);
    const T bias = BiasOf<S>(p, b, n);
    S *const y = static_cast<S *>(p.y) + b * p.y_strides.batch + n * p.y_strides.channel;
    const bool reads_x = kSame<S, T> && p.x_strides.time == 1 && p.pre_gate == nullptr && !IsInPlace<S>(p);
    const bool writes_y = kSame<S, T> && p.y_strides.time == 1 && p.post_gate == nullptr && !IsInPlace<S>(p) &&
                          p.activation == CONVSCAN_IDENTITY;
    bool is_packed = false;  // whether the past of the next output stands before the tile
    const bool has_bias = p.bias != nullptr;
    for (int64_t t = begin; t < end;) {
      const int64_t now = t + p.origin, last = Min(end, p.length - p.origin), first = kShiftsInRegisters ? 0 : past;
      if constexpr (kSame<S, T>) {
        const bool is_aligned = !stream || reinterpret_cast<uintptr_t>(y + t) % kVectorBytes == 0;
        if (reads_x && now >= first && t + W <= last && (is_aligned || !writes_y)) {
          const int64_t count = (writes_y ? last - t : Min(tile, last - t)) / W * W;
          if (kShiftsInRegisters && !is_packed) input.PackRow(b, n, now - past, past, x);
          convolve(x, input.At(b, now, n), taps, bias, writes_y ? y + t : z, count, has_bias, writes_y && stream);
          if (!writes_y) Finish(b, n, t, count, y, stream);
          t += count;
          is_packed = false;
          continue;
        }
      }
      if (!is_packed) input.PackRow(b, n, now - past, past, x);
      // Where samples can be read as they lie, up to the first whose past can be, too, and whose output is aligned.
      const int64_t count = Min(end - t, reads_x && t < last ? Min(tile, Alignment(y + t, Max(1, first - now))) : tile);
      input.PackRow(b, n, now, count, x + past);
      for (int64_t i = count; i < RoundUp(count, W); ++i) x[past + i] = T(0);
      convolve(x, x + past, taps, bias, z, RoundUp(count, W), has_bias, false);
      Finish(b, n, t, count, y, stream);
      for (int64_t i = 0; i < past; ++i) x[i] = x[count + i];
      is_packed = true;
      t += count;
    }
    if (stream) StreamFence();
  }

 private:
  // The least count from `least` on after which y is aligned.
  static int64_t Alignment(const S *y, int64_t least) {
    const int64_t off = static_cast<int64_t>(reinterpret_cast<uintptr_t>(y + least) % kVectorBytes / sizeof(S));
    return least + (kLanes<S> - off) % kLanes<S>;
  }

  // What follows the sums in z.
  void Finish(int64_t b, int64_t n, int64_t t, int64_t count, S *y, bool stream) {
    PostGate<S>(p).MultiplyRow(b, n, t, count, z);
    ActivateRow<T>(z, count, p.activation);
    StoreRow<S>(y + t * p.y_strides.time, p.y_strides.time, z, count, stream);
  }
};

template <class S>
convscan_status ConvShortRows(const convscan_conv &p) {
  const int threads = Threads(p.threads, p.batch * p.length * p.channels * p.taps);
  const int64_t rows = p.batch * p.channels;
  const int64_t pieces = TimePieces(rows, threads, p.length, 16 * p.taps, IsInPlace<S>(p));
  const int64_t piece = RoundUp(CeilDiv(p.length, pieces), 64);
  // Rows are handed out several at a time, for a few microseconds of work each.
  const int64_t chunk = pieces > 1 ? 1 : Max(1, Min(CeilDiv(rows, 4 * threads), kSerialWork / (p.length * p.taps) + 1));
  const bool stream = StreamsOutput<S>(p);
  bool failed = false;
  ParallelFor(CeilDiv(rows, chunk) * pieces, threads, [&](int64_t task) {
    void *workspace = Workspace(ShortRows<S>(p, nullptr).bytes);
    if (workspace == nullptr) return __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
    ShortRows<S> kernel(p, workspace);
    const int64_t first = task / pieces * chunk, begin = task % pieces * piece;
    const int64_t end = Min(begin + piece, p.length);
    for (int64_t row = first; row < Min(first + chunk, rows); ++row)
      kernel.Run(row / p.channels, row % p.channels, begin, end, stream);
  });
  return failed ? CONVSCAN_OUT_OF_MEMORY : CONVSCAN_OK;
}

// Every array has its channels side by side (or only one time step, whose rows are then one vector of channels).
inline bool ChannelsAreAdjacent(const convscan_conv &p) {
  return p.x_strides.channel == 1 && p.y_strides.channel == 1 && p.channels > 1;
}

template <class S>
convscan_status ConvShort(const convscan_conv &p) {
  return ChannelsAreAdjacent(p) ? ConvShortColumns<S>(p) : ConvShortRows<S>(p);
}

}  // namespace convscan::CONVSCAN_ISA
