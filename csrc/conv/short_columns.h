// Short filters over adjacent channels: blocks of a few rows of time by some hundreds of channels. The taps-1 samples before a
// block are kept in workspace, which also makes the edges, the state and working in place nothing special.
#pragma once

#include "conv/short_taps.h"

namespace convscan::CONVSCAN_ISA {

// Rows of time per step: taps and past are loaded once for all of them, and each has an accumulator in a register. With few
// taps or with gates AVX-512 waits for the rows, and where they lie a power of two apart, not all that are read and written
// find room in the first-level cache (Zen 5, two threads, 1024 x 1024: K = 4 with 8 and 4 rows 54 and 69 % of the bandwidth
// of copying, with gates and 8, 4 and 2 rows 50, 65 and 72 %, K = 7 with gates 46, 50 and 51 %).
inline constexpr int kShortRows = kVectorRegisters == 32 ? 8 : 4;
template <int K, bool kGated>
inline constexpr int kShortRowsOf = kVectorBytes < 64 ? kShortRows : (K <= 4 ? 4 : 8) / (kGated ? 2 : 1);

// Vectors of channels that go through a step together: as many as fill a line of memory, which is what streaming stores
// want whole, and pairs on AArch64, which moves two vectors in one instruction.
template <class S>
inline constexpr int kShortGroup =
    kVectorBytes == 16 ? 2 : 64 / (kLanes<Compute<S>> * static_cast<int>(sizeof(S)));

// Taps and past of a block of channels, which leave room for the rows in the first-level cache (K = 8 over 4096 x 512: 64 %
// of the bandwidth of copying, 44 with 48 KiB).
inline constexpr int64_t kShortBytes = 16 << 10;

// With more taps than kShortTaps the bytes of a block of channels, in the second-level cache (Zen 5, two threads, 8192 x 1024,
// K = 32: 2.2 ms; with 64 and 256 KiB 2.4 and 2.9).
inline constexpr int64_t kManyBytes = 128 << 10;

// Arrays that together exceed this come from beyond some caches: the rows of the next step are asked for meanwhile, whose
// segments are too short for the processor to see (three arrays of 12 MiB, K = 3 and 8: 68 and 52 % of the bandwidth of
// copying, 59 and 42 without; two of 4 MiB: 70 and 49 % with, 74 and 56 without). Phones look ahead well by themselves.
inline constexpr int64_t kShortLookAhead = int64_t{16} << 20;

// Activates and stores vectors of sums, U for each of R rows of outputs that are `step` apart. Out of line, since as much
// code as an activation takes is enough once for all numbers of taps.
template <class S, class V, int R, int U>
__attribute__((noinline)) void StoreActivated(S *y, int64_t step, const V (&z)[R][U], bool streams,
                                              convscan_activation activation) {
  constexpr int W = kLanes<Compute<S>>, N = R * U < 4 ? R * U : 4;
  const auto run = [&](const auto &activate) {
#pragma GCC unroll 1
    for (int first = 0; first < R * U; first += N) {
      V some[N];
#pragma GCC unroll 4
      for (int i = 0; i < N; ++i) some[i] = z[(first + i) / U][(first + i) % U];
      activate(some);
#pragma GCC unroll 4
      for (int i = 0; i < N; ++i) {
        S *const to = y + (first + i) / U * step + (first + i) % U * W;
        if (streams) StoreStreamAs<W, S>(to, some[i]);
        else Store<W>(to, some[i]);
      }
    }
  };
  if (activation == CONVSCAN_SILU) run([](V (&v)[N]) { Silu<W, Compute<S>>(v); });
  else run([](V (&v)[N]) { Gelu<W, Compute<S>>(v); });
}

// Addresses of a step's rows, all of them where kKeepsAll.
template <class P, int R, bool kKeepsAll>
struct ShortAddresses {
  P *first, *each[kKeepsAll ? R : 1];
  int64_t step;

