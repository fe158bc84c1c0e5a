// The recurrence along time inside vector registers: in all lanes of a vector at once, where channels are too few or too
// far apart in memory to fill one. See scan/along_time.h.
#include "core/kernels.h"
#include "core/parallel.h"
#include "scan/along_time.h"

namespace convscan::CONVSCAN_ISA {

convscan_status ScanSequential(const convscan_scan &);

namespace {

// Whether `channels` neighbours fill so little of a vector that several steps of all of them lie in one, in all arrays.
template <class Element>
bool IsInterleaved(const Segment &s) {
  const auto is_dense = [&](int64_t time, int64_t channel) {
    return (channel == 1 || s.channels == 1) && (time == s.channels || time == -s.channels);
  };
  return 2 * s.channels <= kNumbers<Element> && is_dense(s.x_time, s.x_channel) && is_dense(s.y_time, s.y_channel) &&
         s.x_time == s.y_time &&
         ((is_dense(s.a_time, s.a_channel) && s.a_time == s.x_time) ||
          (s.a_time == 0 && (s.a_channel == 1 || s.channels == 1)));
}

// kC neighbouring channels, kV vectors at a time.
template <int kC, int kV, bool kBackwards, class Element>
class ScanOfNeighbours {
  using Storage = typename Element::Storage;
  using Part = typename Element::Part;
  static constexpr int kW = kNumbers<Element>, kParts = Element::kParts;
  using Lanes = TimeLanes<Element, kC, 1, kW, kBackwards>;
  using V = typename Lanes::V;
  static constexpr int64_t kSteps = kV * Lanes::kInRow;
  // Lanes not in use are of the step after. They pass on x, which is what y may be before it is written: y is x, or its
  // step comes next.
  static constexpr int64_t kReadAhead = Lanes::kUsed < kW;

 public:
  // Of kSteps steps what does not depend on the state before them.
  struct Products {
    V p[kV], last[kV];        // of every step and those before it in the vector
    V passed[kV], added[kV];  // of the whole vector
    typename Lanes::Bits unsuitable;
  };

  CONVSCAN_INLINE void Begin(int64_t t, Products &of) const {
    of.unsuitable = typename Lanes::Bits{};
    Repeat<kV>([&](int v) CONVSCAN_INLINED {
      V p = is_constant ? constant : Lanes::Used(LoadNumbers<Element, kW>(a + At(t, v)), Lanes::kAll);
      V last = LoadNumbers<Element, kW>(x + At(t, v));
      of.unsuitable |= Lanes::TooLarge(p);
      Lanes::Combine(p, last);
      of.p[v] = p;
      of.last[v] = last;
      of.passed[v] = Lanes::Last(p);
      of.added[v] = Lanes::Last(last);
    });
  }

  // Writes the steps from t on; or false, and nothing is written, where products are of no use.
  CONVSCAN_INLINE bool Finish(int64_t t, const Products &of) {
    V ys[kV], next = carry;
    Repeat<kV>([&](int v) CONVSCAN_INLINED {
      ys[v] = MultiplyAdd<Element, kW>(of.p[v], next, of.last[v]);
      next = MultiplyAdd<Element, kW>(of.passed[v], next, of.added[v]);
    });
    if (__builtin_expect(Lanes::Any(of.unsuitable | Lanes::NotFinite(next)), false)) return false;
    carry = next;
    Repeat<kV>([&](int v) CONVSCAN_INLINED {
      StoreNumbers<Element, kW>(y + At(t, v), ys[v], streams);
    });
    return true;
  }

  // Addresses are those of step 0; a vector's is where it has its first lane.
  CONVSCAN_INLINE ScanOfNeighbours(const Segment &s, Part *state)
      : s(s), state(state), x(static_cast<const Storage *>(s.x) + kStart), a(static_cast<const Storage *>(s.a) + kStart),
        y(static_cast<Storage *>(s.y) + kStart), streams(s.streams && kReadAhead == 0 && reinterpret_cast<uintptr_t>(y) % kBlockBytes == 0),
        is_constant(s.a_time == 0), carry(Lanes::Spread(state)), constant{} {
    if (is_constant) {
      alignas(64) Part numbers[kC * kParts];
      for (int i = 0; i < kC * kParts; ++i) numbers[i] = LoadScalar(static_cast<const Storage *>(s.a) + i);
      constant = Lanes::Used(Lanes::Spread(numbers), Lanes::kAll);
    }
  }

  // Steps [t, end); returns the first that is left.
  CONVSCAN_INLINE int64_t Run(int64_t t, int64_t end) {
    const int64_t stop = t + Max(0, end - t - kReadAhead) / kSteps * kSteps;
    while (t < stop) {
      t = RunUntilUnsuitable<kSteps>(*this, t, stop);
      if (t == stop) break;
      Lanes::Gather(carry, state);
      StepByStep(Element{}, s, 0, kC, t, t + kSteps, state);
      carry = Lanes::Spread(state);
      t += kSteps;
    }
    Lanes::Gather(carry, state);
    return t;
  }

