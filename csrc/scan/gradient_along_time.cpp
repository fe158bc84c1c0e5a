// The gradient of the scan as another scan, of dy from the end with coefficients one step late, by the kernels that run
// along time; and da[t] = g[t] conj(y[t-1]), piece by piece while g is in the cache.
//
// Where there are fewer channels than threads, time is divided as in tiled.cpp: every tile from zero, then tile after tile
// from the true state until the numbers are the same, bit for bit.
#include "core/kernels.h"
#include "core/parallel.h"
#include "core/workspace.h"
#include "scan/along_time.h"
#include "scan/gradient.h"

namespace convscan::CONVSCAN_ISA {
namespace {

// Steps of a sequence whose coefficients are copied, since none comes before the first: a multiple of every kernel's vectors.
constexpr int64_t kFirstSteps = 64;
// The most channels of a task.
constexpr int64_t kWidest = 8;
// Numbers between the channels of a copy of a piece: rows a power of two apart collide in the caches.
constexpr int64_t kCopyRow = kPiece + 16;
static_assert(kPiece % kFirstSteps == 0);

// The scan that gives dx, running forwards. Its `a` of step t is that of step t - 1.
convscan_scan AdjointScan(const convscan_scan_gradient &problem) {
  convscan_scan p = problem.forward;
  p.x = problem.dy;
  p.x_strides = problem.dy_strides;
  p.y = problem.dx;
  p.y_strides = problem.dx_strides;
  p.y_init = nullptr;
  p.reverse = !problem.forward.reverse;
  p = Forwards(p);
  p.a = Advance(p.a, -p.a_strides.time * StorageBytes(p.dtype));
  return p;
}

bool SameSteps(const convscan_strides &a, const convscan_strides &b, int64_t channels) {
  return a.time == b.time && (a.channel == b.channel || channels == 1);
}

// write(N, i) for the numbers i, in scalars, of a run that lies at `to`: N of them at a time, which `streams` says may go past
// the caches, and single ones where `to` is not aligned to that.
template <class Element, class Write>
CONVSCAN_INLINE void WriteRun(Element, const typename Element::Storage *to, int64_t count, bool streams,
                              const Write &write) {
  constexpr int kN = kNumbers<Element>, kScalars = kN * Element::kParts;
  int64_t i = 0;
  if (streams)
    for (; i < count && reinterpret_cast<uintptr_t>(to + i) % kBlockBytes != 0; i += Element::kParts) write(Indices<1>{}, i, false);
  for (; i + kScalars <= count; i += kScalars) write(Indices<kN>{}, i, streams);
  for (; i < count; i += Element::kParts) write(Indices<1>{}, i, false);
}

// da of a run of numbers that are neighbours in all arrays.
template <class Element, class Storage = typename Element::Storage>
void MultiplyRun(Element, const Storage *before, const Storage *g, Storage *da, int64_t count, bool streams) {
  WriteRun(Element{}, da, count, streams, [=]<int N>(Indices<N>, int64_t i, bool streamed) CONVSCAN_INLINED {
    StoreNumbers<Element, N>(
        da + i, ConjugateMultiply<Element, N>(LoadNumbers<Element, N>(before + i), LoadNumbers<Element, N>(g + i)),
        streamed);
  });
}

template <class Element, class Storage = typename Element::Storage>
void StreamRun(Element, const Storage *from, Storage *to, int64_t count) {
  WriteRun(Element{}, to, count, true, [=]<int N>(Indices<N>, int64_t i, bool streamed) CONVSCAN_INLINED {
    StoreNumbers<Element, N>(to + i, LoadNumbers<Element, N>(from + i), streamed);
  });
}

template <class Element>
class Adjoint {
  using Storage = typename Element::Storage;
  using Part = typename Element::Part;
  static constexpr int kParts = Element::kParts;
  static constexpr int64_t kBytes = sizeof(Storage) * kParts;

  const convscan_scan_gradient &problem_;
  const convscan_scan scan_;
  const Sequences sequences_;
  const SegmentKernel kernel_;
  const bool streams_, is_interleaved_;  // interleaved: a step's channels are neighbours, not a channel's steps
  const int64_t direction_, origin_;  // of step t: origin + direction t, as the problem counts them

  // The address of step t, as the gradient counts them.
  template <class Pointer>
  Pointer At(Pointer base, const convscan_strides &s, int64_t b, int64_t t, int64_t c) const {
    return Advance(base, kBytes * (b * s.batch + (origin_ + direction_ * t) * s.time + c * s.channel));
  }