  CONVSCAN_INLINE ShortAddresses(P *first, int64_t step) : first(first), step(step) {
    for (int r = 0; kKeepsAll && r < R; ++r) each[r] = first + r * step;
  }
  CONVSCAN_INLINE P *operator[](int r) const {
    if constexpr (kKeepsAll) return each[r];
    else return first + r * step;
  }
  CONVSCAN_INLINE void operator+=(int64_t n) {
    first += n;
    for (int r = 0; kKeepsAll && r < R; ++r) each[r] += n;
  }
};

template <class S>
struct ShortStep {
  using T = Compute<S>;
  static constexpr int W = kLanes<T>, U = kShortGroup<S>;
#if defined(__aarch64__)  // which has the registers for two times eight addresses, and loads a pair of vectors by no other
  static constexpr bool kHasAddresses = true;
#else
  static constexpr bool kHasAddresses = false;
#endif
  template <bool kGated, int R>
  using Rows = ShortAddresses<S, R, kHasAddresses && !kGated>;
  template <bool kGated, int R>
  using ConstRows = ShortAddresses<const S, R, kHasAddresses && !kGated>;

  const S *x;  // the first row of samples, and how far the next is
  int64_t x_step;
  S *y;
  int64_t y_step;
  const S *pre, *post;  // gates of these rows, or rows of ones; null where there is neither
  int64_t pre_step, post_step;
  // Per group of channels, U W values each: taps-1 rows of past, oldest first, which a step moves on; with many taps, rows
  // of what is now; the taps; the bias.
  T *columns;
  int64_t taps, known, idle;  // with many taps, rows of past that are not all zeros, and the newest that are
  bool has_bias, streams, looks_ahead;
  convscan_activation activation;

  // Rows before the taps, and values of a vector of channels.
  static constexpr int64_t TapsAt(int64_t taps) { return taps - 1 + (taps > kShortTaps ? kManyRows : 0); }
  static constexpr int64_t Plane(int64_t taps) { return (TapsAt(taps) + taps + 1) * W; }

  // `steps` times R rows of `width` channels, a multiple of U W. Older samples are added first, whatever R is. The past
  // has had its gate.
  template <bool kGated, int K, int R>
  static void Run(const ShortStep &of, int64_t width, int64_t steps) {
    // Addresses that are kept step on once for several groups.
    constexpr int kGroups = kHasAddresses && !kGated && K <= 8 ? 8 : 1;
    ConstRows<kGated, R> x(of.x, of.x_step), pre(of.pre, of.pre_step), post(of.post, of.post_step);
    Rows<kGated, R> y(of.y, of.y_step);
    const Ending ending{of.has_bias, of.streams, of.looks_ahead, of.activation};
    for (int64_t i = 0; i < steps; ++i) {
      T *column = of.columns;
      int64_t n = 0;
      const auto run = [&]<bool kHasEnding, int kCount>(Groups<kHasEnding, kCount>) __attribute__((always_inline)) {
        for (; n + kCount * U * W <= width; n += kCount * U * W) {
#pragma GCC unroll 8
          for (int g = 0; g < kCount; ++g) {
            Group<kGated, kHasEnding, K, R>(x, y, pre, post, g * U * W, column, ending);
            column += U * Plane(K);
#if defined(__aarch64__)  // an offset to all of them would be beyond what a load of a pair takes
            asm("" : "+r"(column));
#endif
          }
          x += kCount * U * W;
          y += kCount * U * W;
          if constexpr (kGated) {
            pre += kCount * U * W;
            post += kCount * U * W;
          }
        }
      };
      if (kGated || ending.has_bias || ending.streams || ending.looks_ahead ||
          ending.activation != CONVSCAN_IDENTITY) {
        run(Groups<true, 1>{});
      } else if constexpr (!kGated) {
        if constexpr (kGroups > 1) run(Groups<false, kGroups>{});
        run(Groups<false, 1>{});
      }
      x += R * x.step - n;
      y += R * y.step - n;
      if constexpr (kGated) {
        pre += R * pre.step - n;
        post += R * post.step - n;
      }
    }
  }

