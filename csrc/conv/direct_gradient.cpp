// The gradients of a convolution with a short filter, all of them in one pass over the arrays: what fft_gradient.cpp
// computes, and in its words. Tiles of a few rows of time go from the inputs to the gradients in the first-level cache. A
// tile has dz of its own times, which meets the newest u for dh, and finishes du of samples K - 1 - o before: its filter looks
// ahead in dz, so that it looks back from there. Behind the end of a sequence follow K - 1 - o more times without dz, and
// where a chunk does not begin with a sequence, K - 1 times before it that only make dz. With up to four taps all lies in
// registers between inputs and outputs (conv/short_gradient.h): over channels of tiles inside of a sequence, which are
// read and written where they are, along time of every tile, which is packed.
//
// Lanes and tasks are those of conv/gradient_chunks.h, whose sums of dh and dbias do not depend on the number of threads.
#include "conv/gradient_chunks.h"
#include "conv/register_tile.h"
#include "conv/short_gradient.h"
#include "core/kernels.h"
#include "core/storage.h"

namespace convscan::CONVSCAN_ISA {
namespace {

// Rows of a tile: over channels, where all of it is done in registers, and along time, where W of them are transposed at
// once, with lanes of their own.
constexpr int64_t kColumnRows = 16, kFusedRows = 32, kLaneRows = 128;
// Bytes of adjacent channels packed together. Beyond the caches as many as lie in a row, while the tile takes at most
// kTileBytes of the second-level cache (8192 x 1024, K = 4, two gates: 4096, 2048, 1024 and 256 bytes take 8.6, 11.8, 12.8
// and 16.1 ms; seven arrays are copied in 5).
constexpr int64_t kRowBytes = 256, kFarRowBytes = 4096, kTileBytes = int64_t{384} << 10;
constexpr int64_t kRowsPerSum = 256;  // what is added up in the compute type, before float64

// Signals of more bytes come from beyond the second-level cache; the next tile's are then asked for in so many parts.
constexpr int64_t kFarBytes = int64_t{1} << 20;
constexpr int kParts = 4;

constexpr int64_t kLongestChunk = 8192, kShortestChunk = 512;

template <class S>
struct GradientTile {
  using T = Compute<S>;
  static constexpr int W = kLanes<T>, N = kOutputsAtOnce<T>;

  const convscan_conv_gradient &p;
  const convscan_filter_gradient &f;
  int64_t columns, rows, lag, kept, reach, summed;  // kept, reach: rows of dz and of u before the tile; summed: taps
  bool needs_z;
  T *u, *dz, *z, *w, *out, *h, *flipped, *bias, *partial;
  double *sums;
  size_t bytes;
  int64_t since = 0;  // rows in `partial`

  // du comes `lag` times behind the tile.
  GradientTile(const convscan_conv_gradient &p, int64_t columns, int64_t rows, int64_t lag, void *workspace)
      : p(p),
        f(p.filter),
        columns(columns),
        rows(rows),
        lag(lag),
        kept(lag + f.origin),
        summed(RoundUp(f.taps, TapsAtOnce())),
        needs_z(p.activation != CONVSCAN_IDENTITY || p.dpost_gate != nullptr) {
    reach = summed - 1;
    Arena arena(workspace);
    u = arena.Take<T>(columns * SignalPlane());
    dz = arena.Take<T>(columns * GradientPlane());
    z = arena.Take<T>(columns * Plane());
    w = arena.Take<T>(columns * Plane());
    out = arena.Take<T>(columns * Plane());
    h = arena.Take<T>(columns * f.taps * W);
    flipped = arena.Take<T>(columns * f.taps * W);
    bias = arena.Take<T>(columns * W);
    partial = arena.Take<T>(columns * SumRows() * W);
    sums = arena.Take<double>(columns * SumRows() * W);
    bytes = arena.Used();
  }

  int TapsAtOnce() const { return f.taps <= 4 ? 4 : f.taps <= 8 || N <= 8 ? 8 : N; }
  int64_t Plane() const { return rows * W; }
  int64_t SignalPlane() const { return (reach + rows) * W; }
  int64_t GradientPlane() const { return (kept + rows) * W; }
  int64_t SumRows() const { return summed + 1; }  // of the taps and the bias
  int64_t Sums() const { return columns * SumRows() * W; }