 private:
  static constexpr int64_t kStart = kBackwards ? (kC - kW) * kParts : 0;
  static CONVSCAN_INLINE int64_t At(int64_t t, int v) {
    return (kBackwards ? -1 : 1) * (t + v * Lanes::kInRow) * kC * kParts;
  }

  const Segment &s;
  Part *const state;
  const Storage *const x, *const a;
  Storage *const y;
  const bool streams, is_constant;
  V carry, constant;
};

// Channels of a segment from step t on, which begins a piece or, of one channel, a vector.
template <int kC, class Element>
void ScanNeighbours(Element, const Segment &s, int64_t t, typename Element::Part *state) {
  if constexpr (2 * kC <= kNumbers<Element>) {
    if (s.channels != kC) return ScanNeighbours<kC + 1>(Element{}, s, t, state);
    while (t < s.length) {
      const int64_t end = Min((t / kPiece + 1) * kPiece, s.length);
      t = s.x_time > 0 ? ScanOfNeighbours<kC, 2, false, Element>(s, state).Run(t, end)
                       : ScanOfNeighbours<kC, 2, true, Element>(s, state).Run(t, end);
      if (t < end) StepByStep(Element{}, s, 0, kC, t, end, state);
      t = end;
    }
  }
}

template <class Element>
void RunSegment(const Segment &s, void *states) {
  using Storage = typename Element::Storage;
  constexpr int kC = kBlockNumbers<Element>, kW = kNumbers<Element>, kParts = Element::kParts;
  auto *const state = static_cast<typename Element::Part *>(states);
  if (s.channels > 1 && IsInterleaved<Element>(s)) {
    ScanNeighbours<1>(Element{}, s, 0, state);
  } else {
    int64_t c = 0;
    if constexpr (1 < kC && kC < kW) {
      for (; c + kC <= s.channels; c += kC) {
        const int64_t left = ScanSegments<kC, 1, kW>(Element{}, s, c, state);
        if (left < s.length) StepByStep(Element{}, s, c, kC, left, s.length, state);
      }
    }
    // Channels that are left of the groups, one after the other.
    for (; c < s.channels; ++c) {
      Segment one = s;
      one.channels = 1;
      one.x = static_cast<const Storage *>(s.x) + c * s.x_channel * kParts;
      one.a = static_cast<const Storage *>(s.a) + c * s.a_channel * kParts;
      one.y = static_cast<Storage *>(s.y) + c * s.y_channel * kParts;
      int64_t left = 0;
      if constexpr (1 < kC) left = ScanSegments<kC, kC, kW>(Element{}, one, 0, state + c * kParts);
      ScanNeighbours<1>(Element{}, one, left, state + c * kParts);
    }
  }
  if (s.streams) StreamFence();
}

}  // namespace

SegmentKernel ParallelSegment(const convscan_scan &p, bool conjugates) {
  return WithElement(p.dtype, conjugates, [&](auto element) -> SegmentKernel {
    using Element = decltype(element);
    const Segment s = Cut(p, 0, 0, p.length, 0, p.channels);
    // Where a block is a vector, groups of channels are what the sequential scan does with them.
    constexpr bool kHasGroups = kNumbers<Element> > kBlockNumbers<Element>;
    if constexpr (kNumbers<Element> > 1) {
      if (IsInterleaved<Element>(s) || (kHasGroups && IsAlongTime(s))) return RunSegment<Element>;
    }
    return nullptr;
  });
}

convscan_status ScanParallel(const convscan_scan &problem) {
  const convscan_scan p = Forwards(problem);
  const SegmentKernel kernel = ParallelSegment(p);
  if (kernel == nullptr) return ScanSequential(problem);
  const Sequences sequences(p, problem.reverse);
  // Groups of channels stay together whatever the number of threads: one that cannot use products runs step by step.
  constexpr int64_t kWidth = 8;
  constexpr int64_t kWidest = 8 * kWidth;
  const int threads = p.batch * p.length * p.channels < kSmallProblem ? 1 : p.threads;
  const int64_t width = Min(kWidest, CeilDiv(BlockWidth(p, threads), kWidth) * kWidth);
  const int64_t blocks = CeilDiv(p.channels, width);
  const bool streams = IsTooLargeForCaches(p);
  ParallelFor(p.batch * blocks, threads, [&](int64_t task) {
    alignas(64) char state[kWidest * 16];
    const int64_t b = task / blocks, c = task % blocks * width, channels = Min(width, p.channels - c);
    RunSteps(p, sequences, kernel, b, 0, p.length, c, channels, streams, state);
  });
  return CONVSCAN_OK;
}

}  // namespace convscan::CONVSCAN_ISA