  // The same with any number of taps, which are read again and again: rows go through a window in the first-level cache,
  // several steps of a group of channels before the next group.
  template <bool kGated, int R>
  static void RunMany(const ShortStep &of, int64_t width, int64_t steps) {
    ConstRows<kGated, R> x(of.x, of.x_step), pre(of.pre, of.pre_step), post(of.post, of.post_step);
    Rows<kGated, R> y(of.y, of.y_step);
    const Ending ending{of.has_bias, of.streams, of.looks_ahead, of.activation};
    const int64_t past = of.taps - 1, plane = Plane(of.taps), taps_at = TapsAt(of.taps);
    for (int64_t done = 0, count; done < steps; done += count) {
      count = Min(steps - done, kManyRows / R);
      T *column = of.columns;
      for (int64_t n = 0; n < width; n += U * W, column += U * plane) {
        T *window = column + past * U * W;
        const T *const taps = column + taps_at * U * W;
        for (int64_t i = 0; i < count; ++i, window += R * U * W) {
#pragma GCC unroll 16
          for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
            for (int u = 0; u < U; ++u) {
              Vec<T, W> sample = Load<W>(x[r] + i * R * x.step + n + u * W);
              if constexpr (kGated) sample *= Load<W>(pre[r] + i * R * pre.step + n + u * W);
              Store<W>(window + (r * U + u) * W, sample);
            }
          if (ending.looks_ahead) {
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) {
              __builtin_prefetch(x[r] + (i + count) * R * x.step + n, 0, 2);
              if constexpr (kGated) {
                __builtin_prefetch(pre[r] + (i + count) * R * pre.step + n, 0, 2);
                __builtin_prefetch(post[r] + (i + count) * R * post.step + n, 0, 2);
              }
            }
          }
          // Whole register tiles, so that the order of additions is always the same.
          const int64_t rows = (done + i) * R, begin = of.idle > 0 ? Whole(of.idle + rows) : 0;
          const int64_t end = Min(of.taps, Whole(of.known + rows + R + kTapsAtOnce - 1));
          Vec<T, W> sum[U][R];
#pragma GCC unroll 4
          for (int u = 0; u < U; ++u) {
            Vec<T, W> sums[R] = {};
            AccumulateTaps<R, T, U * W>(sums, window + u * W, taps + u * W, begin, end);
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) sum[u][r] = sums[r];
          }
          ConstRows<kGated, R> factors = post;
          Rows<kGated, R> to = y;
          if constexpr (kGated) factors += i * R * post.step;
          to += i * R * y.step;
          End<kGated, true>(sum, taps + of.taps * U * W, factors, to, n, ending);
        }
        const T *const from = column + count * R * U * W;
        for (int64_t j = 0; j < past * U; ++j) Store<W>(column + j * W, Load<W>(from + j * W));
      }
      x += count * R * x.step;
      y += count * R * y.step;
      if constexpr (kGated) {
        pre += count * R * pre.step;
        post += count * R * post.step;
      }
    }
  }

 private:
  static CONVSCAN_INLINE int64_t Whole(int64_t taps) { return taps / kTapsAtOnce * kTapsAtOnce; }

  template <bool kHasEnding, int kCount>
  struct Groups {};
  // What happens to sums before they are stored, or while they are.
  struct Ending {
    bool has_bias, streams, looks_ahead;
    convscan_activation activation;
  };

  template <bool kGated, bool kHasEnding, int K, int R>
  static CONVSCAN_INLINE void Group(const ConstRows<kGated, R> &x, const Rows<kGated, R> &y,
                                    const ConstRows<kGated, R> &pre, const ConstRows<kGated, R> &post, int n, T *column,
                                    const Ending &ending) {
    Vec<T, W> tap[U][K], past[U][K], sum[U][R], last[U][K];
#pragma GCC unroll 16
    for (int k = 0; k < K; ++k)
#pragma GCC unroll 4
      for (int u = 0; u < U; ++u) tap[u][k] = Load<W>(column + ((K - 1 + k) * U + u) * W);
#pragma GCC unroll 16
    for (int j = 0; j < K - 1; ++j)
#pragma GCC unroll 4
      for (int u = 0; u < U; ++u) past[u][j] = Load<W>(column + (j * U + u) * W);
    if (kHasEnding && ending.looks_ahead) {
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        __builtin_prefetch(x[r] + R * x.step + n);
        if constexpr (kGated) {
          __builtin_prefetch(pre[r] + R * pre.step + n);
          __builtin_prefetch(post[r] + R * post.step + n);
        }
      }
    }