  // The first steps of a sequence, from t on: a zero in front of the coefficients, of which the first belongs to another
  // sequence or to nothing.
  void RunFirst(Segment s, Part *state) const {
    alignas(64) Storage copy[kFirstSteps * kWidest * kParts];
    const int64_t steps = s.length, channels = s.channels;
    // Memory order is that of x, time from the lowest address on.
    const int64_t rows = is_interleaved_ ? 1 : channels, row = is_interleaved_ ? channels : 1;
    const int64_t numbers = steps * row, forwards = s.x_time > 0 ? 1 : -1;
    for (int64_t r = 0; r < rows; ++r) {
      const auto *const a = static_cast<const Storage *>(s.a) + r * s.a_channel * kParts;
      Storage *const to = copy + r * kFirstSteps * kParts;
      // Where the numbers of the first step are, and of all others the lowest.
      Storage *const first = to + (forwards > 0 ? 0 : numbers - row) * kParts;
      Storage *const others = to + (forwards > 0 ? row : 0) * kParts;
      if (s.a_time == 0) {
        for (int64_t i = 0; i < numbers - row; ++i)
          __builtin_memcpy(others + i * kParts, a + i % row * s.a_channel * kParts, kBytes);
      } else {
        const int64_t lowest = forwards > 0 ? 1 : steps - 1;
        __builtin_memcpy(others, a + lowest * s.a_time * kParts, static_cast<size_t>((numbers - row) * kBytes));
      }
      __builtin_memset(first, 0, static_cast<size_t>(row * kBytes));
    }
    s.a = copy + (forwards > 0 ? 0 : numbers - row) * kParts;
    s.a_time = forwards * row;
    s.a_channel = is_interleaved_ ? 1 : kFirstSteps;
    kernel_(s, state);
  }

  // function(n, count) for each run of numbers that are neighbours in memory, channel n's or from channel n on.
  template <class Function>
  void ForEachRun(int64_t steps, int64_t c, int64_t channels, const Function &function) const {
    if (is_interleaved_) return function(c, steps * channels * kParts);
    for (int64_t n = c; n < c + channels; ++n) function(n, steps * kParts);
  }

  // da of steps [t, end), which belong to sequence q, of dx or of the copy that there is of it.
  void Multiply(int64_t b, int64_t q, int64_t t, int64_t end, int64_t c, int64_t channels, const Storage *copy) const {
    const convscan_scan &f = problem_.forward;
    auto *da = static_cast<Storage *>(problem_.da);
    const auto *y = static_cast<const Storage *>(f.y), *dx = static_cast<const Storage *>(problem_.dx);
    const int64_t last = sequences_.End(q) - 1;
    const bool rises = direction_ * problem_.dx_strides.time > 0;
    if (end > last) {
      for (int64_t n = c; n < c + channels; ++n) {
        Numbers<Element, 1> before{};
        if (f.y_init != nullptr)
          before = LoadNumbers<Element, 1>(static_cast<const Storage *>(f.y_init) +
                                           (b * f.y_init_batch_stride + sequences_.Index(q) * f.y_init_sequence_stride +
                                            n * f.y_init_channel_stride) * kParts);
        StoreNumbers<Element, 1>(At(da, problem_.da_strides, b, last, n),
                                 ConjugateMultiply<Element, 1>(
                                     before, LoadNumbers<Element, 1>(At(dx, problem_.dx_strides, b, last, n))));
      }
      end = last;
      // The copy begins with its lowest address.
      if (copy != nullptr && !rises) copy += (is_interleaved_ ? channels : 1) * kParts;
    }
    if (t >= end) return;
    const int64_t low = rises ? t : end - 1;
    ForEachRun(end - t, c, channels, [&](int64_t n, int64_t count) {
      MultiplyRun(Element{}, At(y, f.y_strides, b, low + 1, n),
                  copy != nullptr ? copy + (n - c) * kCopyRow * kParts : At(dx, problem_.dx_strides, b, low, n),
                  At(da, problem_.da_strides, b, low, n), count, streams_);
    });
  }

  // dx of step t as a state.
  void Load(int64_t b, int64_t t, int64_t c, int64_t channels, Part *state) const {
    const auto *dx = static_cast<const Storage *>(problem_.dx);
    for (int64_t n = 0; n < channels; ++n)
      StoreNumbers<Element, 1>(state + n * kParts, LoadNumbers<Element, 1>(At(dx, problem_.dx_strides, b, t, c + n)));
  }

 public:
  Adjoint(const convscan_scan_gradient &problem, bool streams)
      : problem_(problem), scan_(AdjointScan(problem)), sequences_(problem.forward, !problem.forward.reverse),
        kernel_(Kernel(scan_)), streams_(streams),
        is_interleaved_(problem.forward.channels > 1 && problem.dx_strides.time != 1 && problem.dx_strides.time != -1),
        direction_(problem.forward.reverse ? 1 : -1),
        origin_(problem.forward.reverse ? 0 : problem.forward.length - 1) {}