  void Clear() {
    for (int64_t i = 0; i < Sums(); ++i) sums[i] = 0, partial[i] = 0;
  }

  // Taps, in both directions, and bias of a lane's channel.
  void PackFilter(int64_t lane, int64_t n) {
    const int64_t filter = p.filter_group > 1 ? n / p.filter_group : n, at = lane / W * f.taps * W + lane % W;
    const S *const from = static_cast<const S *>(p.h) + filter * p.h_channel_stride;
    for (int64_t k = 0; k < f.taps; ++k)
      h[at + k * W] = flipped[at + (f.taps - 1 - k) * W] = LoadScalar(from + k * p.h_tap_stride);
    bias[lane] = p.bias == nullptr ? T(0) : LoadScalar(static_cast<const S *>(p.bias) + n * p.bias_stride);
  }

  // z of `count` times.
  void Convolve(int64_t count) {
    for (int64_t c = 0; c < columns; ++c)
      for (int64_t i = 0; i < count; i += N) {
        Vec<T> sum[N];
#pragma GCC unroll 16
        for (int r = 0; r < N; ++r) sum[r] = Load<W>(bias + c * W);
        AccumulateTaps<N, T>(sum, u + c * SignalPlane() + (reach + i) * W, h + c * f.taps * W, 0, f.taps);
#pragma GCC unroll 16
        for (int r = 0; r < N; ++r) Store<W>(z + c * Plane() + (i + r) * W, sum[r]);
      }
  }

  // dy becomes dy act'(w).
  void Activate(int64_t count, const T *of) {
    for (int64_t c = 0; c < columns; ++c) {
      T *const dy = Gradient(c);
      const auto run = [&](const auto &slope) {
        for (int64_t i = 0; i < count * W; i += W)
          Store<W>(dy + i, Load<W>(dy + i) * slope(Load<W>(of + c * Plane() + i)));
      };
      if (p.activation == CONVSCAN_SILU) run([](Vec<T> v) { return SiluSlope<W, T>(v); });
      else run([](Vec<T> v) { return GeluSlope<W, T>(v); });
    }
  }

  // to = z dz, of the tile's own times.
  void Multiply(int64_t count, T *to) {
    for (int64_t c = 0; c < columns; ++c)
      for (int64_t i = 0; i < count * W; i += W)
        Store<W>(to + c * Plane() + i, Load<W>(z + c * Plane() + i) * Load<W>(Gradient(c) + i));
  }

  T *Gradient(int64_t c) const { return dz + c * GradientPlane() + kept * W; }

  // du of times `lag` before the tile's.
  void ConvolveBack(int64_t count) {
    for (int64_t c = 0; c < columns; ++c)
      for (int64_t i = 0; i < count; i += N) {
        Vec<T> sum[N] = {};
        const T *const newest = Gradient(c) + (i + f.taps - 1 - kept) * W;
        AccumulateTaps<N, T>(sum, newest, flipped + c * f.taps * W, 0, f.taps);
#pragma GCC unroll 16
        for (int r = 0; r < N; ++r) Store<W>(out + c * Plane() + (i + r) * W, sum[r]);
      }
  }

  void Correlate(int64_t count) {
    switch (TapsAtOnce()) {
      case 4: CorrelateBy<4>(count); break;
      case 8: CorrelateBy<8>(count); break;
      default: CorrelateBy<N>(count); break;
    }
    Count(count);
  }

  void Count(int64_t rows) {
    since += rows;
    if (since >= kRowsPerSum) AddUp();
  }

  // What was added up in the compute type, to the sums.
  void AddUp() {
    for (int64_t i = 0; i < Sums(); i += W) {
      Store<W>(sums + i, Load<W>(sums + i) + __builtin_convertvector(Load<W>(partial + i), Vec<double, W>));
      Store<W>(partial + i, Vec<T>{});
    }
    since = 0;
  }