#pragma GCC unroll 32
    for (int j = 0; j < K - 1 + R; ++j) {
      const int now = j - (K - 1);
      Vec<T, W> sample[U];
#pragma GCC unroll 4
      for (int u = 0; u < U; ++u) {
        sample[u] = now < 0 ? past[u][now < 0 ? j : 0] : Load<W>(x[now] + n + u * W);
        if constexpr (kGated)
          if (now >= 0) sample[u] *= Load<W>(pre[now] + n + u * W);
        if (j >= R) last[u][j - R] = sample[u];
      }
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const int k = r - now;
#pragma GCC unroll 4
        for (int u = 0; u < U; ++u) {
          if (k == K - 1) sum[u][r] = sample[u] * tap[u][k];
          else if (k >= 0 && k < K) sum[u][r] += sample[u] * tap[u][k];
        }
      }
    }
#pragma GCC unroll 16
    for (int j = 0; j < K - 1; ++j)
#pragma GCC unroll 4
      for (int u = 0; u < U; ++u) Store<W>(column + (j * U + u) * W, last[u][j]);
    End<kGated, kHasEnding>(sum, column + (2 * K - 1) * U * W, post, y, n, ending);
  }

  template <bool kGated, bool kHasEnding, int R>
  static CONVSCAN_INLINE void End(Vec<T, W> (&sum)[U][R], const T *constants, const ConstRows<kGated, R> &post,
                                  const Rows<kGated, R> &y, int64_t n, const Ending &ending) {
    if constexpr (kHasEnding) {
      if (ending.has_bias) {
#pragma GCC unroll 4
        for (int u = 0; u < U; ++u) {
          const Vec<T, W> bias = Load<W>(constants + u * W);
#pragma GCC unroll 16
          for (int r = 0; r < R; ++r) sum[u][r] += bias;
        }
      }
      if constexpr (kGated) {
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
          for (int u = 0; u < U; ++u) sum[u][r] *= Load<W>(post[r] + n + u * W);
      }
      if (ending.activation != CONVSCAN_IDENTITY) {
        Vec<T, W> z[R][U];
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
          for (int u = 0; u < U; ++u) z[r][u] = sum[u][r];
        return StoreActivated(y[0] + n, y.step, z, ending.streams, ending.activation);
      }
      if (ending.streams) {
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
          for (int u = 0; u < U; ++u) StoreStreamAs<W, S>(y[r] + n + u * W, sum[u][r]);
        return;
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int u = 0; u < U; ++u) Store<W>(y[r] + n + u * W, sum[u][r]);
  }
};

// The two ways of ShortStep::Run for a number of taps: several rows at once, and one.
template <class S>
struct ShortRun {
  int64_t count;
  void (*rows)(const ShortStep<S> &, int64_t, int64_t);
  void (*row)(const ShortStep<S> &, int64_t, int64_t);
};
template <class S, bool kGated, int... I>
ShortRun<S> ChooseShortRun(int64_t taps, Indices<I...>) {
  constexpr int kMany = kOutputsAtOnce<Compute<S>>;
  if (taps > kShortTaps)
    return {kMany, ShortStep<S>::template RunMany<kGated, kMany>, ShortStep<S>::template RunMany<kGated, 1>};
  static constexpr ShortRun<S> kRuns[] = {
      {kShortRowsOf<I + 1, kGated>, ShortStep<S>::template Run<kGated, I + 1, kShortRowsOf<I + 1, kGated>>,
       ShortStep<S>::template Run<kGated, I + 1, 1>}...};
  return kRuns[taps - 1];
}

