// Direct convolution with a few taps, bound by memory: every sample is read once, in the order memory likes, and what
// the taps look back on stays in the first-level cache.
//
// Channels adjacent: blocks of a few rows of time by some hundreds of channels. The taps-1 rows before a block are
// kept in workspace, which also makes the edges, the state and working in place nothing special.
// Otherwise: row after row, tiles of time with their past packed into workspace, vectors along time.
// Outputs that no cache could hold are streamed past it in whole lines.
#pragma once

#include "conv/signal.h"

namespace convscan::CONVSCAN_ISA {

inline constexpr int kShortTaps = 16;

// Rows of time per step of the channel form: each history row is read and moved once per step.
inline constexpr int kShortRows = 4;

// Workspace per task. Wide blocks suit memory (K = 4, 32 MiB: 4.8 ms with 40 KiB, 5.3 with 24, copying 3.4); beyond
// this the gain is small and the first-level cache long left.
inline constexpr int64_t kShortBytes = 40 << 10;

template <class S>
struct ShortStep {
  using T = Compute<S>;
  static constexpr int W = kLanes<T>;

  const S *x[kShortRows];  // current samples
  T *y[kShortRows];
  // Per vector of channels, W values each: taps-1 rows of history, oldest first, which a step moves on; the taps; the
  // bias. One pointer walks through all of it.
  T *columns;
  int64_t ahead;  // from a sample to the one the next step reads
  const S *pre[kShortRows], *post[kShortRows];  // gates of these rows, or rows of ones
  int64_t pre_ahead, post_ahead;

  static constexpr int64_t Plane(int64_t taps) { return 2 * taps * W; }

  // R rows of `width` channels, a multiple of W. Older samples are added first, whatever R is. The history has had its
  // gate.
  template <bool kGated, int K, int R>
  void Run(int64_t width) const {
    const S *from[R], *before[R], *after[R];
    T *to[R], *column = columns;
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      from[r] = x[r];
      to[r] = y[r];
      if constexpr (kGated) {
        before[r] = pre[r];
        after[r] = post[r];
      }
    }
    for (int64_t n = 0; n < width; n += W, column += Plane(K)) {
      Vec<T, W> sum[R];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        sum[r] = Load<W>(column + (2 * K - 1) * W);
        __builtin_prefetch(from[r] + n + ahead);
        if constexpr (kGated) {
          __builtin_prefetch(before[r] + n + pre_ahead);
          __builtin_prefetch(after[r] + n + post_ahead);
        }
      }
#pragma GCC unroll 32
      for (int j = 0; j < K - 1 + R; ++j) {
        const int now = j < K - 1 ? 0 : j - (K - 1);
        Vec<T, W> sample = j < K - 1 ? Load<W>(column + j * W) : Load<W>(from[now] + n);
        if constexpr (kGated)
          if (j >= K - 1) sample *= Load<W>(before[now] + n);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          const int k = r + K - 1 - j;
          if (k >= 0 && k < K) sum[r] += sample * Load<W>(column + (K - 1 + k) * W);
        }
        if (j >= R) Store<W>(column + (j - R) * W, sample);
      }
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        if constexpr (kGated) sum[r] *= Load<W>(after[r] + n);
        Store<W>(to[r] + n, sum[r]);
      }
    }
  }
};

template <bool kGated, class S, int K = kShortTaps>
void RunShortStep(const ShortStep<S> &step, int64_t taps, bool single_row, int64_t width) {
  if (taps == K) {
    if (single_row) step.template Run<kGated, K, 1>(width);
    else step.template Run<kGated, K, kShortRows>(width);
  } else if constexpr (K > 1) {
    RunShortStep<kGated, S, K - 1>(step, taps, single_row, width);
  }
}

template <class S>
void RunShortStep(const ShortStep<S> &step, int64_t taps, bool single_row, int64_t width) {
  if (step.pre[0] != nullptr) RunShortStep<true, S>(step, taps, single_row, width);
  else RunShortStep<false, S>(step, taps, single_row, width);
}

// Workspace of one block of channels.
template <class S>
struct ShortColumns {
  using T = Compute<S>;
  static constexpr int W = kLanes<T>;

  const convscan_conv &p;
  int64_t width, stride, plane;
  bool is_gated;
  T *columns, *rows;
  S *zeros, *edge, *ones, *gates;
  size_t bytes;