  // All of it in registers, of one vector of channels; what the steps above need of the past is kept as they keep it.
  template <bool kDelayed, class Storage>
  void Fuse(const GradientColumns<Storage> &arrays, int64_t c, int64_t count, int64_t ahead, bool streams) {
    switch (f.taps) {
      case 1: return FuseBy<1, kDelayed>(arrays, c, count, ahead, streams);
      case 2: return FuseBy<2, kDelayed>(arrays, c, count, ahead, streams);
      case 3: return FuseBy<3, kDelayed>(arrays, c, count, ahead, streams);
      case 4: return FuseBy<4, kDelayed>(arrays, c, count, ahead, streams);
    }
  }

  // The same of packed lanes: dy becomes dz, w is the gate of the sums, z becomes its gradient, out is du.
  void FuseLanes(int64_t count, bool has_gate) {
    GradientColumns<T> arrays{{u + reach * W, W}, {}, {Gradient(0), W}, {}, {}, {}, {out, W}, {}, {}};
    if (has_gate) arrays.post = {w, W};
    if (p.dpost_gate != nullptr) arrays.dpost = {z, W};
    Fuse<true>(arrays, 0, count, 0, false);
    Count(count);
  }

  void KeepPast(int64_t count) {
    for (int64_t c = 0; c < columns; ++c) {
      Move(u + c * SignalPlane(), count, reach);
      Move(dz + c * GradientPlane(), count, kept);
    }
  }

 private:
  static void Move(T *rows, int64_t by, int64_t count) {
    for (int64_t i = 0; i < count * W; i += W) Store<W>(rows + i, Load<W>(rows + by * W + i));
  }

  template <int K, bool kDelayed, class Storage>
  void FuseBy(const GradientColumns<Storage> &arrays, int64_t c, int64_t count, int64_t ahead, bool streams) {
    T *const total = partial + c * SumRows() * W;
    const GradientState<T> state{h + c * K * W, bias + c * W, u + c * SignalPlane() + (reach + 1 - K) * W,
                                 dz + c * GradientPlane(), total, total + summed * W, ahead};
    const auto run = [&](const auto &slope) {
      GradientsOfColumn<Storage, K, kDelayed>(arrays, state, count, Gradient(c), kept + 1 - K, streams, slope);
    };
    switch (p.activation) {
      case CONVSCAN_IDENTITY: return run([](Vec<T> dw, Vec<T>) { return dw; });
      case CONVSCAN_SILU: return run([](Vec<T> dw, Vec<T> w) { return dw * SiluSlope<W, T>(w); });
      case CONVSCAN_GELU: return run([](Vec<T> dw, Vec<T> w) { return dw * GeluSlope<W, T>(w); });
    }
  }

  template <int M>
  void CorrelateBy(int64_t count) {
    for (int64_t c = 0; c < columns; ++c) {
      T *const total = partial + c * SumRows() * W;
      const T *const newest = Gradient(c);
      for (int64_t k = 0; k < summed; k += M) {
        Vec<T> sum[M];
#pragma GCC unroll 16
        for (int i = 0; i < M; ++i) sum[i] = Load<W>(total + (k + i) * W);
        CorrelateTaps<M, T>(sum, u + c * SignalPlane() + (reach - k) * W, newest, count);
#pragma GCC unroll 16
        for (int i = 0; i < M; ++i) Store<W>(total + (k + i) * W, sum[i]);
      }
      if (p.dbias == nullptr) continue;
      Vec<T> sum[4] = {Load<W>(total + summed * W)};
      for (int64_t i = 0; i < count; ++i) sum[i % 4] += Load<W>(newest + i * W);
      Store<W>(total + summed * W, (sum[0] + sum[1]) + (sum[2] + sum[3]));
    }
  }
};

template <class S>
class DirectGradient {
 public:
  using T = Compute<S>;
  static constexpr int W = kLanes<T>;

