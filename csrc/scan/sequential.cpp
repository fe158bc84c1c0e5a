// y[t] = a[t] y[t-1] + x[t] in time order, lanes over channels.
//
// Memory order decides the walk. Channels contiguous: a few rows of time at once over a wide block of channels, whose
// states stay in the first-level cache, so that memory is read in long runs. Time contiguous: squares are transposed in
// registers while a vector's worth of channels is followed through all of time. Both do the very same arithmetic.
#include "core/kernels.h"
#include "core/parallel.h"
#include "scan/along_time.h"
#include "scan/plane.h"
#include "scan/segment.h"

namespace convscan::CONVSCAN_ISA {
namespace {

template <class Element>
using State = typename Element::Part *;

// `count` rows, U vectors of N channels at a time, from channel c on; returns the first channel not reached. kStream: what
// rows of y are aligned to, which are written past the caches; or 0.
template <int N, int U, int kStream, bool kConstant, class Element, class Storage = typename Element::Storage>
CONVSCAN_INLINE int64_t ScanColumns(Element, Rows<const Storage> x, Rows<const Storage> a, Rows<Storage> y,
                                    int64_t count, int64_t c, int64_t channels, State<Element> state) {
  constexpr int kParts = Element::kParts, kScalars = N * kParts;
  constexpr int kLine = 64 / static_cast<int>(sizeof(Storage));
  for (; c + N * U <= channels; c += N * U) {
    Numbers<Element, N> s[U], constant[U];
    const Storage *x_row = x.base + c * kParts, *a_row = a.base + c * kParts;
    Storage *y_row = y.base + c * kParts;
    Repeat<U>([&](int u) CONVSCAN_INLINED {
      s[u] = LoadNumbers<Element, N>(state + c * kParts + u * kScalars);
      if constexpr (kConstant) constant[u] = LoadNumbers<Element, N>(a_row + u * kScalars);
    });
    for (int64_t r = 0; r < count; ++r, x_row += x.stride, a_row += a.stride, y_row += y.stride) {
      if constexpr (U * kScalars >= kLine) {
        Repeat<U * kScalars / kLine>([&](int line) CONVSCAN_INLINED {
          __builtin_prefetch(x_row + kRowsAhead * x.stride + line * kLine);
          if constexpr (!kConstant) __builtin_prefetch(a_row + kRowsAhead * a.stride + line * kLine);
        });
      }
      Repeat<U>([&](int u) CONVSCAN_INLINED {
        const Numbers<Element, N> now = kConstant ? constant[u] : LoadNumbers<Element, N>(a_row + u * kScalars);
        s[u] = MultiplyAdd<Element, N>(now, s[u], LoadNumbers<Element, N>(x_row + u * kScalars));
        if constexpr (kStream > 0)
          StreamNumbers<Element, N, kStream>(y_row + u * kScalars, s[u]);
        else
          StoreNumbers<Element, N>(y_row + u * kScalars, s[u]);
      });
    }
    Repeat<U>([&](int u) CONVSCAN_INLINED { StoreNumbers<Element, N>(state + c * kParts + u * kScalars, s[u]); });
  }
  if constexpr (U > 1) {
    return ScanColumns<N, 1, 0, kConstant>(Element{}, x, a, y, count, c, channels, state);
  } else if constexpr (N > 1) {
    if (c < channels) return ScanColumns<N / 2, 1, 0, kConstant>(Element{}, x, a, y, count, c, channels, state);
  }
  return c;
}

// Vectors in a cache line.
constexpr int kLineVectors = kVectorBytes < 64 ? 64 / kVectorBytes : 1;

template <bool kConstant, class Element, class Storage = typename Element::Storage>
CONVSCAN_INLINE void ScanRows(Element, Rows<const Storage> x, Rows<const Storage> a, Rows<Storage> y, bool streams,
                              int64_t count, int64_t channels, State<Element> state) {
  constexpr int kN = kNumbers<Element>;
  const auto streamed = [&]<int kStream>(Indices<kStream>) CONVSCAN_INLINED {
    ScanColumns<kN, 2 * kLineVectors, kStream, kConstant>(Element{}, x, a, y, count, 0, channels, state);
  };
  // Whole lines are a tenth faster than blocks here (Zen 5).
  if constexpr (kVectorBytes > kBlockBytes)
    if (streams && reinterpret_cast<uintptr_t>(y.base) % kLineBytes == 0) return streamed(Indices<kLineBytes>{});
  if (streams) return streamed(Indices<kBlockBytes>{});
  // Four vectors at least, since every one waits for its step before.
  ScanColumns<kN, 4, 0, kConstant>(Element{}, x, a, y, count, 0, channels, state);
}

template <class Element, class Storage = typename Element::Storage>
__attribute__((noinline)) void ScanRows(Element, Rows<const Storage> x, Rows<const Storage> a, Rows<Storage> y,
                                        bool streams, int64_t count, int64_t channels, State<Element> state) {
  if (a.stride == 0) return ScanRows<true>(Element{}, x, a, y, streams, count, channels, state);
  ScanRows<false>(Element{}, x, a, y, streams, count, channels, state);
}

// Squares of as many channels as a vector has numbers, then of fewer. Where a vector is short, several groups of channels
// run side by side, since every step waits for the one before it.
template <int N, class Element>
CONVSCAN_INLINE void ScanTimeRows(Element, const Segment &s, int64_t c, State<Element> state) {
  if constexpr (N == 1) {
    StepByStep(Element{}, s, c, s.channels - c, 0, s.length, state);
  } else {
    // With registers to spare, two squares a row: AArch64 loads two vectors in one instruction.
    constexpr int kSquares = sizeof(Numbers<Element, N>) == 16 && kVectorRegisters == 32 ? 2 : 1;
    if constexpr (N == kNumbers<Element> && N < 8) c = ScanInSquares<N, 8 / N, kSquares>(Element{}, s, c, state);
    c = ScanInSquares<N, 1, kSquares>(Element{}, s, c, state);
    if (c < s.channels) ScanTimeRows<N / 2>(Element{}, s, c, state);
  }
}

template <class Element>
void RunSegment(const Segment &s, void *state_memory) {
  using Storage = typename Element::Storage;
  constexpr int kParts = Element::kParts;
  const Plane<Element> x(s.x, s.x_time, s.x_channel, s.channels), a(s.a, s.a_time, s.a_channel, s.channels);
  const Plane<Element> y(s.y, s.y_time, s.y_channel, s.channels);
  const State<Element> state = static_cast<State<Element>>(state_memory);
  // The stretches of a tile that lie within one sequence.
  const auto for_each_stretch = [&](const Tile &tile, const auto &run) {
    if (s.packing == nullptr) return run(tile.t, tile.t + tile.steps);
    ForEachStretch(s.packing->p, s.packing->sequences, s.packing->b, tile.t, tile.t + tile.steps,
                   s.packing->c + tile.c, tile.channels, state + tile.c * kParts, run);
  };
  if (x.order == Order::channel && a.order == Order::channel && y.order == Order::channel) {
    // A few rows at once, more where they are short: a state is read and written once a visit. Zen 5, shares of triad
    // bandwidth: two rows 82 to 92 % in the third-level cache (four 81, one 78 to 83), four past it 118 to 138 %.
    const int64_t rows = s.streams ? 4 : Max(2, 1024 / s.channels);
    for_each_stretch({0, 0, s.length, s.channels}, [&](int64_t first, int64_t stop) {
      for (int64_t t = first; t < stop; t += rows)
        ScanRows(Element{}, {x.At(t, 0), x.time}, {a.At(t, 0), a.time}, {y.At(t, 0), y.time}, s.streams,
                 Min(rows, stop - t), s.channels, state);
    });
    if (s.streams) StreamFence();
    return;
  }
  if (IsAlongTime(s)) {
    for_each_stretch({0, 0, s.length, s.channels}, [&](int64_t first, int64_t stop) {
      Segment stretch = s;
      stretch.length = stop - first;
      stretch.x = x.At(first, 0);
      stretch.a = a.At(first, 0);
      stretch.y = y.At(first, 0);
      ScanTimeRows<kNumbers<Element>>(Element{}, stretch, 0, state);
    });
    if (s.streams) StreamFence();
    return;
  }
  alignas(64) Storage copies[3][kTileNumbers<Element> * kParts];
  ForEachTile<Element>(x.order, s.length, s.channels, [&](const Tile &tile) {
    const Rows<const Storage> x_rows = RowsToRead(x, tile, copies[0]), a_rows = RowsToRead(a, tile, copies[1]);
    const Rows<Storage> y_rows = RowsToWrite(y, tile, copies[2]);
    for_each_stretch(tile, [&](int64_t first, int64_t stop) {
      const int64_t skipped = first - tile.t;
      ScanRows(Element{}, After(x_rows, skipped), After(a_rows, skipped), After(y_rows, skipped), false, stop - first, tile.channels,
               state + tile.c * kParts);
    });
    PutRows(y, tile, copies[2]);
  });
}

// Bytes of state a task keeps: a quarter of the smallest first-level cache in use, so that rows stream past it.
constexpr int64_t kStateBytes = 8192;

}  // namespace

SegmentKernel SequentialSegment(convscan_dtype dtype, bool conjugates) {
  return WithElement(dtype, conjugates, [](auto element) -> SegmentKernel { return RunSegment<decltype(element)>; });
}

void LoadInitialState(const convscan_scan &p, int64_t b, int64_t sequence, int64_t c, int64_t channels, void *state) {
  WithElement(p.dtype, [&](auto element) {
    using Element = decltype(element);
    auto *to = static_cast<State<Element>>(state);
    constexpr int kParts = Element::kParts;
    if (p.y_init == nullptr) {
      __builtin_memset(to, 0, static_cast<size_t>(channels * kParts) * sizeof(*to));
      return;
    }
    const auto *from = static_cast<const typename Element::Storage *>(p.y_init) +
                       (b * p.y_init_batch_stride + sequence * p.y_init_sequence_stride) * kParts;
    if (p.y_init_channel_stride == 1) {
      for (int64_t i = 0; i < channels * kParts; ++i) to[i] = LoadScalar(from + c * kParts + i);
      return;
    }
    for (int64_t n = 0; n < channels; ++n)
      for (int i = 0; i < kParts; ++i)
        to[n * kParts + i] = LoadScalar(from + (c + n) * p.y_init_channel_stride * kParts + i);
  });
}

convscan_status ScanSequential(const convscan_scan &problem) {
  const convscan_scan p = Forwards(problem);
  const Sequences sequences(p, problem.reverse);
  const int64_t number = ComputeBytes(p.dtype);
  const int64_t elements = p.batch * p.length * p.channels;
  const int threads = elements < kSmallProblem ? 1 : p.threads;
  const int64_t widest = kStateBytes / number, line = 64 / StorageBytes(p.dtype);
  // Blocks of channels only divide the work: no number depends on them.
  int64_t width = widest;
  if (IsAlongTime(Cut(p, 0, 0, p.length, 0, p.channels))) {
    width = Min(widest, CeilDiv(BlockWidth(p, threads), 2 * line) * 2 * line);
  } else if (threads != 1) {
    const int64_t workers = threads > 0 ? threads : ThreadCount();
    const int64_t blocks = Max(1, CeilDiv(workers, p.batch));
    width = Min(widest, CeilDiv(CeilDiv(p.channels, blocks), line) * line);
  }
  const int64_t blocks = CeilDiv(p.channels, width);
  const bool streams = StoresMayStream(p);
  const SegmentKernel kernel = SequentialSegment(p.dtype);
  ParallelFor(p.batch * blocks, threads, [&](int64_t task) {
    alignas(64) char state[kStateBytes];
    const int64_t b = task / blocks, c = task % blocks * width, channels = Min(width, p.channels - c);
    const Packing packing = {p, sequences, b, c};
    Segment segment = Cut(p, b, 0, p.length, c, channels);
    segment.streams = streams;
    segment.packing = &packing;
    kernel(segment, state);
  });
  return CONVSCAN_OK;
}

}  // namespace convscan::CONVSCAN_ISA
