// Gradient with respect to the filter, a correlation:
//
//   dh[k,n] = sum_{b,t} dz[b,t,n] x[b,t-k,n]
//
// with several taps times several times in registers. Sums run over a tile of time in the compute type and over tiles
// in float64, so that the error does not grow with the length. Lanes are channels, or (channel, segment of time) where
// channels are fewer than lanes. Where those are too few tasks, batch and time are cut into parts, a number that
// depends on the problem only, added up in order: the result is the same for any number of threads.
#include "conv/register_tile.h"
#include "conv/signal.h"
#include "core/kernels.h"
#include "core/storage.h"

namespace convscan::CONVSCAN_ISA {
namespace {

constexpr int64_t kTile = 256;      // times per packed tile
constexpr int64_t kChunk = 8192;    // times per lane before the past is packed anew
constexpr int64_t kTasks = 16;      // wanted at least, to keep threads busy
constexpr int64_t kStepsPerTap = 4;  // of a part at least: its sums are cleared, kept and added up
// Bytes of adjacent channels packed together, while their tiles take at most kTileBytes: of most arrays every time step
// lies in a page of its own (2048 x 1536, K = 4: 2.3 ns an element with 128 bytes, 1.2 with 512).
constexpr int64_t kRowBytes = 512, kTileBytes = int64_t{384} << 10;

// sum[i] += sum_t dz[t] x[t - i], 0 <= t < count, over rows of W lanes.
template <int N, class T>
CONVSCAN_INLINE void CorrelateTaps(Vec<T> (&sum)[N], const T *x, const T *dz, int64_t count) {
  constexpr int W = kLanes<T>;
  int64_t t = 0;
  for (; t + kTapsAtOnce <= count; t += kTapsAtOnce) {
    Vec<T> factor[kTapsAtOnce];
#pragma GCC unroll 4
    for (int q = 0; q < kTapsAtOnce; ++q) factor[q] = Load<W>(dz + (t + q) * W);
#pragma GCC unroll 32
    for (int j = 1 - N; j < kTapsAtOnce; ++j) {
      const Vec<T> sample = Load<W>(x + (t + j) * W);
#pragma GCC unroll 4
      for (int q = 0; q < kTapsAtOnce; ++q)
        if (q - j >= 0 && q - j < N) sum[q - j] += factor[q] * sample;
    }
    EndOfStep();
  }
  for (; t < count; ++t) {
    const Vec<T> factor = Load<W>(dz + t * W);
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) sum[i] += factor * Load<W>(x + (t - i) * W);
  }
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

template <class S>
struct GradientTile {
  using T = Compute<S>;
  static constexpr int W = kLanes<T>, N = kOutputsAtOnce<T>;

  int64_t columns, reach, taps, x_plane, z_plane;  // taps in whole register tiles
  T *x, *dz;
  double *sums;  // [columns][taps][W]
  size_t bytes;

  GradientTile(const convscan_filter_gradient &p, int64_t columns, void *workspace) : columns(columns) {
    taps = RoundUp(p.taps, N);
    reach = taps - 1;
    x_plane = (reach + kTile) * W;
    z_plane = kTile * W;
    Arena arena(workspace);
    x = arena.Take<T>(columns * x_plane);
    dz = arena.Take<T>(columns * z_plane);
    sums = arena.Take<double>(columns * taps * W);
    bytes = arena.Used();
  }

  void Clear() {
    for (int64_t i = 0; i < columns * taps * W; ++i) sums[i] = 0;
  }