  explicit DirectGradient(const convscan_conv_gradient &p)
      : p_(p),
        f_(p.filter),
        is_adjacent_(IsAdjacent(p)),
        fuses_(Fuses(p)),
        rows_(!is_adjacent_ ? kLaneRows : fuses_ ? kFusedRows : kColumnRows),
        is_far_(f_.batch * f_.length * f_.channels * static_cast<int64_t>(sizeof(S)) > kFarBytes),
        // Along time such that whole vectors of dx lie as those of x do.
        lag_(is_adjacent_ ? f_.taps - 1 - f_.origin : RoundUp(f_.taps - 1 - f_.origin, W)),
        chunks_(f_, is_adjacent_, is_adjacent_ ? Columns() : 1, LongestChunk(), lag_),
        streams_(StreamsOutputs()) {}

  convscan_status Run() {
    ClearEmpty();
    const GradientTile<S> shape(p_, chunks_.columns, rows_, lag_, nullptr);
    return chunks_.SumParts(
        Threads(f_.threads, 3 * f_.batch * f_.length * f_.channels * f_.taps), shape.bytes, shape.Sums(),
        [&](void *workspace, int64_t n, int64_t begin, int64_t end) { return RunPart(workspace, n, begin, end); },
        [&](int64_t n, const double *sums) {
          for (int64_t i = 0; i < Min(chunks_.group, f_.channels - n); ++i) {
            const auto total = [&](int64_t k) { return static_cast<T>(chunks_.Total(sums, shape.SumRows(), i, k)); };
            for (int64_t k = 0; f_.dh != nullptr && k < f_.taps; ++k)
              static_cast<T *>(f_.dh)[k * f_.dh_tap_stride + (n + i) * f_.dh_channel_stride] = total(k);
            if (p_.dbias != nullptr) static_cast<T *>(p_.dbias)[(n + i) * p_.dbias_stride] = total(shape.summed);
          }
        });
  }

 private:
  static bool IsAdjacent(const convscan_conv_gradient &p) {
    return p.filter.x_strides.channel == 1 && p.filter.dz_strides.channel == 1 && p.filter.channels >= W;
  }

  static bool Fuses(const convscan_conv_gradient &p) {
    const convscan_filter_gradient &f = p.filter;
    const auto fits = [](const void *array, const convscan_strides &strides) {
      return array == nullptr || strides.channel == 1;
    };
    if (f.taps > kMostFusedTaps) return false;
    if (!IsAdjacent(p)) return true;  // packed, whatever the strides
    return f.channels % W == 0 && fits(f.x_gate, f.x_gate_strides) &&
           fits(f.dz_gate, f.dz_gate_strides) && fits(p.dx, p.dx_strides) && fits(p.dpre_gate, p.dpre_gate_strides) &&
           fits(p.dpost_gate, p.dpost_gate_strides);
  }

  // The gradients of states that meet no sample.
  void ClearEmpty() const {
    const convscan_strides &strides = p_.dstate_strides;
    for (int64_t s = 0; p_.dstate != nullptr && s < Sequences(f_); ++s) {
      if (SequenceBegin(f_, s) != SequenceEnd(f_, s)) continue;
      for (int64_t b = 0; b < f_.batch; ++b)
        for (int64_t j = 0; j < f_.taps - 1; ++j)
          for (int64_t n = 0; n < f_.channels; ++n)
            StoreScalar(static_cast<S *>(p_.dstate) + b * strides.batch + s * p_.dstate_sequence_stride +
                            j * strides.time + n * strides.channel, T(0));
    }
  }

  int64_t Columns() const {
    const int64_t one = static_cast<int64_t>(GradientTile<S>(p_, 1, rows_, lag_, nullptr).bytes);
    const int64_t most = Min((is_far_ ? kFarRowBytes : kRowBytes) / kVectorBytes, kTileBytes / one);
    return Max(1, Min(most, CeilDiv(f_.channels, W)));
  }

  // Chunks of a group of channels for as many tasks as are wanted.
  int64_t LongestChunk() const {
    const int64_t group = is_adjacent_ ? Columns() * W : W;
    const int64_t each = CeilDiv(kGradientTasks, CeilDiv(f_.channels, group));
    const int64_t wanted = RoundUp(CeilDiv(f_.batch * f_.length, each), rows_);
    return Max(Min(kLongestChunk, wanted), Max(kShortestChunk, 8 * f_.taps));
  }

