// Short filters along time: row after row, in vectors along time. Where samples lie side by side in the compute type, they are
// read and written where they lie, and so are gates; tiles of workspace stand for everything else: edges, strides,
// activations, half types.
#pragma once

#include "conv/short_taps.h"

namespace convscan::CONVSCAN_ISA {

// How a vector reaches back in time. On AVX-512 nearly every unaligned vector straddles two lines, which costs a load
// each: there the samples are shifted in registers, and sums of kShortPhases taps are shifted once more (K = 8, 8 MiB:
// 102 GB/s, 60 with unaligned loads, copying 94). Others load a vector for every tap.
inline constexpr bool kShiftsInRegisters = kVectorBytes == 64;
template <class T>
inline constexpr int kShortPhases = kLanes<T> == 16 ? 4 : kLanes<T>;

inline bool ShiftsInRegisters(int64_t taps) { return kShiftsInRegisters && taps <= kShortTaps; }

// Times per packed tile, which stays in the first-level cache.
inline constexpr int64_t kShortTile = 256;

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

// What a row's samples are multiplied by, where registers are shifted, and its sums.
template <class T>
struct ShortEnding {
  T bias{};
  int64_t taps = 0;
  bool has_bias = false, streams = false;
  const T *pre = nullptr, *post = nullptr;  // null for none
};

// y[i] = post[i] (bias + sum_k h[k] pre[i - k] x[i - k]), 0 <= i < count, a multiple of W. Older samples are added
// first, within their phases where registers are shifted.
template <int K, class T>
struct ShortRow {
  static constexpr int W = kLanes<T>, P = kShortPhases<T>, kParts = (K + P - 1) / P;
  // Vectors at once: whatever is loaded for one of them serves the others, too.
  static constexpr bool kPrefetches = kVectorBytes > 16;  // phones look ahead well by themselves
  static constexpr int kVectors = kShiftsInRegisters || kVectorRegisters < 32 || K > 8 ? 4 : K > 4 ? 8 : 12;
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

  // N vectors of outputs, whose newest samples are at x and their factors, if any, at gate.
  template <int N>
  CONVSCAN_INLINE void Sums(const T *x, [[maybe_unused]] const T *gate, Vec<T> (&sum)[N]) {
    if constexpr (kShiftsInRegisters) {
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) {
        Vec<T> now = Load<W>(x + v * W);
        if (gate != nullptr) now *= Load<W>(gate + v * W);
        Vec<T> parts[kParts];
        Sum(before, now, parts, MakeIndices<P>{});
        sum[v] = Join(parts, MakeIndices<kParts - 1>{});
        before = now;
#pragma GCC unroll 8
        for (int a = 0; a < kParts; ++a) part[a] = parts[a];
      }
    } else {
      // Tap aP+b meets the vectors that lie b samples before those of the outputs, a vectors apart.
      constexpr int kFirst = 1 - kParts, kLast = (K < P ? K : P) - 1;
#pragma GCC unroll 8
      for (int b = kLast; b >= 0; --b) {
        if (kVectors > 8) EndOfStep();  // there are no registers for samples loaded ahead
        const T *from = x - b;
#if defined(__aarch64__)  // pairs of vectors are loaded at multiples of 16 bytes from a register: one for each b
        asm("" : "+r"(from));
#endif
        Vec<T> sample[N - kFirst];
#pragma GCC unroll 32
        for (int v = kFirst; v < N; ++v) sample[v - kFirst] = Load<W>(from + v * W);
#pragma GCC unroll 8
        for (int a = kParts - 1; a >= 0; --a)
#pragma GCC unroll 16
          for (int v = 0; v < N; ++v) {
            const int k = a * P + b;
            if (k >= K) continue;
            if (b == kLast && k + P >= K) sum[v] = tap[k] * sample[v - a - kFirst];  // the oldest one
            else sum[v] += tap[k] * sample[v - a - kFirst];
          }
      }
    }
  }