// Workspace of one block of channels.
template <class S>
struct ShortColumns {
  using T = Compute<S>;
  static constexpr int W = kLanes<T>, U = kShortGroup<S>, kGroup = U * W;

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
    edge = arena.Take<S>((is_gated ? 4 : 2) * run.count * kGroup);
    ones = arena.Take<S>(is_gated ? stride : 0);
    gates = arena.Take<S>(CopiedGates(p) * run.count * stride);
    bytes = arena.Used();
  }

  // Gates whose channels are not adjacent, which a step reads from a copy.
  static int64_t CopiedGates(const convscan_conv &p) {
    return (p.pre_gate != nullptr && p.pre_gate_strides.channel != 1) +
           (p.post_gate != nullptr && p.post_gate_strides.channel != 1);
  }
  static int64_t BytesPerChannel(const convscan_conv &p) {
    return ShortStep<S>::Plane(p.taps) / W * static_cast<int64_t>(sizeof(T)) +
           CopiedGates(p) * kOutputsAtOnce<T> * static_cast<int64_t>(sizeof(S));
  }

  // Outputs [begin, end) of channels [n, n + width) of batch b.
  void Run(int64_t b, int64_t n, int64_t begin, int64_t end, bool stream, bool looks_ahead) {
    const Signal<S> x = InputOf<S>(p);
    const Gate<S> pre = PreGate<S>(p), post = PostGate<S>(p);
    S *const pre_rows = gates;
    S *const post_rows = gates + (pre.factors != nullptr && pre.strides.channel != 1 ? run.count * stride : 0);
    x.template PackColumns<U>(b, n, stride / W, begin + p.origin - (p.taps - 1), p.taps - 1, columns, kGroup, plane);
    PackParameters(b, n);
    const int64_t whole = width / kGroup * kGroup;
    const bool runs_on = CopiedGates(p) == 0;  // copies of gates are seen to step by step
    for (int64_t t = begin; t < end;) {
      // Samples past the end are zeros: rows of them are steps of their own.
      const int64_t now = t + p.origin;
      const bool has_samples = now < p.length;
      const int64_t alike = has_samples ? Min(end - t, p.length - now) : end - t;
      const bool is_row = alike < run.count;
      const int64_t rows = is_row ? 1 : run.count, steps = runs_on ? alike / rows : 1;
      ShortStep<S> step{has_samples ? x.At(b, now, n) : zeros,
                        has_samples ? p.x_strides.time : 0,
                        static_cast<S *>(p.y) + b * p.y_strides.batch + t * p.y_strides.time + n * p.y_strides.channel,
                        p.y_strides.time,
                        nullptr,
                        nullptr,
                        0,
                        0,
                        columns,
                        p.taps,
                        p.state != nullptr ? p.taps : Min(p.taps, Max(0, now)),
                        Max(0, now - (p.length - 1)),
                        p.bias != nullptr,
                        stream,
                        looks_ahead,
                        p.activation};
      if (is_gated) {
        step.pre = GateRows(pre, b, now, n, rows, pre_rows, step.pre_step);
        step.post = GateRows(post, b, t, n, rows, post_rows, step.post_step);
      }
      for (int64_t i = 0; i < steps && whole < width; ++i) RunEdge(step, whole, rows, i * rows);
      (is_row ? run.row : run.rows)(step, whole, steps);
      t += rows * steps;
    }
    if (stream) StreamFence();
  }

 private:
  void PackParameters(int64_t b, int64_t n) {
    T *const taps = columns + ShortStep<S>::TapsAt(p.taps) * kGroup;
    PackFilterColumns<S, U>(p, b, n, stride / W, p.taps, taps, kGroup, plane);
    PackBiasColumns<S, U>(p, b, n, stride / W, taps + p.taps * kGroup, plane);
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

  // The channels left over by whole groups, through a padded copy, `at` rows on.
  void RunEdge(const ShortStep<S> &step, int64_t whole, int64_t count, int64_t at) {
    const int64_t all = run.count * kGroup;
    ShortStep<S> last = step;
    const auto copy = [&](const S *from, int64_t from_step, int place) {
      S *const to = edge + place * all;
      for (int64_t r = 0; r < count; ++r)
        for (int64_t i = 0; i < kGroup; ++i)
          to[r * kGroup + i] = whole + i < width ? from[(at + r) * from_step + whole + i] : S{};
      return to;
    };
    last.x = copy(step.x, step.x_step, 0);
    last.y = edge + all;
    last.x_step = last.y_step = last.pre_step = last.post_step = kGroup;
    last.columns = columns + whole / W * plane;
    last.streams = false;
    last.known += at;
    last.idle += last.idle > 0 ? at : 0;
    if (is_gated) {
      last.pre = copy(step.pre, step.pre_step, 2);
      last.post = copy(step.post, step.post_step, 3);
    }
    (count == 1 ? run.row : run.rows)(last, kGroup, 1);
    for (int64_t r = 0; r < count; ++r)
      for (int64_t i = whole; i < width; ++i) step.y[(at + r) * step.y_step + i] = last.y[r * kGroup + i - whole];
  }
};