  static SegmentKernel Kernel(const convscan_scan &scan) {
    const SegmentKernel kernel = ParallelSegment(scan, true);
    return kernel != nullptr ? kernel : SequentialSegment(scan.dtype, true);
  }
  const Sequences &AllSequences() const { return sequences_; }
  // Channels of a task: few, so that a piece of dx is still in the first-level cache when da is made.
  int64_t Width() const {
    return is_interleaved_ ? problem_.forward.channels : ParallelSegment(scan_, true) != nullptr ? kWidest / 2 : kWidest;
  }

  // Bytes of a copy of a piece of dx: what is written past the caches and read again at once is made here.
  size_t CopyBytes() const {
    return streams_ && problem_.da != nullptr ? static_cast<size_t>(kWidest * kCopyRow * kBytes) : 0;
  }

  // Steps [t, end) of channels [c, c + channels), of one sequence and piece.
  void RunPiece(int64_t b, int64_t q, int64_t t, int64_t end, int64_t c, int64_t channels, Part *state,
                Storage *copy) const {
    Segment s = Cut(scan_, b, t, end - t, c, channels);
    s.streams = streams_ && copy == nullptr;
    if (copy != nullptr) {
      s.y = copy + (s.y_time > 0 ? 0 : (t - end + 1) * s.y_time * kParts);
      s.y_channel = is_interleaved_ ? 1 : kCopyRow;
    }
    if (t == sequences_.Begin(q)) {
      Segment first = s;
      first.length = Min(kFirstSteps, s.length);
      __builtin_memset(state, 0, static_cast<size_t>(channels) * sizeof(Part) * kParts);
      RunFirst(first, state);
      s.length -= first.length;
      s.x = Advance(s.x, first.length * s.x_time * kBytes);
      s.a = Advance(s.a, first.length * s.a_time * kBytes);
      s.y = Advance(s.y, first.length * s.y_time * kBytes);
    }
    if (s.length > 0) kernel_(s, state);
    if (copy != nullptr) {
      const int64_t low = s.y_time > 0 ? t : end - 1;
      ForEachRun(end - t, c, channels, [&](int64_t n, int64_t count) {
        StreamRun(Element{}, copy + (n - c) * kCopyRow * kParts,
                  At(static_cast<Storage *>(problem_.dx), problem_.dx_strides, b, low, n), count);
      });
    }
    if (problem_.da != nullptr) Multiply(b, q, t, end, c, channels, copy);
  }

  // Steps [t, end) from state zero or the beginning of a sequence; pieces are counted from the beginning of each.
  void Run(int64_t b, int64_t t, int64_t end, int64_t c, int64_t channels, Storage *copy) const {
    alignas(64) Part state[kWidest * kParts] = {};
    if (t >= end) return;
    for (int64_t q = sequences_.At(t); t < end; ++q) {
      const int64_t stop = Min(end, sequences_.End(q)), begin = sequences_.Begin(q);
      while (t < stop) {
        const int64_t next = Min(begin + ((t - begin) / kPiece + 1) * kPiece, stop);
        RunPiece(b, q, t, next, c, channels, state, copy);
        t = next;
      }
    }
    if (streams_) StreamFence();
  }

  // Of the tile [t, end), which Run began at zero, what the true state changes.
  void CatchUp(int64_t b, int64_t t, int64_t end, int64_t c, int64_t channels, Storage *copy) const {
    alignas(64) Part state[kWidest * kParts], guessed[kWidest * kParts];
    if (t >= scan_.length) return;
    const int64_t q = sequences_.At(t);
    if (t == sequences_.Begin(q)) return;
    end = Min(end, sequences_.End(q));
    Load(b, t - 1, c, channels, state);
    for (bool caught_up = false; t < end && !caught_up; t += kPiece) {
      const int64_t next = Min(t + kPiece, end);
      Load(b, next - 1, c, channels, guessed);
      RunPiece(b, q, t, next, c, channels, state, copy);
      caught_up = __builtin_memcmp(state, guessed, sizeof(Part) * static_cast<size_t>(kParts * channels)) == 0;
    }
    if (streams_) StreamFence();
  }

