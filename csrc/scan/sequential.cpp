// y[t] = a[t] y[t-1] + x[t] in time order, lanes over channels.
//
// Memory order decides the walk. Channels contiguous: a few rows of time at once over a wide block of channels, whose
// states stay in the first-level cache, so that memory is read in long runs. Time contiguous: squares are transposed in
// registers while a vector's worth of channels is followed through all of time. Both do the very same arithmetic.
#include "core/kernels.h"
#include "core/parallel.h"
#include "scan/plane.h"
#include "scan/segment.h"

namespace convscan::CONVSCAN_ISA {
namespace {

template <class Element>
struct Planes {
  Plane<Element> x, a, y;
};

template <class Element>
using State = typename Element::Part *;

// Steps [t, t + R) of N channels.
template <int N, int R, class Element>
CONVSCAN_INLINE Numbers<Element, N> ScanTile(const Planes<Element> &p, int64_t t, int64_t c,
                                             Numbers<Element, N> state) {
  Numbers<Element, N> x[R], a[R];
  LoadTile<N, R>(p.x, t, c, x);
  LoadTile<N, R>(p.a, t, c, a);
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) x[r] = state = MultiplyAdd<Element, N>(a[r], state, x[r]);
  if (p.y.base != nullptr) StoreTile<N, R>(p.y, t, c, x);
  return state;
}

// Steps [t, end) of channels [c, channels), N at a time and the rest by narrower vectors.
template <int N, class Element>
void ScanTiles(const Planes<Element> &p, int64_t t, int64_t end, int64_t c, int64_t channels, State<Element> state) {
  constexpr int kParts = Element::kParts, kSteps = kTileSteps<N>;
  for (; c + N <= channels; c += N) {
    Numbers<Element, N> s = Load<N * kParts>(state + c * kParts);
    int64_t step = t;
    for (; step + kSteps <= end; step += kSteps) s = ScanTile<N, kSteps>(p, step, c, s);
    for (; step < end; ++step) s = ScanTile<N, 1>(p, step, c, s);
    Store<N * kParts>(state + c * kParts, s);
  }
  if constexpr (N > 1) {
    if (c < channels) ScanTiles<N / 2>(p, t, end, c, channels, state);
  }
}

// Channels contiguous in x, a and y: R rows of time, U vectors of N channels at a time.
template <int N, int U, int R, bool kStream, class Element>
CONVSCAN_INLINE int64_t ScanRows(const Planes<Element> &p, int64_t t, int64_t c, int64_t channels,
                                 State<Element> state) {
  constexpr int kParts = Element::kParts;
  using Storage = typename Element::Storage;
  const Storage *x[R], *a[R];
  Storage *y[R];
  for (int r = 0; r < R; ++r) {
    x[r] = p.x.At(t + r, 0);
    a[r] = p.a.At(t + r, 0);
    y[r] = p.y.At(t + r, 0);
  }
  for (; c + N * U <= channels; c += N * U) {
    Numbers<Element, N> s[U];
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) s[u] = Load<N * kParts>(state + (c + u * N) * kParts);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int u = 0; u < U; ++u) {
        const int64_t at = (c + u * N) * kParts;
        s[u] = MultiplyAdd<Element, N>(LoadNumbers<Element, N>(a[r] + at), s[u], LoadNumbers<Element, N>(x[r] + at));
        if constexpr (kStream) {
          StoreStream<N * kParts>(y[r] + at, s[u]);
        } else {
          StoreNumbers<Element, N>(y[r] + at, s[u]);
        }
      }
    }
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) Store<N * kParts>(state + (c + u * N) * kParts, s[u]);
  }
  return c;
}

template <int N, int R, class Element>
CONVSCAN_INLINE void ScanRowTail(const Planes<Element> &p, int64_t t, int64_t c, int64_t channels,
                                 State<Element> state) {
  c = ScanRows<N, 1, R, false>(p, t, c, channels, state);
  if constexpr (N > 1) {
    if (c < channels) ScanRowTail<N / 2, R>(p, t, c, channels, state);
  }
}

