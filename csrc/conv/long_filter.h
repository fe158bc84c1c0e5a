// Direct convolution with many taps, bound by arithmetic: tiles of time are packed as rows of W lanes, and every lane
// runs its own filter. Lanes are adjacent channels, or, for other layouts and for few channels, (sequence, segment of
// time) pairs. One task walks along time and keeps the past in its tile, which is why it may write over its input.
#pragma once

#include "conv/register_tile.h"
#include "conv/signal.h"

namespace convscan::CONVSCAN_ISA {

// Outputs per tile, and how many vectors of adjacent channels a task takes along: four lines of memory per row.
inline constexpr int64_t kLongTile = 256;
template <class T>
inline constexpr int kLongColumns = 256 / kVectorBytes;

template <class S>
struct LongTile {
  using T = Compute<S>;
  static constexpr int W = kLanes<T>, N = kOutputsAtOnce<T>;

  const convscan_conv &p;
  int64_t columns, tile, reach, x_plane, h_plane;
  T *x, *h, *bias, *z;
  size_t bytes;

  LongTile(const convscan_conv &p, int64_t columns, int64_t steps, void *workspace)
      : p(p), columns(columns), tile(Min(kLongTile, RoundUp(steps, Max(N, W)))), reach(Reach(p)) {
    // Planes start at different offsets of a page, so that their rows do not compete for the same cache sets.
    x_plane = (reach + tile) * W + 64 / static_cast<int64_t>(sizeof(T));
    h_plane = Min(p.taps, reach + 1) * W;
    Arena arena(workspace);
    x = arena.Take<T>(columns * x_plane);
    h = arena.Take<T>(columns * h_plane);
    bias = arena.Take<T>(columns * W);
    z = arena.Take<T>(columns * tile * W);
    bytes = arena.Used();
  }

  // Taps and bias of one lane.
  void PackFilter(int64_t lane, int64_t b, int64_t n) {
    const S *from = FilterOf<S>(p, b, n);
    T *to = h + lane / W * h_plane + lane % W;
    for (int64_t k = 0; k < h_plane / W; ++k) to[k * W] = LoadScalar(from + k * p.h_tap_stride);
    bias[lane] = BiasOf<S>(p, b, n);
  }

  // The filters of adjacent channels.
  void PackFilters(int64_t b, int64_t n) {
    PackFilterColumns<S>(p, b, n, columns, h_plane / W, h, W, h_plane);
    PackBiasColumns<S>(p, b, n, columns, bias, W);
  }

  // z = outputs [t, t + count) of every lane, before gate and activation; lanes start between times `earliest` and `latest`.
  void Convolve(int64_t t, int64_t count, int64_t earliest, int64_t latest) {
    for (int64_t c = 0; c < columns; ++c) {
      for (int64_t i = 0; i < count; i += N) {
        // Taps that meet only zeros before the start or after the end are left out.
        const int64_t end = p.state != nullptr ? p.taps : Min(p.taps, latest + t + i + N + p.origin);
        const int64_t begin = Max(0, earliest + t + i + p.origin - (p.length - 1));
        Vec<T> sum[N];
#pragma GCC unroll 16
        for (int r = 0; r < N; ++r) sum[r] = Load<W>(bias + c * W);
        AccumulateTaps<N, T>(sum, x + c * x_plane + (reach + i) * W, h + c * h_plane, begin, Min(end, h_plane / W));
#pragma GCC unroll 16
        for (int r = 0; r < N; ++r) Store<W>(z + (c * tile + i + r) * W, sum[r]);
      }
    }
  }

  void Activate(int64_t count) {
    for (int64_t c = 0; c < columns; ++c) ActivateRow<T>(z + c * tile * W, count * W, p.activation);
  }

  void KeepPast(int64_t count) {
    for (int64_t c = 0; c < columns; ++c)
      memmove(x + c * x_plane, x + c * x_plane + count * W, static_cast<size_t>(reach * W) * sizeof(T));
  }

  // Outputs [begin, end) of the channels from n on.
  void RunColumns(int64_t b, int64_t n, int64_t begin, int64_t end) {
    const Signal<S> input = InputOf<S>(p);
    PackFilters(b, n);
    input.PackColumns(b, n, columns, begin + p.origin - reach, reach, x, W, x_plane);
    for (int64_t t = begin; t < end; t += tile) {
      const int64_t count = Min(tile, end - t);
      input.PackColumns(b, n, columns, t + p.origin, RoundUp(count, N), x + reach * W, W, x_plane);
      Convolve(t, count, 0, 0);
      PostGate<S>(p).MultiplyColumns(b, n, columns, t, count, z, W, tile * W);
      Activate(count);
      OutputOf<S>(p).StoreColumns(b, n, columns, t, count, z, tile * W);
      if (t + count < end) KeepPast(count);
    }
  }