  // As in StreamsOutput, where whole lines of every output are stored together.
  bool StreamsOutputs() const {
    constexpr int64_t kItem = static_cast<int64_t>(sizeof(S));
    if (W * kItem % 64 != 0 || f_.batch * f_.length * f_.channels * kItem < 2 * kStreamBytes) return false;
    const auto has_lines = [&](const void *array, const convscan_strides &strides) {
      const int64_t other = is_adjacent_ ? strides.time : strides.channel;
      const uintptr_t offsets =
          reinterpret_cast<uintptr_t>(array) | static_cast<uintptr_t>((other | strides.batch) * kItem);
      return array == nullptr || ((is_adjacent_ ? strides.channel : strides.time) == 1 && offsets % 64 == 0);
    };
    return f_.boundaries == nullptr && has_lines(p_.dx, p_.dx_strides) && has_lines(p_.dpre_gate, p_.dpre_gate_strides) &&
           has_lines(p_.dpost_gate, p_.dpost_gate_strides);
  }

  const double *RunPart(void *workspace, int64_t n, int64_t begin, int64_t end) const {
    GradientTile<S> tile(p_, Min(chunks_.columns, CeilDiv(f_.channels - n, W)), rows_, lag_, workspace);
    tile.Clear();
    for (int64_t l = 0; l < tile.columns * W; ++l)
      tile.PackFilter(l, is_adjacent_ ? Min(n + l, f_.channels - 1) : Min(n + l % chunks_.group, f_.channels - 1));
    chunks_.Run(begin, end, [&](int64_t b, int64_t sequence, int64_t start) { RunChunk(tile, n, b, sequence, start); });
    tile.AddUp();
    if (streams_) StreamFence();
    return tile.sums;
  }

  // One chunk's arrays, and how its lanes are read and written.
  struct Chunk {
    int64_t batch, n, start, columns;
    bool is_adjacent;
    int lane_count;
    Lane lanes[W];

    void Pack(const Signal<S> &signal, int64_t t, int64_t count, T *to, int64_t plane) const {
      if (is_adjacent) signal.PackColumns(batch, n, columns, start + t, count, to, W, plane);
      else signal.PackLanes(lanes, t, count, to);
    }
    void Multiply(const Gate<S> &gate, int64_t t, int64_t count, T *to, int64_t plane) const {
      if (is_adjacent) gate.MultiplyColumns(batch, n, columns, start + t, count, to, W, plane);
      else gate.MultiplyLanes(lanes, t, count, to);
    }
    void Store(const Target<S> &target, int64_t t, int64_t count, const T *from, int64_t plane, bool streams) const {
      if (is_adjacent) target.StoreColumns(batch, n, columns, start + t, count, from, plane, streams);
      else target.StoreLanes(lanes, lane_count, t, count, from, streams);
    }
  };

  // Asks for a part of the inputs of a tile that begins at time t of the chunk, rows or lanes of its own.
  template <int kPart>
  void LookAhead(const Chunk &chunk, const S *const (&arrays)[4], const convscan_strides *const (&strides)[4], int64_t t,
                 int64_t length) const {
    constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(S));
    if (!is_far_ || chunk.start + t + rows_ > length) return;
    for (int a = 0; a < 4; ++a) {
      if (arrays[a] == nullptr) continue;
      const convscan_strides &step = *strides[a];
      if (is_adjacent_) {
        const S *from = arrays[a] + chunk.batch * step.batch + (chunk.start + t) * step.time + chunk.n * step.channel;
        for (int64_t i = kPart * rows_ / kParts; i < (kPart + 1) * rows_ / kParts; ++i)
          for (int64_t j = 0; j < chunk.columns * W; j += kLine) __builtin_prefetch(from + i * step.time + j, 0, 2);
      } else if (step.time == 1) {
        for (int l = kPart * W / kParts; l < (kPart + 1) * W / kParts; ++l) {
          const Lane &lane = chunk.lanes[l];
          const S *from = arrays[a] + lane.batch * step.batch + lane.start + t + lane.channel * step.channel;
          if (lane.start + t + rows_ > length) continue;
          for (int64_t i = 0; i < rows_; i += kLine) __builtin_prefetch(from + i);
        }
      }
    }
  }