  // `past`: samples before the tile that can be other than zero. Steps of which a tap meets none of them are left out,
  // half of all where the filter is as long as the sequence.
  void Correlate(int64_t count, int64_t past) {
    for (int64_t c = 0; c < columns; ++c) {
      for (int64_t k = 0; k < Min(taps, past + count); k += N) {
        Vec<T> sum[N] = {};
        const int64_t first = Max(0, k - past) / kTapsAtOnce * kTapsAtOnce;
        CorrelateTaps<N, T>(sum, x + c * x_plane + (reach - k + first) * W, dz + c * z_plane + first * W, count - first);
#pragma GCC unroll 16
        for (int i = 0; i < N; ++i) {
          double *total = sums + (c * taps + k + i) * W;
          Store<W>(total, Load<W>(total) + __builtin_convertvector(sum[i], Vec<double, W>));
        }
      }
      memmove(x + c * x_plane, x + c * x_plane + count * W, static_cast<size_t>(reach * W) * sizeof(T));
    }
  }
};

// Which lanes, chunks of time and parts a problem is cut into.
template <class S>
struct GradientPlan {
  static constexpr int W = GradientTile<S>::W;

  const convscan_filter_gradient &p;
  bool is_adjacent;                                   // lanes are adjacent channels, several vectors at once
  int64_t columns, group, segments;                   // group: channels per task
  int64_t steps, chunks_each, chunks, groups, parts;  // chunks: of all sequences together

  explicit GradientPlan(const convscan_filter_gradient &p) : p(p) {
    is_adjacent = p.x_strides.channel == 1 && p.dz_strides.channel == 1 && p.channels >= W;
    const int64_t fits = kTileBytes / ((2 * kTile + 3 * RoundUp(p.taps, GradientTile<S>::N)) * kVectorBytes);
    columns = is_adjacent ? Min(Max(1, Min(kRowBytes / kVectorBytes, fits)), CeilDiv(p.channels, W)) : 1;
    group = Min(columns * W, p.channels);
    segments = is_adjacent ? 1 : W / group;
    steps = RoundUp(Min(kChunk, CeilDiv(LongestSequence(p), segments)), kTapsAtOnce);
    chunks_each = 0;
    for (int64_t s = 0; s < Sequences(p); ++s) chunks_each += ChunksOf(s);
    chunks = p.batch * chunks_each;
    groups = CeilDiv(p.channels, group);
    parts = Max(1, Min(Min(chunks, CeilDiv(kTasks, groups)), p.batch * p.length / (kStepsPerTap * Max(1, p.taps))));
  }

  int64_t ChunksOf(int64_t sequence) const {
    return CeilDiv(SequenceEnd(p, sequence) - SequenceBegin(p, sequence), steps * segments);
  }

  // Chunks [begin, end) of one group of channels.
  void Run(GradientTile<S> &tile, int64_t n, int64_t begin, int64_t end) const {
    tile.Clear();
    if (begin >= end) return;
    int64_t b = begin / chunks_each, sequence = 0, part = begin % chunks_each;
    for (; part >= ChunksOf(sequence); ++sequence) part -= ChunksOf(sequence);
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      RunChunk(tile, n, b, sequence, part * steps * segments);
      if (++part < ChunksOf(sequence)) continue;
      part = 0;
      do {
        if (++sequence == Sequences(p)) {
          sequence = 0;
          ++b;
        }
      } while (ChunksOf(sequence) == 0);
    }
  }

  // The sum over the lanes of channel n + i of its group, for tap k.
  double Total(const GradientTile<S> &tile, const double *sums, int64_t i, int64_t k) const {
    double total = 0;
    for (int64_t s = 0; s < segments; ++s) total += sums[(i / W * tile.taps + k) * W + i % W + s * group];
    return total;
  }

 private:
  // What the steps from `start` of one sequence add, a segment of them for each lane of a channel.
  void RunChunk(GradientTile<S> &tile, int64_t n, int64_t b, int64_t sequence, int64_t start) const {
    const int64_t first = SequenceBegin(p, sequence), length = SequenceEnd(p, sequence) - first;
    const Signal<S> x = SamplesOf<S>(p, first, length, sequence), dz = GradientOf<S>(p, first, length);
    Lane lanes[W];
    for (int l = 0; l < W; ++l)
      lanes[l] = {b, Min(n + l % group, p.channels - 1), start + Min(l / group, segments - 1) * steps};
    Pack(x, b, n, start, lanes, p.origin - tile.reach, tile.reach, tile.columns, tile.x, tile.x_plane);
    const int64_t longest = Min(steps, length - start);
    for (int64_t t = 0; t < longest; t += kTile) {
      const int64_t count = Min(kTile, longest - t);
      Pack(x, b, n, start, lanes, p.origin + t, count, tile.columns, tile.x + tile.reach * W, tile.x_plane);
      Pack(dz, b, n, start, lanes, t, count, tile.columns, tile.dz, tile.z_plane);
      // Lanes that are segments of time have a past from the first step on.
      tile.Correlate(count, p.state != nullptr || segments > 1 ? tile.taps : start + t + p.origin);
    }
  }