  // `steps` outputs of each lane; only the first `lane_count` are stored, and nothing beyond the end of time.
  void RunLanes(const Lane (&lanes)[W], int lane_count, int64_t steps) {
    const Signal<S> input = InputOf<S>(p);
    int64_t earliest = lanes[0].start, latest = lanes[0].start;
    for (int l = 0; l < W; ++l) {
      PackFilter(l, lanes[l].batch, lanes[l].channel);
      earliest = Min(earliest, lanes[l].start);
      latest = Max(latest, lanes[l].start);
    }
    input.PackLanes(lanes, p.origin - reach, reach, x);
    for (int64_t t = 0; t < steps; t += tile) {
      const int64_t count = Min(tile, steps - t);
      input.PackLanes(lanes, t + p.origin, RoundUp(count, N), x + reach * W);
      Convolve(t, count, earliest, latest);
      PostGate<S>(p).MultiplyLanes(lanes, t, count, z);
      Activate(count);
      OutputOf<S>(p).StoreLanes(lanes, lane_count, t, count, z);
      if (t + count < steps) KeepPast(count);
    }
  }
};

template <class S>
convscan_status ConvLongColumns(const convscan_conv &p, int threads) {
  using T = Compute<S>;
  constexpr int W = kLanes<T>;
  const int64_t vectors = CeilDiv(p.channels, W);
  // Fewer columns per task when threads would idle.
  const int64_t columns = Max(1, Min(kLongColumns<T>, CeilDiv(vectors * p.batch, 2 * threads)));
  const int64_t blocks = CeilDiv(vectors, columns);
  const int64_t pieces = TimePieces(p.batch * blocks, threads, p.length, Max(kLongTile, p.taps), p.x == p.y);
  const int64_t piece = RoundUp(CeilDiv(p.length, pieces), kOutputsAtOnce<T>);
  bool failed = false;
  ParallelFor(p.batch * blocks * pieces, threads, [&](int64_t task) {
    const int64_t n = task % blocks * columns * W, b = task / blocks % p.batch, begin = task / blocks / p.batch * piece;
    const int64_t end = Min(begin + piece, p.length);
    if (begin >= end) return;
    void *workspace = Workspace(LongTile<S>(p, columns, piece, nullptr).bytes);
    if (workspace == nullptr) return __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
    LongTile<S>(p, Min(columns, CeilDiv(p.channels - n, W)), piece, workspace).RunColumns(b, n, begin, end);
  });
  return failed ? CONVSCAN_OUT_OF_MEMORY : CONVSCAN_OK;
}

// How many segments of time a sequence is cut into, to fill the lanes of vectors and any usual number of threads. Each
// segment repeats the packing of its past. In place only within one vector, whose lanes move together, and only without
// looking ahead.
template <int W>
int64_t LaneSegments(const convscan_conv &p, int64_t sequences) {
  int64_t wanted = CeilDiv(16 * W, sequences);
  if (p.x == p.y) wanted = p.origin == 0 ? W / sequences : 1;
  return Max(1, Min(wanted, p.length / Max(kLongTile, 2 * p.taps)));
}

template <class S>
convscan_status ConvLongLanes(const convscan_conv &p, int threads) {
  using T = Compute<S>;
  constexpr int W = kLanes<T>;
  const int64_t sequences = p.batch * p.channels;
  const int64_t wanted = LaneSegments<W>(p, sequences);
  const int64_t steps = RoundUp(CeilDiv(p.length, wanted), W), segments = CeilDiv(p.length, steps);
  const int64_t lane_total = sequences * segments;
  bool failed = false;
  ParallelFor(CeilDiv(lane_total, W), threads, [&](int64_t task) {
    void *workspace = Workspace(LongTile<S>(p, 1, steps, nullptr).bytes);
    if (workspace == nullptr) return __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
    Lane lanes[W];
    const int lane_count = static_cast<int>(Min(W, lane_total - task * W));
    for (int l = 0; l < W; ++l) {
      // Unused lanes repeat the last one.
      const int64_t lane = Min(task * W + l, lane_total - 1), sequence = lane / segments;
      lanes[l] = {sequence / p.channels, sequence % p.channels, lane % segments * steps};
    }
    LongTile<S>(p, 1, steps, workspace).RunLanes(lanes, lane_count, steps);
  });
  return failed ? CONVSCAN_OUT_OF_MEMORY : CONVSCAN_OK;
}

template <class S>
convscan_status ConvLong(const convscan_conv &p) {
  const int threads = Threads(p.threads, p.batch * p.length * p.channels * Min(p.taps, p.length));
  const bool is_adjacent = p.x_strides.channel == 1 && p.y_strides.channel == 1;
  return is_adjacent && p.channels >= kLanes<Compute<S>> ? ConvLongColumns<S>(p, threads)
                                                         : ConvLongLanes<S>(p, threads);
}

}  // namespace convscan::CONVSCAN_ISA
