// Gradient with respect to the filter, a correlation:
//
//   dh[k,n] = sum_{b,t} dz[b,t,n] x[b,t-k,n]
//
// with several taps times several times in registers. Sums run over a tile of time in the compute type and over tiles
// in float64, so that the error does not grow with the length.
#include "conv/gradient_chunks.h"
#include "conv/register_tile.h"
#include "conv/signal.h"
#include "core/kernels.h"
#include "core/storage.h"

namespace convscan::CONVSCAN_ISA {
namespace {

constexpr int64_t kTile = 256;      // times per packed tile
constexpr int64_t kChunk = 8192;    // times per lane before the past is packed anew
// Bytes of adjacent channels packed together, while their tiles take at most kTileBytes: of most arrays every time step
// lies in a page of its own (2048 x 1536, K = 4: 2.3 ns an element with 128 bytes, 1.2 with 512).
constexpr int64_t kRowBytes = 512, kTileBytes = int64_t{384} << 10;

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

template <class S>
struct GradientPlan {
  static constexpr int W = GradientTile<S>::W;

  const convscan_filter_gradient &p;
  GradientChunks<W> chunks;

  explicit GradientPlan(const convscan_filter_gradient &p)
      : p(p), chunks(p, IsAdjacent(p), IsAdjacent(p) ? Columns(p) : 1, kChunk, 0) {}

  // The sums of chunks [begin, end) of one group of channels.
  const double *Run(void *workspace, int64_t n, int64_t begin, int64_t end) const {
    GradientTile<S> tile(p, chunks.columns, workspace);
    tile.Clear();
    chunks.Run(begin, end, [&](int64_t b, int64_t sequence, int64_t start) { RunChunk(tile, n, b, sequence, start); });
    return tile.sums;
  }

 private:
  static bool IsAdjacent(const convscan_filter_gradient &p) {
    return p.x_strides.channel == 1 && p.dz_strides.channel == 1 && p.channels >= W;
  }
  static int64_t Columns(const convscan_filter_gradient &p) {
    const int64_t fits = kTileBytes / ((2 * kTile + 3 * RoundUp(p.taps, GradientTile<S>::N)) * kVectorBytes);
    return Min(Max(1, Min(kRowBytes / kVectorBytes, fits)), CeilDiv(p.channels, W));
  }

  // What the steps from `start` of one sequence add, a segment of them for each lane of a channel.
  void RunChunk(GradientTile<S> &tile, int64_t n, int64_t b, int64_t sequence, int64_t start) const {
    const int64_t first = SequenceBegin(p, sequence), length = SequenceEnd(p, sequence) - first;
    const Signal<S> x = SamplesOf<S>(p, first, length, sequence), dz = GradientOf<S>(p, first, length);
    Lane lanes[W];
    chunks.SetLanes(b, n, start, lanes);
    const auto pack = [&](const Signal<S> &signal, int64_t t, int64_t count, Compute<S> *out, int64_t plane) {
      if (chunks.is_adjacent) signal.PackColumns(b, n, tile.columns, start + t, count, out, W, plane);
      else signal.PackLanes(lanes, t, count, out);
    };
    pack(x, p.origin - tile.reach, tile.reach, tile.x, tile.x_plane);
    const int64_t longest = Min(chunks.steps, length - start);
    for (int64_t t = 0; t < longest; t += kTile) {
      const int64_t count = Min(kTile, longest - t);
      pack(x, p.origin + t, count, tile.x + tile.reach * W, tile.x_plane);
      pack(dz, t, count, tile.dz, tile.z_plane);
      // Lanes that are segments of time have a past from the first step on.
      tile.Correlate(count, p.state != nullptr || chunks.segments > 1 ? tile.taps : start + t + p.origin);
    }
  }
};

template <class S>
convscan_status FilterGradient(const convscan_filter_gradient &p) {
  using Gradient = Compute<S>;
  const GradientPlan<S> plan(p);
  const GradientTile<S> shape(p, plan.chunks.columns, nullptr);
  return plan.chunks.SumParts(
      Threads(p.threads, p.batch * p.length * p.channels * p.taps), shape.bytes,
      shape.columns * shape.taps * GradientPlan<S>::W,
      [&](void *workspace, int64_t n, int64_t begin, int64_t end) { return plan.Run(workspace, n, begin, end); },
      [&](int64_t n, const double *sums) {
        for (int64_t i = 0; i < Min(plan.chunks.group, p.channels - n); ++i)
          for (int64_t k = 0; k < p.taps; ++k)
            static_cast<Gradient *>(p.dh)[k * p.dh_tap_stride + (n + i) * p.dh_channel_stride] =
                static_cast<Gradient>(plan.chunks.Total(sums, shape.taps, i, k));
      });
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