template <class S>
convscan_status ConvShortColumns(const convscan_conv &p) {
  constexpr int64_t kItem = static_cast<int64_t>(sizeof(S)), kLine = 64 / kItem;
  constexpr bool kFillsLines = ShortColumns<S>::kGroup * kItem % 64 == 0;
  const int threads = Threads(p.threads, p.batch * p.length * p.channels * p.taps);
  int64_t widest = (p.taps > kShortTaps ? kManyBytes : kShortBytes) / ShortColumns<S>::BytesPerChannel(p);
  if (IsInPlace<S>(p) && p.batch < threads) widest = Min(widest, CeilDiv(p.channels * p.batch, threads));
  else if (p.taps > kShortTaps) widest = Min(widest, RoundUp(CeilDiv(p.channels * p.batch, 2 * threads), kLine));
  widest = Max(kLine, widest / kLine * kLine);
  const int64_t width = RoundUp(CeilDiv(p.channels, CeilDiv(p.channels, widest)), kLine);
  const int64_t blocks = CeilDiv(p.channels, width);
  const int64_t pieces = TimePieces(p.batch * blocks, threads, p.length, LeastPiece(p), IsInPlace<S>(p));
  const int64_t piece = RoundUp(CeilDiv(p.length, pieces), kOutputsAtOnce<Compute<S>>);
  const uintptr_t offsets = reinterpret_cast<uintptr_t>(p.y) |
                            static_cast<uintptr_t>((p.y_strides.time | p.y_strides.batch) * kItem);
  const bool stream = kFillsLines && StreamsOutput<S>(p) && offsets % 64 == 0;
  const int64_t arrays = 2 + (p.pre_gate != nullptr) + (p.post_gate != nullptr);
  // An activation takes long enough for the rows to come.
  const bool looks_ahead = kVectorBytes > 16 && (p.activation != CONVSCAN_IDENTITY ||
                                                 arrays * p.batch * p.length * p.channels * kItem > kShortLookAhead);
  bool failed = false;
  ParallelFor(p.batch * blocks * pieces, threads, [&](int64_t task) {
    const int64_t n = task % blocks * width, b = task / blocks % p.batch, begin = task / blocks / p.batch * piece;
    const int64_t channels = Min(width, p.channels - n), end = Min(begin + piece, p.length);
    if (begin >= end) return;
    void *workspace = Workspace(ShortColumns<S>(p, width, nullptr).bytes);
    if (workspace == nullptr) return __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
    ShortColumns<S>(p, channels, workspace).Run(b, n, begin, end, stream, looks_ahead);
  });
  return failed ? CONVSCAN_OUT_OF_MEMORY : CONVSCAN_OK;
}

}  // namespace convscan::CONVSCAN_ISA
