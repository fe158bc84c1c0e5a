// Product with the Toeplitz matrix T[i,j] = h[i-j], blocked, the matrix never stored: in
//
//   y[t + i] += T[t + i, j] x[j],   i over the lanes of a few vectors,
//
// a column of a block of T is a run of consecutive taps, one unaligned load from a copy of the filter that is padded
// with zeros, and all blocks along a diagonal are equal: one loaded column serves several outputs a block apart.
// The padding is multiplied like any other entry, so a NaN or an infinity also reaches the outputs of its own block.
#include "conv/signal.h"
#include "core/kernels.h"
#include "core/storage.h"

namespace convscan::CONVSCAN_ISA {
namespace {

// Vectors of outputs per block, and blocks along the diagonal that share the columns of T. 12 sums, 2 columns and the
// broadcast sample fill 16 registers; 8 loads feed 12 multiply-adds.
constexpr int kVectors = kVectorRegisters == 32 ? 4 : 2;
constexpr int kBlocks = 6;
constexpr int64_t kTilesOfBlocks = 8;

// sum[c][i] += sum_m column[i - m] x[c kVectors W + m], begin <= m < end, i in the vectors [First, First + Count).
template <int First, int Count, int C, class T>
CONVSCAN_INLINE void MultiplyVectors(Vec<T> (&sum)[C][kVectors], const T *column, const T *x, int64_t begin,
                                     int64_t end) {
  constexpr int W = kLanes<T>;
  for (int64_t m = begin; m < end; ++m) {
    Vec<T> entry[Count];
#pragma GCC unroll 4
    for (int v = 0; v < Count; ++v) entry[v] = Load<W>(column - m + (First + v) * W);
#pragma GCC unroll 6
    for (int c = 0; c < C; ++c) {
      const Vec<T> sample = Broadcast<T>(x[c * kVectors * W + m]);
#pragma GCC unroll 4
      for (int v = 0; v < Count; ++v) sum[c][First + v] += entry[v] * sample;
    }
  }
}

// All vectors for W <= m < body; the first one alone meets taps, not padding, before W, and all but it after body.
template <int C, class T>
CONVSCAN_INLINE void MultiplyBlocks(Vec<T> (&sum)[C][kVectors], const T *column, const T *x, int64_t begin,
                                    int64_t body, int64_t end) {
  constexpr int W = kLanes<T>;
  MultiplyVectors<0, 1, C, T>(sum, column, x, begin, Min(W, end));
  MultiplyVectors<0, kVectors, C, T>(sum, column, x, Max(begin, W), Min(body, end));
  MultiplyVectors<1, kVectors - 1, C, T>(sum, column, x, Max(begin, body), end);
}

template <class S>
struct ToeplitzRows {
  using T = Compute<S>;
  static constexpr int W = kLanes<T>, kBlock = kVectors * W, kStep = kBlocks * kBlock;

  const convscan_conv &p;
  int64_t tile, reach;
  T *x, *h, *z;
  size_t bytes;

  ToeplitzRows(const convscan_conv &p, int64_t steps, void *workspace)
      : p(p), tile(Min(kTilesOfBlocks * kStep, RoundUp(steps, kStep))), reach(Reach(p)) {
    Arena arena(workspace);
    x = arena.Take<T>(reach + tile);
    h = arena.Take<T>(reach + 2 * kBlock);
    z = arena.Take<T>(tile);
    bytes = arena.Used();
  }

  // Entry k - i of the padded filter is at h[kBlock - 1 + k - i].
  void PackFilter(int64_t b, int64_t n) {
    const S *from = FilterOf<S>(p, b, n);
    for (int64_t i = 0; i < reach + 2 * kBlock; ++i) {
      const int64_t k = i - (kBlock - 1);
      h[i] = k >= 0 && k < p.taps ? LoadScalar(from + k * p.h_tap_stride) : T(0);
    }
  }