  // dy_init of every sequence.
  void StoreInitial(int64_t b, int64_t c, int64_t channels) const {
    if (problem_.dy_init == nullptr) return;
    using Conjugate = typename ConjugateOf<Element>::Type;
    const auto *a = static_cast<const Storage *>(problem_.forward.a), *dx = static_cast<const Storage *>(problem_.dx);
    for (int64_t q = 0; q < sequences_.count; ++q) {
      const int64_t last = sequences_.End(q) - 1;
      auto *to = static_cast<Storage *>(problem_.dy_init) +
                 (b * problem_.dy_init_batch_stride + sequences_.Index(q) * problem_.dy_init_sequence_stride) * kParts;
      for (int64_t n = c; n < c + channels; ++n) {
        Numbers<Element, 1> passed{};
        if (last >= sequences_.Begin(q))
          passed = MultiplyAdd<Conjugate, 1>(LoadNumbers<Element, 1>(At(a, problem_.forward.a_strides, b, last, n)),
                                             LoadNumbers<Element, 1>(At(dx, problem_.dx_strides, b, last, n)), passed);
        StoreNumbers<Element, 1>(to + n * problem_.dy_init_channel_stride * kParts, passed);
      }
    }
  }
};

template <class Element>
convscan_status Run(const convscan_scan_gradient &problem) {
  const convscan_scan &f = problem.forward;
  const bool streams = problem.dx != problem.dy && IsTooLargeForCaches(f, problem.da == nullptr ? 3 : 5);
  const Adjoint<Element> adjoint(problem, streams);
  const Sequences &sequences = adjoint.AllSequences();
  const int threads = f.batch * f.length * f.channels < kSmallProblem ? 1 : f.threads > 0 ? f.threads : ThreadCount();
  const int64_t width = adjoint.Width(), blocks = CeilDiv(f.channels, width), rows = f.batch * blocks;
  // The second pass needs the input that working in place overwrites.
  const bool divides = problem.dx != problem.dy && rows < threads;
  const int64_t tiles = divides ? Max(1, Min(CeilDiv(threads, rows), f.length / (8 * kPiece))) : 1;
  const int64_t steps = CeilDiv(CeilDiv(f.length, tiles), kPiece) * kPiece;
  const auto start = [&](int64_t tile) { return TileStart(sequences, tile * steps, f.length); };
  const auto block = [&](int64_t row, const auto &run) {
    const int64_t c = row % blocks * width;
    run(row / blocks, c, Min(width, f.channels - c));
  };
  bool failed = false;
  // run(copy) with memory for a copy, if any is needed.
  const auto with_copy = [&](const auto &run) {
    using Storage = typename Element::Storage;
    const size_t bytes = adjoint.CopyBytes();
    auto *const copy = bytes == 0 ? nullptr : static_cast<Storage *>(Workspace(bytes));
    if (bytes != 0 && copy == nullptr) {
      __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
      return;
    }
    run(copy);
  };
  ParallelFor(rows * tiles, threads, [&](int64_t task) {
    const int64_t tile = task % tiles;
    block(task / tiles, [&](int64_t b, int64_t c, int64_t channels) {
      with_copy([&](auto *copy) { adjoint.Run(b, start(tile), start(tile + 1), c, channels, copy); });
      if (tiles == 1) adjoint.StoreInitial(b, c, channels);
    });
  });
  if (tiles > 1 && !failed) {
    ParallelFor(rows, threads, [&](int64_t row) {
      block(row, [&](int64_t b, int64_t c, int64_t channels) {
        with_copy([&](auto *copy) {
          for (int64_t tile = 1; tile < tiles; ++tile)
            adjoint.CatchUp(b, start(tile), start(tile + 1), c, channels, copy);
        });
        adjoint.StoreInitial(b, c, channels);
      });
    });
  }
  return failed ? CONVSCAN_OUT_OF_MEMORY : CONVSCAN_OK;
}

}  // namespace

bool GradientRunsAlongTime(const convscan_scan_gradient &problem) {
  const convscan_scan &f = problem.forward;
  // Half types round g before the product with y; and there are no sums.
  if (StorageBytes(f.dtype) != ComputeBytes(f.dtype)) return false;
  const convscan_scan scan = AdjointScan(problem);
  const Segment s = Cut(scan, 0, 0, f.length, 0, f.channels);
  const bool is_interleaved = ParallelSegment(scan, true) != nullptr;
  if (!is_interleaved && !IsAlongTime(s)) return false;
  if (!SameSteps(problem.dx_strides, problem.dy_strides, f.channels)) return false;
  if (problem.da == nullptr) return true;
  const auto varies = [&](int64_t size, int64_t stride) { return size == 1 || stride != 0; };
  return SameSteps(f.y_strides, problem.dx_strides, f.channels) &&
         SameSteps(problem.da_strides, problem.dx_strides, f.channels) && varies(f.batch, problem.da_strides.batch) &&
         varies(f.channels, problem.da_strides.channel) && varies(f.length, problem.da_strides.time);
}

convscan_status ScanGradientAlongTime(const convscan_scan_gradient &problem) {
  return WithElement(problem.forward.dtype, [&](auto element) {
    using Element = decltype(element);
    if constexpr (sizeof(typename Element::Storage) == sizeof(typename Element::Part)) return Run<Element>(problem);
    return CONVSCAN_UNSUPPORTED;
  });
}

}  // namespace convscan::CONVSCAN_ISA