template <int R, class Element>
void ScanRowBlock(const Planes<Element> &p, bool streams, int64_t t, int64_t channels, State<Element> state) {
  constexpr int kN = kNumbers<Element>;
  int64_t c = 0;
  if constexpr (sizeof(typename Element::Storage) == sizeof(typename Element::Part)) {
    constexpr int kLineVectors = kVectorBytes < 64 ? 64 / kVectorBytes : 1;
    if (streams) c = ScanRows<kN, kLineVectors, R, true>(p, t, c, channels, state);
  }
  c = ScanRows<kN, 2, R, false>(p, t, c, channels, state);
  if (c < channels) ScanRowTail<kN, R>(p, t, c, channels, state);
}

template <class Element>
void RunSegment(const Segment &s, void *state_memory) {
  const Planes<Element> p = {{s.x, s.x_time, s.x_channel}, {s.a, s.a_time, s.a_channel}, {s.y, s.y_time, s.y_channel}};
  const State<Element> state = static_cast<State<Element>>(state_memory);
  const bool rows = p.x.order == Order::channel && p.a.order == Order::channel && p.y.order == Order::channel;
  int64_t t = 0;
  if (rows && s.y != nullptr) {
    constexpr int kRows = 4;
    for (; t + kRows <= s.length; t += kRows) ScanRowBlock<kRows>(p, s.streams, t, s.channels, state);
    for (; t < s.length; ++t) ScanRowBlock<1>(p, s.streams, t, s.channels, state);
    if (s.streams) StreamFence();
    return;
  }
  // Where channels are contiguous in x, a few rows at a time: one column down all of time would meet a new page each
  // step and use a fraction of every line it reads.
  constexpr int kN = kNumbers<Element>;
  const int64_t steps = p.x.order == Order::channel ? kTileSteps<kN> : s.length;
  for (; t < s.length; t += steps) ScanTiles<kN>(p, t, Min(t + steps, s.length), 0, s.channels, state);
}

// Bytes of state a task keeps: a quarter of the smallest first-level cache in use, so that rows stream past it.
constexpr int64_t kStateBytes = 8192;

}  // namespace

SegmentKernel SequentialSegment(convscan_dtype dtype) {
  return WithElement(dtype, [](auto element) -> SegmentKernel { return RunSegment<decltype(element)>; });
}

void LoadInitialState(const convscan_scan &p, int64_t b, int64_t c, int64_t channels, void *state) {
  WithElement(p.dtype, [&](auto element) {
    using Element = decltype(element);
    auto *to = static_cast<State<Element>>(state);
    const auto *from = static_cast<const typename Element::Storage *>(p.y_init);
    constexpr int kParts = Element::kParts;
    for (int64_t n = 0; n < channels; ++n)
      for (int i = 0; i < kParts; ++i)
        to[n * kParts + i] = from == nullptr ? 0
                                             : LoadScalar(from + (b * p.y_init_batch_stride +
                                                                  (c + n) * p.y_init_channel_stride) * kParts + i);
  });
}

convscan_status ScanSequential(const convscan_scan &problem) {
  const convscan_scan p = Forwards(problem);
  const int64_t number = ComputeBytes(p.dtype);
  const int64_t elements = p.batch * p.length * p.channels;
  const int threads = elements < kSmallProblem ? 1 : p.threads;
  const int64_t widest = kStateBytes / number, line = 64 / StorageBytes(p.dtype);
  // Blocks of channels only divide the work: no number depends on them.
  int64_t width = widest;
  if (threads != 1) {
    const int64_t workers = threads > 0 ? threads : ThreadCount();
    const int64_t blocks = Max(1, CeilDiv(workers, p.batch));
    width = Min(widest, CeilDiv(CeilDiv(p.channels, blocks), line) * line);
  }
  const int64_t blocks = CeilDiv(p.channels, width);
  const SegmentKernel kernel = SequentialSegment(p.dtype);
  ParallelFor(p.batch * blocks, threads, [&](int64_t task) {
    alignas(64) char state[kStateBytes];
    const int64_t b = task / blocks, c = task % blocks * width, channels = Min(width, p.channels - c);
    LoadInitialState(p, b, c, channels, state);
    kernel(Cut(p, b, 0, p.length, c, channels), state);
  });
  return CONVSCAN_OK;
}

}  // namespace convscan::CONVSCAN_ISA