  template <bool kHasEnding>
  CONVSCAN_INLINE void Run(const T *x, T *y, int64_t count, ShortEnding<T> ending) {
    int64_t left = count;
    const bool stream = ending.streams;
    const auto run = [&](auto vectors) __attribute__((always_inline)) {
      constexpr int N = decltype(vectors)::kCount;
      for (; left >= N * W; left -= N * W, x += N * W, y += N * W) {
        if (kPrefetches && !stream)
#pragma GCC unroll 4
          for (int line = 0; line < N * kVectorBytes; line += 64)
            __builtin_prefetch(reinterpret_cast<const char *>(x) + 1024 + line);
        Vec<T> sum[N];
        Sums<N>(x, kHasEnding ? ending.pre : nullptr, sum);
        if constexpr (kHasEnding) {
          if (ending.pre != nullptr) ending.pre += N * W;
          if (ending.has_bias)
#pragma GCC unroll 16
            for (int v = 0; v < N; ++v) sum[v] += bias;
          if (ending.post != nullptr) {
#pragma GCC unroll 16
            for (int v = 0; v < N; ++v) sum[v] *= Load<W>(ending.post + v * W);
            ending.post += N * W;
          }
        }
#pragma GCC unroll 16
        for (int v = 0; v < N; ++v) {
          if (stream) StoreStream<W, T>(y + v * W, sum[v]);
          else Store<W>(y + v * W, sum[v]);
        }
      }
    };
    run(Count<kVectors>{});
    if constexpr (kVectors >= 8) run(Count<2>{});
    run(Count<1>{});
  }

  static void Convolve(const T *past, const T *x, T *h, T *y, int64_t count, const ShortEnding<T> &ending) {
    ShortRow row(past, h, ending.bias);
    if (ending.has_bias || ending.pre != nullptr || ending.post != nullptr)
      row.template Run<true>(x, y, count, ending);
    else row.template Run<false>(x, y, count, ending);
  }

 private:
  template <int N>
  struct Count {
    static constexpr int kCount = N;
  };
};

#if defined(__AVX512F__)
// ShiftLanes by any number of lanes.
template <class T>
struct LaneShift {
  static constexpr int W = kLanes<T>;
  Vec<Unsigned<T>> index;

  explicit CONVSCAN_INLINE LaneShift(int distance) {
    for (int l = 0; l < W; ++l) index[l] = static_cast<Unsigned<T>>(W - distance + l);
  }
  CONVSCAN_INLINE Vec<T> operator()(Vec<T> before, Vec<T> now) const {
    if constexpr (W == 8) return (Vec<T>)_mm512_permutex2var_pd((__m512d)before, (__m512i)index, (__m512d)now);
    else return (Vec<T>)_mm512_permutex2var_ps((__m512)before, (__m512i)index, (__m512)now);
  }
};
inline constexpr bool kShiftsByAny = true;
#else
inline constexpr bool kShiftsByAny = false;
#endif

// The same for many taps. What lies W samples back is a vector back, so that vectors along time are rows, and every W-th tap
// meets them like channels. Where samples are shifted in registers, they are by less than P; sums of such taps are shifted
// by multiples of P.
template <class T>
struct ManyRow {
  static constexpr int W = kLanes<T>, P = kShiftsByAny ? 4 : W, kMost = kOutputsAtOnce<T>;

  // Samples before the first output that are read, though not all of them count.
  static constexpr int64_t Past(int64_t taps) { return kShiftsByAny ? (Each(taps) + 1) * W : taps - 1; }

  // Values of taps, and room behind them.
  static constexpr int64_t Count(int64_t taps) {
    return (Each(taps) * W + (kShiftsByAny ? (P - 1) * (Each(taps) + kMost) + kMost : 0)) * W;
  }
  // Each tap in all lanes, those W apart side by side.
  static void PackTaps(const T *h, int64_t taps, T *out) {
    for (int64_t k = 0; k < taps; ++k) Store<W>(out + (k % W * Each(taps) + k / W) * W, Broadcast<T>(h[k]));
  }

  static void Convolve(const T *, const T *x, T *h, T *y, int64_t count, const ShortEnding<T> &ending) {
    for (int64_t i = 0; i < count;) {
      if (count >= kMost * W) {
        i = Min(i, count - kMost * W);  // the last ones again, which takes less than few at a time
        Run<kMost>(x, h, y, i, ending);
      } else if (count - i >= 4 * W) {
        Run<4>(x, h, y, i, ending);
      } else {
        Run<1>(x, h, y, i, ending);
      }
    }
  }

 private:
  static constexpr int64_t Each(int64_t taps) { return CeilDiv(taps, W); }