  ShortColumns(const convscan_conv &p, int64_t width, void *workspace)
      : p(p),
        width(width),
        stride(RoundUp(width, W)),
        plane(ShortStep<S>::Plane(p.taps)),
        is_gated(p.pre_gate != nullptr || p.post_gate != nullptr) {
    Arena arena(workspace);
    columns = arena.Take<T>(stride / W * plane);
    rows = arena.Take<T>(kShortRows * stride);
    zeros = arena.Take<S>(stride);
    edge = arena.Take<S>((is_gated ? 3 : 1) * kShortRows * W);
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
    const bool is_gated = p.pre_gate != nullptr || p.post_gate != nullptr;
    return (2 * p.taps + kShortRows) * static_cast<int64_t>(sizeof(T)) +
           (1 + is_gated + CopiedGates(p) * kShortRows) * static_cast<int64_t>(sizeof(S));
  }

  // Outputs [begin, end) of channels [n, n + width) of batch b.
  void Run(int64_t b, int64_t n, int64_t begin, int64_t end, bool stream) {
    const Signal<S> x = InputOf<S>(p);
    const Gate<S> pre = PreGate<S>(p), post = PostGate<S>(p);
    S *const pre_rows = gates;
    S *const post_rows = gates + (pre.factors != nullptr && pre.strides.channel != 1 ? kShortRows * stride : 0);
    x.PackColumns(b, n, stride / W, begin + p.origin - (p.taps - 1), p.taps - 1, columns, W, plane);
    PackParameters(b, n);
    const bool is_direct = kSame<S, T> && p.activation == CONVSCAN_IDENTITY && !stream;
    const int64_t whole = width / W * W;
    for (int64_t t = begin; t < end;) {
      const int count = end - t >= kShortRows ? kShortRows : 1;
      S *y[kShortRows];
      ShortStep<S> step{{}, {}, columns, kShortRows * p.x_strides.time, {}, {}, kShortRows * pre.strides.time,
                        kShortRows * post.strides.time};
      for (int r = 0; r < count; ++r) {
        y[r] = static_cast<S *>(p.y) + b * p.y_strides.batch + (t + r) * p.y_strides.time + n * p.y_strides.channel;
        step.y[r] = rows + r * stride;
        if constexpr (kSame<S, T>)
          if (is_direct) step.y[r] = y[r];
        step.x[r] = t + r + p.origin < p.length ? x.At(b, t + r + p.origin, n) : zeros;
        if (!is_gated) continue;
        step.pre[r] = GateRow(pre, b, t + r + p.origin, n, pre_rows + r * stride);
        step.post[r] = GateRow(post, b, t + r, n, post_rows + r * stride);
      }
      if (whole < width) RunEdge(step, whole, count);
      RunShortStep<S>(step, p.taps, count == 1, whole);
      for (int r = 0; r < count; ++r) {
        const int64_t first = is_direct ? whole : 0;
        T *z = rows + r * stride;
        ActivateRow<T>(z + first, width - first, p.activation);
        StoreRow<S>(y[r] + first, 1, z + first, width - first, stream);
      }
      t += count;
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

  // The factors of the block's channels at time t: where they lie, or copied, or ones.
  const S *GateRow(const Gate<S> &gate, int64_t b, int64_t t, int64_t n, S *copy) const {
    if (gate.factors == nullptr || t >= p.length) return ones;
    const S *const from = gate.At(b, t, n);
    if (gate.strides.channel == 1) return from;
    for (int64_t i = 0; i < width; ++i) copy[i] = from[i * gate.strides.channel];
    return copy;
  }

  // The channels left over by whole vectors, through a padded copy of their samples into `rows`.
  void RunEdge(const ShortStep<S> &step, int64_t whole, int count) {
    ShortStep<S> last{{}, {}, columns + whole / W * plane, 0, {}, {}, 0, 0};
    const auto copy = [&](const S *from, int at) {
      S *const to = edge + at * W;
      for (int64_t i = 0; i < W; ++i) to[i] = whole + i < width ? from[whole + i] : S{};
      return to;
    };
    for (int r = 0; r < count; ++r) {
      last.x[r] = copy(step.x[r], r);
      last.y[r] = rows + r * stride + whole;
      if (!is_gated) continue;
      last.pre[r] = copy(step.pre[r], kShortRows + r);
      last.post[r] = copy(step.post[r], 2 * kShortRows + r);
    }
    RunShortStep<S>(last, p.taps, count == 1, W);
  }
};

template <class S>
convscan_status ConvShortColumns(const convscan_conv &p) {
  constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(S));
  const int threads = Threads(p.threads, p.batch * p.length * p.channels * p.taps);
  int64_t widest = kShortBytes / ShortColumns<S>::BytesPerChannel(p);
  if (IsInPlace<S>(p) && p.batch < threads) widest = Min(widest, CeilDiv(p.channels * p.batch, threads));
  widest = Max(kLine, widest / kLine * kLine);
  const int64_t width = RoundUp(CeilDiv(p.channels, CeilDiv(p.channels, widest)), kLine);
  const int64_t blocks = CeilDiv(p.channels, width);
  const int64_t pieces = TimePieces(p.batch * blocks, threads, p.length, 16 * p.taps, IsInPlace<S>(p));
  const int64_t piece = RoundUp(CeilDiv(p.length, pieces), kShortRows);
  const bool stream = StreamsOutput<S>(p);
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

// Times per tile of the row form: reading the next tile and writing the last overlap the arithmetic of this one (K = 4,
// 32 MiB: 2.9 ms with 256, 5.4 with 1024). Vectors per register tile: a tap's vector is loaded once for all of them.
inline constexpr int64_t kShortTile = 256;
inline constexpr int kShortVectors = 4;

// z[i] = bias + sum_k taps[k] x[i + K-1 - k], 0 <= i < count rounded up to W; taps[k] stands in all lanes. Meanwhile
// the samples from `next` on come into the cache, so that memory does not idle while the arithmetic runs.
template <class T, class S>
void ShortRow(const T *x, const T *taps, int64_t K, T bias, T *z, int64_t count, const S *next) {
  constexpr int W = kLanes<T>, R = kShortVectors;
  int64_t i = 0;
  for (; i + R * W <= count; i += R * W) {
#pragma GCC unroll 4
    for (int64_t line = 0; line < R * W * static_cast<int64_t>(sizeof(S)); line += 64)
      __builtin_prefetch(reinterpret_cast<const char *>(next + i) + line);
    Vec<T, W> sum[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) sum[r] = Broadcast<T, W>(bias);
    for (int64_t k = K - 1; k >= 0; --k) {
      const Vec<T, W> tap = Load<W>(taps + k * W);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) sum[r] += tap * Load<W>(x + i + r * W + K - 1 - k);
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) Store<W>(z + i + r * W, sum[r]);
  }
  for (; i < count; i += W) {
    Vec<T, W> sum = Broadcast<T, W>(bias);
    for (int64_t k = K - 1; k >= 0; --k) sum += Load<W>(taps + k * W) * Load<W>(x + i + K - 1 - k);
    Store<W>(z + i, sum);
  }
}

template <class S>
struct ShortRows {
  using T = Compute<S>;
  static constexpr int W = kLanes<T>;