  void Pack(const Signal<S> &signal, int64_t b, int64_t n, int64_t start, const Lane (&lanes)[W], int64_t t,
            int64_t count, int64_t columns, Compute<S> *out, int64_t plane) const {
    if (is_adjacent) signal.PackColumns(b, n, columns, start + t, count, out, W, plane);
    else signal.PackLanes(lanes, t, count, out);
  }
};

template <class S>
convscan_status FilterGradient(const convscan_filter_gradient &p) {
  using Gradient = Compute<S>;
  constexpr int W = GradientPlan<S>::W;
  const GradientPlan<S> plan(p);
  const GradientTile<S> shape(p, plan.columns, nullptr);
  const int threads = Threads(p.threads, p.batch * p.length * p.channels * p.taps);
  // The sums of all parts stand behind the tile in the calling thread's workspace, which its own tasks also ask for,
  // at the same size so that it stays where it is.
  const int64_t part = plan.columns * shape.taps * W, kept = plan.parts > 1 ? plan.parts * plan.groups * part : 0;
  const size_t bytes = shape.bytes + static_cast<size_t>(kept) * sizeof(double);
  char *const own = static_cast<char *>(Workspace(bytes));
  if (own == nullptr) return CONVSCAN_OUT_OF_MEMORY;
  double *const partial = reinterpret_cast<double *>(own + shape.bytes);
  const auto store = [&](int64_t n, auto total) {
    for (int64_t i = 0; i < Min(plan.group, p.channels - n); ++i)
      for (int64_t k = 0; k < p.taps; ++k)
        static_cast<Gradient *>(p.dh)[k * p.dh_tap_stride + (n + i) * p.dh_channel_stride] =
            static_cast<Gradient>(total(i, k));
  };
  bool failed = false;
  ParallelFor(plan.groups * plan.parts, threads, [&](int64_t task) {
    void *workspace = Workspace(bytes);
    if (workspace == nullptr) return __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
    GradientTile<S> tile(p, plan.columns, workspace);
    const int64_t g = task / plan.parts, i = task % plan.parts, n = g * plan.group;
    plan.Run(tile, n, i * plan.chunks / plan.parts, (i + 1) * plan.chunks / plan.parts);
    if (plan.parts > 1) memcpy(partial + task * part, tile.sums, static_cast<size_t>(part) * sizeof(double));
    else store(n, [&](int64_t i, int64_t k) { return plan.Total(tile, tile.sums, i, k); });
  });
  if (failed) return CONVSCAN_OUT_OF_MEMORY;
  for (int64_t g = 0; plan.parts > 1 && g < plan.groups; ++g) {
    double *const sums = partial + g * plan.parts * part;
    for (int64_t j = 1; j < plan.parts; ++j)
      for (int64_t i = 0; i < part; ++i) sums[i] += sums[j * part + i];
    store(g * plan.group, [&](int64_t i, int64_t k) { return plan.Total(shape, sums, i, k); });
  }
  return CONVSCAN_OK;
}

}  // namespace

convscan_status FilterGradientDirect(const convscan_filter_gradient &problem) {
  return WithRealStorage(problem.dtype, [&](auto type) {
    using S = typename decltype(type)::Storage;
    const convscan_filter_gradient p = WithoutIdleTaps<S>(problem);
    return p.taps == 0 ? CONVSCAN_OK : FilterGradient<S>(p);
  });
}

}  // namespace convscan::CONVSCAN_ISA