  void RunChunk(GradientTile<S> &tile, int64_t n, int64_t b, int64_t sequence, int64_t start) const {
    const int64_t first = SequenceBegin(f_, sequence), length = SequenceEnd(f_, sequence) - first;
    const auto target = [&](void *array, const convscan_strides &strides) {
      return Target<S>{array == nullptr ? nullptr : static_cast<S *>(array) + first * strides.time, strides, length,
                       f_.channels};
    };
    const Signal<S> samples = SamplesOf<S>(f_, first, length, sequence);
    Signal<S> dy = GradientOf<S>(f_, first, length);
    const Gate<S> pre = samples.gate, post = dy.gate, x{samples.x, samples.strides, length, f_.channels};
    dy.gate = {};
    const Target<S> dx = target(p_.dx, p_.dx_strides), dpre = target(p_.dpre_gate, p_.dpre_gate_strides),
                    dpost = target(p_.dpost_gate, p_.dpost_gate_strides);
    const Target<S> dstate{
        p_.dstate == nullptr ? nullptr : static_cast<S *>(p_.dstate) + sequence * p_.dstate_sequence_stride,
        p_.dstate_strides, f_.taps - 1, f_.channels};

    const int64_t lane_count = Min(chunks_.group, f_.channels - n) * chunks_.segments;  // others repeat the last channel
    Chunk chunk{b, n, start, tile.columns, is_adjacent_, static_cast<int>(lane_count), {}};
    chunks_.SetLanes(b, n, start, chunk.lanes);

    const S *const arrays[] = {samples.x, pre.factors, dy.x, post.factors};
    const convscan_strides *const strides[] = {&f_.x_strides, &f_.x_gate_strides, &f_.dz_strides, &f_.dz_gate_strides};
    const int64_t plane = tile.Plane();
    const int64_t before = start > 0 || chunks_.segments > 1 ? tile.kept : 0;
    const int64_t end = Min(chunks_.steps, length + lag_ - start);
    chunk.Pack(samples, f_.origin - before - tile.reach, tile.reach, tile.u, tile.SignalPlane());
    for (int64_t c = 0; c < tile.columns; ++c)
      memset(tile.dz + c * tile.GradientPlane(), 0, static_cast<size_t>(tile.kept * W) * sizeof(T));
    for (int64_t t = -before, count; t < end; t += count) {
      count = Min(rows_, (t < 0 ? 0 : end) - t);
      const bool counts = t >= 0;
      if (counts && fuses_ && is_adjacent_ && count == rows_ && start + t >= lag_ && start + t + f_.origin + count <= length) {
        RunFused(tile, chunk, samples, dy, post, {dx, dpre, dpost}, t, length);
        continue;
      }
      LookAhead<0>(chunk, arrays, strides, t + rows_, length);
      chunk.Pack(samples, t + f_.origin, RoundUp(count, tile.N), tile.u + tile.reach * W, tile.SignalPlane());
      chunk.Pack(dy, t, count, tile.Gradient(0), tile.GradientPlane());
      LookAhead<1>(chunk, arrays, strides, t + rows_, length);
      if (counts && fuses_ && !is_adjacent_) {
        if (post.factors != nullptr)
          chunk.Pack({post.factors, post.strides, nullptr, {}, length, f_.channels, 0}, t, count, tile.w, plane);
        tile.FuseLanes(count, post.factors != nullptr);
        if (p_.dpost_gate != nullptr) chunk.Store(dpost, t, count, tile.z, plane, streams_);
        LookAhead<2>(chunk, arrays, strides, t + rows_, length);
        LookAhead<3>(chunk, arrays, strides, t + rows_, length);
        StoreLate(tile, chunk, x, pre, {dx, dpre, dstate}, t, count);
        tile.KeepPast(count);
        continue;
      }
      if (tile.needs_z) {
        tile.Convolve(count);
        if (p_.activation != CONVSCAN_IDENTITY) {
          const T *w = tile.z;
          if (post.factors != nullptr) {
            memcpy(tile.w, tile.z, static_cast<size_t>(tile.columns * plane) * sizeof(T));
            chunk.Multiply(post, t, count, tile.w, plane);
            w = tile.w;
          }
          tile.Activate(count, w);
        }
        if (p_.dpost_gate != nullptr && counts) {
          tile.Multiply(count, tile.w);
          chunk.Store(dpost, t, count, tile.w, plane, streams_);
        }
      }
      LookAhead<2>(chunk, arrays, strides, t + rows_, length);
      chunk.Multiply(post, t, count, tile.Gradient(0), tile.GradientPlane());
      if (counts) {
        tile.Correlate(count);
        LookAhead<3>(chunk, arrays, strides, t + rows_, length);
        tile.ConvolveBack(count);
        StoreLate(tile, chunk, x, pre, {dx, dpre, dstate}, t, count);
      }
      tile.KeepPast(count);
    }
  }