  const convscan_conv &p;
  int64_t tile;
  T *x, *z, *taps;
  size_t bytes;

  ShortRows(const convscan_conv &p, void *workspace) : p(p), tile(Min(kShortTile, RoundUp(p.length, W))) {
    Arena arena(workspace);
    x = arena.Take<T>(p.taps - 1 + tile + W);
    z = arena.Take<T>(tile);
    taps = arena.Take<T>(p.taps * W);
    bytes = arena.Used();
  }

  // Outputs [begin, end) of one row.
  void Run(int64_t b, int64_t n, int64_t begin, int64_t end, bool stream) {
    const Signal<S> input = InputOf<S>(p);
    const S *h = FilterOf<S>(p, b, n);
    for (int64_t k = 0; k < p.taps; ++k) Store<W>(taps + k * W, Broadcast<T, W>(LoadScalar(h + k * p.h_tap_stride)));
    const T bias = BiasOf<S>(p, b, n);
    S *y = static_cast<S *>(p.y) + b * p.y_strides.batch + n * p.y_strides.channel;
    const int64_t history = p.taps - 1;
    input.PackRow(b, n, begin + p.origin - history, history, x);
    for (int64_t t = begin; t < end; t += tile) {
      const int64_t count = Min(tile, end - t);
      input.PackRow(b, n, t + p.origin, count, x + history);
      for (int64_t i = count; i < RoundUp(count, W); ++i) x[history + i] = T(0);
      ShortRow<T, S>(x, taps, p.taps, bias, z, count, input.At(b, t + p.origin + count, n));
      PostGate<S>(p).MultiplyRow(b, n, t, count, z);
      ActivateRow<T>(z, count, p.activation);
      StoreRow<S>(y + t * p.y_strides.time, p.y_strides.time, z, count, stream);
      for (int64_t i = 0; i < history; ++i) x[i] = x[count + i];
    }
    if (stream) StreamFence();
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