  // N vectors of outputs from i on.
  template <int N>
  static CONVSCAN_INLINE void Run(const T *x, T *h, T *y, int64_t &i, const ShortEnding<T> &ending) {
    const int64_t taps = ending.taps, each = Each(taps);
    const auto accumulate = [&](auto &sum, const T *from, int64_t first) __attribute__((always_inline)) {
      AccumulateTaps(sum, from, h + first * each * W, 0, (taps - first - 1) / W + 1);
    };
    Vec<T> sum[N] = {};
#if defined(__AVX512F__)
    const int64_t rows = each + N;
    T *const shifted = h + each * W * W;
    Vec<T> before = Load<W>(x + i - (each + 1) * W);
    for (int64_t row = 0; row < rows; ++row) {
      const Vec<T> now = Load<W>(x + i + (row - each) * W);
      __builtin_prefetch(x + i + (row + N) * W);
      Store<W>(shifted + row * W, ShiftLanes<1, T>(before, now));
      Store<W>(shifted + (rows + row) * W, ShiftLanes<2, T>(before, now));
      Store<W>(shifted + (2 * rows + row) * W, ShiftLanes<3, T>(before, now));
      before = now;
    }
    Vec<T> part[N + 1] = {};
    for (int64_t first = Min(W - P, (taps - 1) / P * P); first >= 0; first -= P) {
      for (int64_t b = 0; b < Min(P, taps - first); ++b)
        accumulate(part, b == 0 ? x + i - W : shifted + ((b - 1) * rows + each - 1) * W, first + b);
      if (first > 0) {
#pragma GCC unroll 17
        for (int v = N; v > 0; --v) part[v] = ShiftLanes<P, T>(part[v - 1], part[v]);
        part[0] = ShiftLanes<P, T>(part[0], part[0]);
      }
    }
#pragma GCC unroll 16
    for (int v = 0; v < N; ++v) sum[v] = part[v + 1];
#else
    for (int64_t b = 0; b < Min(W, taps); ++b) accumulate(sum, x + i - b, b);
#endif
#pragma GCC unroll 16
    for (int v = 0; v < N; ++v) {
      if (ending.has_bias) sum[v] += Broadcast<T>(ending.bias);
      if (ending.post != nullptr) sum[v] *= Load<W>(ending.post + i + v * W);
      if (ending.streams) StoreStream<W, T>(y + i + v * W, sum[v]);
      else Store<W>(y + i + v * W, sum[v]);
    }
    i += N * W;
  }
};

// Samples before the first output that are read, though not all of them count. Only unaligned loads want them where the
// first output's sample lies.
template <class T>
int64_t ShortPast(int64_t taps) {
  if (taps > kShortTaps) return ManyRow<T>::Past(taps);
  return kShiftsInRegisters ? 2 * kLanes<T> : taps - 1;
}

template <class T>
using ConvolveShortRow = decltype(&ShortRow<1, T>::Convolve);
template <class T, int... I>
ConvolveShortRow<T> ChooseShortRow(int64_t taps, Indices<I...>) {
  if (taps > kShortTaps) return ManyRow<T>::Convolve;
  static constexpr ConvolveShortRow<T> kRows[] = {ShortRow<I + 1, T>::Convolve...};
  return kRows[taps - 1];
}

template <class S>
struct ShortRows {
  using T = Compute<S>;
  static constexpr int W = kLanes<T>;

  const convscan_conv &p;
  ConvolveShortRow<T> convolve;
  bool shifts;
  int64_t past, tile;
  T *x, *z, *taps, *many;
  size_t bytes;

  ShortRows(const convscan_conv &p, void *workspace)
      : p(p),
        convolve(ChooseShortRow<T>(p.taps, MakeIndices<kShortTaps>{})),
        shifts(ShiftsInRegisters(p.taps)),
        past(ShortPast<T>(p.taps)),
        tile(Min(kShortTile, RoundUp(p.length, W))) {
    Arena arena(workspace);
    x = arena.Take<T>(past + tile);
    z = arena.Take<T>(tile);
    taps = arena.Take<T>(p.taps);
    many = p.taps > kShortTaps ? arena.Take<T>(ManyRow<T>::Count(p.taps)) : taps;
    bytes = arena.Used();
  }