  // From du, which has all its dz: the gradients of x, of its gate and of the state.
  void StoreLate(const GradientTile<S> &tile, const Chunk &chunk, const Gate<S> &x, const Gate<S> &pre,
                 const Target<S> (&targets)[3], int64_t t, int64_t count) const {
    const int64_t at = t - lag_, plane = tile.Plane();
    const auto &[dx, dpre, dstate] = targets;
    if (dstate.y != nullptr) chunk.Store(dstate, at + f_.taps - 1, count, tile.out, plane, false);
    if (dpre.y != nullptr) {
      memcpy(tile.w, tile.out, static_cast<size_t>(tile.columns * plane) * sizeof(T));
      chunk.Multiply(x, at, count, tile.w, plane);
      chunk.Store(dpre, at, count, tile.w, plane, streams_);
    }
    if (dx.y != nullptr) {
      chunk.Multiply(pre, at, count, tile.out, plane);
      chunk.Store(dx, at, count, tile.out, plane, streams_);
    }
  }

  // A tile inside of a sequence, with all of its times and those before and behind it.
  void RunFused(GradientTile<S> &tile, const Chunk &chunk, const Signal<S> &samples, const Signal<S> &dy, const Gate<S> &post,
                const Target<S> (&targets)[3], int64_t t, int64_t length) const {
    const int64_t at = chunk.start + t, late = at - lag_;
    const int64_t ahead = is_far_ && at + 2 * rows_ + f_.origin <= length ? rows_ : 0;
    for (int64_t c = 0; c < chunk.columns; ++c) {
      const int64_t b = chunk.batch, n = chunk.n + c * W;
      const auto input = [&](const auto &array, const S *there, int64_t time) {
        return there == nullptr ? InputColumn<S>{} : InputColumn<S>{array.At(b, time, n), array.strides.time};
      };
      const auto output = [&](const Target<S> &array) {
        return array.y == nullptr ? OutputColumn<S>{} : OutputColumn<S>{array.At(b, late, n), array.strides.time};
      };
      const Gate<S> &pre = samples.gate;
      GradientColumns<S> arrays{
          input(samples, samples.x, at + f_.origin), input(pre, pre.factors, at + f_.origin), input(dy, dy.x, at),
          input(post, post.factors, at), input(samples, samples.x, late), input(pre, pre.factors, late),
          output(targets[0]), output(targets[1]), {}};
      if (targets[2].y != nullptr) arrays.dpost = {targets[2].At(b, at, n), targets[2].strides.time};
      tile.template Fuse<false>(arrays, c, rows_, ahead, streams_);
    }
    tile.Count(rows_);
  }

  const convscan_conv_gradient &p_;
  const convscan_filter_gradient &f_;
  bool is_adjacent_, fuses_;
  int64_t rows_;
  bool is_far_;
  int64_t lag_;
  GradientChunks<W> chunks_;
  bool streams_;
};

}  // namespace

convscan_status ConvGradientDirect(const convscan_conv_gradient &p) {
  return WithRealStorage(p.filter.dtype, [&](auto type) {
    return DirectGradient<typename decltype(type)::Storage>(p).Run();
  });
}

}  // namespace convscan::CONVSCAN_ISA