  template <int C>
  void Multiply(int64_t t, int64_t i, T bias) {
    Vec<T> sum[C][kVectors];
#pragma GCC unroll 6
    for (int c = 0; c < C; ++c)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[c][v] = Broadcast<T>(bias);
    // Columns before the start of a sequence without a past, and past its end, meet zeros in every block.
    const int64_t begin = p.state != nullptr ? 0 : Max(0, reach - p.origin - (t + i + (C - 1) * kBlock));
    const int64_t end = Min(reach + kBlock, p.length - (t + i) + reach - p.origin);
    MultiplyBlocks<C, T>(sum, h + kBlock - 1 + reach, x + i, begin, reach + W, end);
#pragma GCC unroll 6
    for (int c = 0; c < C; ++c)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) Store<W>(z + i + c * kBlock + v * W, sum[c][v]);
  }

  // Outputs [begin, end) of one row.
  void Run(int64_t b, int64_t n, int64_t begin, int64_t end) {
    const Signal<S> input = InputOf<S>(p);
    const T bias = BiasOf<S>(p, b, n);
    input.PackRow(b, n, begin + p.origin - reach, reach, x);
    for (int64_t t = begin; t < end; t += tile) {
      const int64_t count = Min(tile, end - t);
      input.PackRow(b, n, t + p.origin, RoundUp(count, kStep), x + reach);
      // A block alone has too few sums to hide the latency of adding: two already cost as much as all.
      int64_t i = 0;
      for (; i + kBlock < count; i += kStep) Multiply<kBlocks>(t, i, bias);
      if (i < count) Multiply<1>(t, i, bias);
      PostGate<S>(p).MultiplyRow(b, n, t, count, z);
      ActivateRow<T>(z, count, p.activation);
      StoreRow<S>(static_cast<S *>(p.y) + b * p.y_strides.batch + t * p.y_strides.time + n * p.y_strides.channel,
                  p.y_strides.time, z, count, false);
      memmove(x, x + count, static_cast<size_t>(reach) * sizeof(T));
    }
  }
};

template <class S>
convscan_status Toeplitz(const convscan_conv &p) {
  const int threads = Threads(p.threads, p.batch * p.length * p.channels * Min(p.taps, p.length));
  // Tasks are (channel, piece of time): the batch shares the packed filter. Where it does not, or with too few of
  // those, the batch is split.
  const bool splits_batch = p.channels < 4 * threads || p.h_batch_stride != 0;
  const int64_t groups = splits_batch ? p.batch * p.channels : p.channels;
  constexpr int64_t kStep = ToeplitzRows<S>::kStep;
  const int64_t pieces = TimePieces(groups, threads, p.length, Max(p.taps, kStep), p.x == p.y);
  const int64_t piece = RoundUp(CeilDiv(p.length, pieces), kStep);
  bool failed = false;
  ParallelFor(groups * pieces, threads, [&](int64_t task) {
    const int64_t n = task % p.channels, group = task / p.channels, begin = group % pieces * piece;
    const int64_t end = Min(begin + piece, p.length);
    if (begin >= end) return;
    void *workspace = Workspace(ToeplitzRows<S>(p, piece, nullptr).bytes);
    if (workspace == nullptr) return __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
    ToeplitzRows<S> kernel(p, piece, workspace);
    const int64_t b = splits_batch ? group / pieces : 0;
    kernel.PackFilter(b, n);
    if (splits_batch) return kernel.Run(b, n, begin, end);
    for (int64_t b = 0; b < p.batch; ++b) kernel.Run(b, n, begin, end);
  });
  return failed ? CONVSCAN_OUT_OF_MEMORY : CONVSCAN_OK;
}

}  // namespace

convscan_status ConvToeplitz(const convscan_conv &p) {
  return WithRealStorage(p.dtype, [&](auto type) { return Toeplitz<typename decltype(type)::Storage>(p); });
}

}  // namespace convscan::CONVSCAN_ISA