  // Outputs [begin, end) of one row.
  void Run(int64_t b, int64_t n, int64_t begin, int64_t end, bool stream) {
    const Signal<S> input = InputOf<S>(p);
    const S *h = FilterOf<S>(p, b, n);
    for (int64_t k = 0; k < p.taps; ++k) taps[k] = LoadScalar(h + k * p.h_tap_stride);
    if (many != taps) ManyRow<T>::PackTaps(taps, p.taps, many);
    S *const y = static_cast<S *>(p.y) + b * p.y_strides.batch + n * p.y_strides.channel;
    const Gate<S> pre = PreGate<S>(p), post = PostGate<S>(p);
    const bool reads_x = kSame<S, T> && p.x_strides.time == 1 && !IsInPlace<S>(p) &&
                         (p.pre_gate == nullptr || (shifts && p.pre_gate_strides.time == 1));
    const bool writes_y = kSame<S, T> && p.y_strides.time == 1 && !IsInPlace<S>(p) &&
                          (p.post_gate == nullptr || p.post_gate_strides.time == 1) && p.activation == CONVSCAN_IDENTITY;
    int64_t held = 0;  // samples in the last tile, behind which the past of the next output stands; 0 for none
    // The past of the next output to the front of the tile.
    const auto pack_past = [&](int64_t now) {
      if (held == 0) return input.PackRow(b, n, now - past, past, x);
      for (int64_t i = 0; i < past; ++i) x[i] = x[held + i];
      held = 0;
    };
    const ShortEnding<T> biased{BiasOf<S>(p, b, n), p.taps, p.bias != nullptr};
    for (int64_t t = begin; t < end;) {
      const int64_t now = t + p.origin, last = Min(end, p.length - p.origin), first = shifts ? 0 : past;
      if constexpr (kSame<S, T>) {
        const bool is_aligned = !stream || reinterpret_cast<uintptr_t>(y + t) % kVectorBytes == 0;
        if (reads_x && now >= first && t + W <= last && (is_aligned || !writes_y)) {
          const int64_t count = (writes_y ? last - t : Min(tile, last - t)) / W * W;
          if (shifts) pack_past(now);
          ShortEnding<T> ending = biased;
          if (pre.factors != nullptr) ending.pre = pre.At(b, now, n);
          if (writes_y && post.factors != nullptr) ending.post = post.At(b, t, n);
          ending.streams = writes_y && stream;
          convolve(x, input.At(b, now, n), many, writes_y ? y + t : z, count, ending);
          if (!writes_y) Finish(b, n, t, count, y, stream);
          t += count;
          held = 0;
          continue;
        }
      }
      pack_past(now);
      const int64_t least = p.taps > kShortTaps ? Max(first - now, tile - W) : first - now;
      const int64_t most = reads_x && t < last ? Min(tile, Head(y + t, least, last - t, stream)) : tile;
      const int64_t count = Min(end - t, most);
      input.PackRow(b, n, now, count, x + past);
      for (int64_t i = count; i < RoundUp(count, W); ++i) x[past + i] = T(0);
      T *to = z;
      ShortEnding<T> ending = biased;
      if constexpr (kSame<S, T>) {
        if (writes_y && !stream && count % W == 0) {
          to = y + t;
          if (post.factors != nullptr) ending.post = post.At(b, t, n);
        }
      }
      convolve(x, x + past, many, to, RoundUp(count, W), ending);
      if (to == z) Finish(b, n, t, count, y, stream);
      t += count;
      held = count;
    }
    if (stream) StreamFence();
  }

 private:
  // How many outputs are packed before samples are read as they lie: at least `least` and one. Behind them whatever is
  // streamed is aligned; otherwise whole vectors are left.
  static int64_t Head(const S *y, int64_t least, int64_t left, bool stream) {
    constexpr int64_t kLanesOfS = kVectorBytes / static_cast<int64_t>(sizeof(S));
    least = Max(1, least);
    if (!stream) return least + Max(0, left - least) % W;
    const int64_t off = static_cast<int64_t>(reinterpret_cast<uintptr_t>(y + least) % kVectorBytes / sizeof(S));
    return least + (kLanesOfS - off) % kLanesOfS;
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
  const int64_t pieces = TimePieces(rows, threads, p.length, LeastPiece(p), IsInPlace<S>(p));
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

}  // namespace convscan::CONVSCAN_ISA
