// The recurrence along time inside vector registers, for arrays whose steps are neighbours in memory.
//
// A vector of kW numbers holds kW / kC steps, or segments of steps, of kC channels: lane b kC + c is segment b of channel
// c. Where time is contiguous, kC vectors of kC channels are transposed in squares of kC x kC, so that a lane's segment
// is kC steps, one in each vector; where a few channels are, a segment is the one step that lies there. Three phases:
//
//   products   the product p of each segment's coefficients and its last state s when started from zero; combined with
//              those of the segments before it, 1, 2, 4... at a time (a Kogge-Stone scan across the lanes)
//   carry      the state after each segment, p c + s, and from it the state before each
//   outputs    the recurrence itself in every lane, from the state before its segment
//
// With kC = kW there is one segment a channel: no products, the arithmetic of the loop itself, and the only form there
// is with 128-bit vectors.
//
// Products are formed of kW coefficients at most, which the recurrence itself never does. They may leave out what
// underflows, less than 2^-64 of the smallest normal number times the state: of no account beside the state, which is an
// output. Where they could overflow, because a coefficient is 2 or more or a state is infinite, the steps of a vector are
// done one by one instead.
#pragma once

#include "scan/element.h"
#include "scan/segment.h"

namespace convscan::CONVSCAN_ISA {

// Numbers of 128 bits, the width within which lanes move at little cost.
template <class Element>
inline constexpr int kBlockNumbers = 16 / static_cast<int>(sizeof(typename Element::Part)) / Element::kParts;

// Steps after which vectors start afresh, counted from the first of a sequence: a multiple of every power of two of steps
// in a vector. Callers divide time at multiples of it, so that no result depends on where they do.
inline constexpr int64_t kPiece = 1024;

// The first step of a tile of time that would begin at step t: whole pieces after the beginning of its sequence.
inline int64_t TileStart(const Sequences &sequences, int64_t t, int64_t length) {
  if (t >= length) return length;
  const int64_t s = sequences.At(t), begin = sequences.Begin(s);
  return Min(begin + CeilDiv(t - begin, kPiece) * kPiece, sequences.End(s));
}

// Whether steps are neighbours in memory, of all arrays in the same direction; `a` may be constant.
inline bool IsAlongTime(const Segment &s) {
  return (s.x_time == 1 || s.x_time == -1) && s.y_time == s.x_time && (s.a_time == s.x_time || s.a_time == 0);
}

// The lanes of a vector of kW numbers: segments of kC rows, those of a row kC lanes apart. A row is a channel, or kPer
// neighbouring rows are successive stretches of time of one. Where kC does not divide kW some lanes are not in use: the
// last, or with time running backwards, when the first step is in the last lanes, the first.
template <class Element, int kC, int kPer, int kW, bool kBackwards>
struct TimeLanes {
  using Part = typename Element::Part;
  using V = Numbers<Element, kW>;
  static constexpr int kParts = Element::kParts, kChannels = kC / kPer;
  static constexpr int kInRow = kW / kC, kSegments = kPer * kInRow;  // of a row, and of a channel
  static constexpr int kUsed = kInRow * kC, kFirst = kBackwards ? kW - kUsed : 0;
  static constexpr MakeIndices<kW * kParts> kAll{};

  // Of a lane its channel and segment, and back. Lanes not in use count as what they would be if they were.
  static constexpr int Row(int lane) { return (lane - kFirst + kC) % kC; }
  static constexpr int Channel(int lane) { return Row(lane) / kPer; }
  static constexpr int Segment(int lane) {
    const int in_row = (lane - kFirst + kC) / kC - 1;
    return Row(lane) % kPer * kInRow + (kBackwards ? kInRow - 1 - in_row : in_row);
  }
  static constexpr int Lane(int channel, int segment) {
    const int in_row = kBackwards ? kInRow - 1 - segment % kInRow : segment % kInRow;
    return kFirst + in_row * kC + channel * kPer + segment / kInRow;
  }

  // Every segment's number from kBy segments earlier, those of `first` at the beginning.
  template <int kBy, int... I>
  static CONVSCAN_INLINE V Later(V v, V first, Indices<I...>) {
    return __builtin_shufflevector(
        first, v,
        (IsUsed(I / kParts) && Segment(I / kParts) >= kBy
             ? (Lane(Channel(I / kParts), Segment(I / kParts) - kBy) + kW) * kParts + I % kParts
             : I)...);
  }
  // Every channel's number of its last segment, or of its first one.
  template <int... I>
  static CONVSCAN_INLINE V Last(V v, Indices<I...>) {
    return __builtin_shufflevector(v, v, (Lane(Channel(I / kParts), kSegments - 1) * kParts + I % kParts)...);
  }
  static CONVSCAN_INLINE V Last(V v) { return Last(v, kAll); }

  // The channels' numbers in all of their segments, and back.
  static CONVSCAN_INLINE V Spread(const Part *numbers) {
    alignas(64) Part lanes[kW * kParts];
    for (int i = 0; i < kW * kParts; ++i) lanes[i] = numbers[Channel(i / kParts) * kParts + i % kParts];
    return LoadNumbers<Element, kW>(lanes);
  }
  static CONVSCAN_INLINE void Gather(V v, Part *numbers) {
    alignas(64) Part lanes[kW * kParts];
    StoreNumbers<Element, kW>(lanes, v);
    for (int i = 0; i < kChannels * kParts; ++i) numbers[i] = lanes[Lane(i / kParts, 0) * kParts + i % kParts];
  }

  // Zero in lanes not in use.
  static constexpr bool IsUsed(int lane) { return kFirst <= lane && lane < kFirst + kUsed; }
  template <int... I>
  static CONVSCAN_INLINE V Used(V v, Indices<I...>) {
    if constexpr (kUsed == kW) return v;
    return __builtin_shufflevector(v, V{}, (IsUsed(I / kParts) ? I : I + kW * kParts)...);
  }

  // p and s of each segment, combined with those of all segments before it.
  template <int kBy = 1>
  static CONVSCAN_INLINE void Combine(V &p, V &s) {
    if constexpr (kBy < kSegments) {
      s = MultiplyAdd<Element, kW>(p, Later<kBy>(s, V{}, kAll), s);
      p = Multiply<Element, kW>(p, Later<kBy>(p, One(kAll), kAll));
      Combine<2 * kBy>(p, s);
    }
  }
  template <int... I>
  static CONVSCAN_INLINE V One(Indices<I...>) {
    return V{(I % kParts == 0 ? Part{1} : Part{0})...};
  }

  // Lanes whose top bit says that products are of no use: a coefficient of 2 or more, or a state that is not finite. Of
  // both the exponent's bits tell.
  using Bits = Vec<Unsigned<Part>, kW * kParts>;
  static CONVSCAN_INLINE Bits TooLarge(V a) { return BitCast<Bits>(a) << 1; }
  static CONVSCAN_INLINE Bits NotFinite(V s) {
    constexpr auto kExponentOne = Unsigned<Part>(1) << (sizeof(Part) == 4 ? 23 : 52 % (8 * sizeof(Part)));
    return (BitCast<Bits>(s) & (~Bits{} >> 1)) + kExponentOne;
  }
  static CONVSCAN_INLINE bool Any(Bits top) { return AnyTopBit<Unsigned<Part>, kW * kParts>(top); }
};

// Steps [t, end) of one channel one by one. Pointers are those of step 0, strides in scalars.
template <class Element, class Storage = typename Element::Storage>
CONVSCAN_INLINE void StepByStep(Element, const Storage *x, int64_t x_time, const Storage *a, int64_t a_time, Storage *y,
                                int64_t y_time, int64_t t, int64_t end, typename Element::Part *state) {
  auto s = LoadNumbers<Element, 1>(state);
  for (; t < end; ++t) {
    s = MultiplyAdd<Element, 1>(LoadNumbers<Element, 1>(a + t * a_time), s, LoadNumbers<Element, 1>(x + t * x_time));
    StoreNumbers<Element, 1>(y + t * y_time, s);
  }
  StoreNumbers<Element, 1>(state, s);
}

// The same for `channels` channels of a segment, from c on.
template <class Element>
__attribute__((noinline)) void StepByStep(Element, const Segment &s, int64_t c, int64_t channels, int64_t t, int64_t end,
                                          typename Element::Part *state) {
  using Storage = typename Element::Storage;
  constexpr int kParts = Element::kParts;
  for (int64_t n = c; n < c + channels; ++n)
    StepByStep(Element{}, static_cast<const Storage *>(s.x) + n * s.x_channel * kParts, s.x_time * kParts,
               static_cast<const Storage *>(s.a) + n * s.a_channel * kParts, s.a_time * kParts,
               static_cast<Storage *>(s.y) + n * s.y_channel * kParts, s.y_time * kParts, t, end, state + n * kParts);
}

// Where a segment's channels from c on, whose steps are neighbours in memory, have kC rows of kW steps each: kPer successive
// ones of a channel. kConstant: coefficients do not vary in time.
template <int kC, int kPer, int kW, bool kBackwards, bool kConstant, class Element>
struct TimeRows {
  using Storage = typename Element::Storage;
  using Part = typename Element::Part;
  using V = Numbers<Element, kW>;
  static constexpr int kParts = Element::kParts;

  const Storage *x[kC], *a[kC];  // of the vector at step 0 its first number in memory
  Storage *y[kC];
  bool streams;
  V constant;

  CONVSCAN_INLINE void Bind(const Segment &s, int64_t c) {
    constexpr int64_t kStart = kBackwards ? (1 - kW) * kParts : 0;
    streams = s.streams;
    Repeat<kC>([&](int r) CONVSCAN_INLINED {
      const int64_t n = c + r / kPer, start = kStart + (kBackwards ? -kParts : kParts) * (r % kPer * kW);
      x[r] = static_cast<const Storage *>(s.x) + n * s.x_channel * kParts + start;
      a[r] = static_cast<const Storage *>(s.a) + n * s.a_channel * kParts + (kConstant ? 0 : start);
      y[r] = static_cast<Storage *>(s.y) + n * s.y_channel * kParts + start;
      streams &= reinterpret_cast<uintptr_t>(y[r]) % kBlockBytes == 0;
    });
    if constexpr (kConstant) {
      alignas(64) Part numbers[kC / kPer * kParts];
      for (int i = 0; i < kC / kPer * kParts; ++i) numbers[i] = LoadScalar(a[i / kParts * kPer] + i % kParts);
      constant = TimeLanes<Element, kC, kPer, kW, kBackwards>::Spread(numbers);
    }
  }

  // Vector j of square k holds step j of every segment, of the kW steps from t + k kW on.
  template <int kT>
  CONVSCAN_INLINE void Load(int64_t t, V (&as)[kT][kC], V (&xs)[kT][kC]) const {
    // Where a vector is a line of memory: rows are too many for processors to follow all of them far enough. Four lines
    // ahead is 4 to 10 % on Zen 5; stores need none.
    if constexpr (sizeof(V) == 64 && sizeof(Storage) == sizeof(Part)) {
      Repeat<kC>([&](int r) CONVSCAN_INLINED {
        __builtin_prefetch(x[r] + At(t, 4));
        if constexpr (!kConstant) __builtin_prefetch(a[r] + At(t, 4));
      });
    }
    if constexpr (kConstant) {
      Repeat<kT * kC>([&](int n) CONVSCAN_INLINED { as[n % kT][n / kT] = constant; });
    } else {
      Repeat<kT * kC>([&](int n) CONVSCAN_INLINED { as[n % kT][n / kT] = LoadNumbers<Element, kW>(a[n / kT] + At(t, n % kT)); });
      Repeat<kT>([&](int k) CONVSCAN_INLINED { Turn(as[k]); });
    }
    Repeat<kT * kC>([&](int n) CONVSCAN_INLINED { xs[n % kT][n / kT] = LoadNumbers<Element, kW>(x[n / kT] + At(t, n % kT)); });
    Repeat<kT>([&](int k) CONVSCAN_INLINED { Turn(xs[k]); });
  }
  template <int kT>
  CONVSCAN_INLINE void Store(int64_t t, V (&ys)[kT][kC]) const {
    Repeat<kT>([&](int k) CONVSCAN_INLINED {
      if constexpr (kBackwards) Reverse(ys[k]);
      TransposeNumbers<Element, kW, kC>(ys[k]);
    });
    // Two loops: one with the question inside would ask it for every vector.
    if (streams) {
      Repeat<kT * kC>([&](int n) CONVSCAN_INLINED { StoreNumbers<Element, kW>(y[n / kT] + At(t, n % kT), ys[n % kT][n / kT], true); });
    } else {
      Repeat<kT * kC>([&](int n) CONVSCAN_INLINED { StoreNumbers<Element, kW>(y[n / kT] + At(t, n % kT), ys[n % kT][n / kT]); });
    }
  }

 private:
  static CONVSCAN_INLINE int64_t At(int64_t t, int k) { return (kBackwards ? -t - k * kW : t + k * kW) * kParts; }
  static CONVSCAN_INLINE void Turn(V (&v)[kC]) {
    TransposeNumbers<Element, kW, kC>(v);
    if constexpr (kBackwards) Reverse(v);
  }
  static CONVSCAN_INLINE void Reverse(V (&v)[kC]) {
    Repeat<kC / 2>([&](int j) CONVSCAN_INLINED {
      const V other = v[j];
      v[j] = v[kC - 1 - j];
      v[kC - 1 - j] = other;
    });
  }
};

// kU times kW channels from c on, one segment each, kT squares of kW steps at a time. `state` is that of the segment's
// channel 0.
template <int kW, int kU, int kT, bool kBackwards, bool kConstant, class Element>
CONVSCAN_INLINE void ScanSquares(Element, const Segment &s, int64_t c, typename Element::Part *state) {
  using Rows = TimeRows<kW, 1, kW, kBackwards, kConstant, Element>;
  using V = typename Rows::V;
  constexpr int kParts = Element::kParts;
  Rows rows[kU];
  V carry[kU];
  Repeat<kU>([&](int u) CONVSCAN_INLINED {
    rows[u].Bind(s, c + u * kW);
    carry[u] = LoadNumbers<Element, kW>(state + (c + u * kW) * kParts);
  });
  const auto run = [&]<int kTimes>(Indices<kTimes>, int64_t t, int64_t end) CONVSCAN_INLINED {
    for (; t + kTimes * kW <= end; t += kTimes * kW) {
      Repeat<kU>([&](int u) CONVSCAN_INLINED {
        V as[kTimes][kW], xs[kTimes][kW];
        rows[u].Load(t, as, xs);
        Repeat<kTimes * kW>([&](int n) CONVSCAN_INLINED {
          const int k = n / kW, j = n % kW;
          xs[k][j] = carry[u] = MultiplyAdd<Element, kW>(as[k][j], carry[u], xs[k][j]);
        });
        rows[u].Store(t, xs);
      });
    }
    return t;
  };
  int64_t t = run(Indices<kT>{}, 0, s.length);
  if constexpr (kT > 1) t = run(Indices<1>{}, t, s.length);
  Repeat<kU>([&](int u) CONVSCAN_INLINED { StoreNumbers<Element, kW>(state + (c + u * kW) * kParts, carry[u]); });
  if (t < s.length) StepByStep(Element{}, s, c, kU * kW, t, s.length, state);
}

// Steps [t, end), a multiple of kSteps, until products are of no use; returns the first not written. What a vector needs of
// the one before it is a short part of its work. It comes when the next vector's has begun, so that the processor has enough
// to do meanwhile: Zen 5 takes 0.075 ns a step where it took 0.11.
template <int64_t kSteps, class Scan>
CONVSCAN_INLINE int64_t RunUntilUnsuitable(Scan &scan, int64_t t, int64_t end) {
  typename Scan::Products even, odd;
  scan.Begin(t, even);
  while (true) {
    if (t + kSteps >= end) return scan.Finish(t, even) ? t + kSteps : t;
    scan.Begin(t + kSteps, odd);
    if (!scan.Finish(t, even)) return t;
    t += kSteps;
    if (t + kSteps >= end) return scan.Finish(t, odd) ? t + kSteps : t;
    scan.Begin(t + kSteps, even);
    if (!scan.Finish(t, odd)) return t;
    t += kSteps;
  }
}

// kC rows, which are those of kC / kPer channels from c on.
template <int kC, int kPer, int kW, bool kBackwards, bool kConstant, class Element>
class ScanOfSegments {
  using Lanes = TimeLanes<Element, kC, kPer, kW, kBackwards>;
  using V = typename Lanes::V;
  using Part = typename Element::Part;
  static constexpr int kParts = Element::kParts, kPairs = kC / 2, kSteps = kPer * kW;
  static_assert(kC == 2 || kC == 4);

 public:
  // Of kSteps steps what does not depend on the state before them. Pair k is steps 2 k and 2 k + 1 of every segment.
  struct Products {
    V a[kPairs], x[kPairs];        // of the first step of a pair
    V pair[kPairs], added[kPairs];  // product and state from zero of a pair
    V p, last;                     // of a segment and all segments before it
    typename Lanes::Bits unsuitable;
  };

  CONVSCAN_INLINE void Begin(int64_t t, Products &of) const {
    V as[1][kC], xs[1][kC];
    rows.Load(t, as, xs);
    of.unsuitable = typename Lanes::Bits{};
    Repeat<kPairs>([&](int k) CONVSCAN_INLINED {
      const V a0 = as[0][2 * k], a1 = as[0][2 * k + 1], x0 = xs[0][2 * k], x1 = xs[0][2 * k + 1];
      of.a[k] = a0;
      of.x[k] = x0;
      of.pair[k] = Multiply<Element, kW>(a1, a0);
      of.added[k] = MultiplyAdd<Element, kW>(a1, x0, x1);
      of.unsuitable |= Lanes::TooLarge(a0) | Lanes::TooLarge(a1);
    });
    of.p = of.pair[0];
    of.last = of.added[0];
    if constexpr (kPairs == 2) {
      of.p = Multiply<Element, kW>(of.pair[1], of.pair[0]);
      of.last = MultiplyAdd<Element, kW>(of.pair[1], of.added[0], of.added[1]);
    }
    Lanes::Combine(of.p, of.last);
  }

  // Writes the steps from t on; or false, and nothing is written, where products are of no use.
  CONVSCAN_INLINE bool Finish(int64_t t, const Products &of) {
    const V after = MultiplyAdd<Element, kW>(of.p, carry, of.last);
    if (__builtin_expect(Lanes::Any(of.unsuitable | Lanes::NotFinite(after)), false)) return false;
    const V before = Lanes::template Later<1>(after, carry, Lanes::kAll);
    carry = Lanes::Last(after);
    V ys[1][kC];
    ys[0][0] = MultiplyAdd<Element, kW>(of.a[0], before, of.x[0]);
    if constexpr (kPairs == 2) {
      ys[0][1] = MultiplyAdd<Element, kW>(of.pair[0], before, of.added[0]);
      ys[0][2] = MultiplyAdd<Element, kW>(of.a[1], ys[0][1], of.x[1]);
    }
    ys[0][kC - 1] = after;
    rows.Store(t, ys);
    return true;
  }

  CONVSCAN_INLINE ScanOfSegments(const Segment &s, int64_t c, Part *states)
      : s(s), c(c), state(states + c * kParts), carry(Lanes::Spread(state)) {
    rows.Bind(s, c);
  }

  // Returns the first step that is left, less than kSteps before the end.
  CONVSCAN_INLINE int64_t Run() {
    const int64_t end = s.length / kSteps * kSteps;
    for (int64_t t = 0; t < end;) {
      t = RunUntilUnsuitable<kSteps>(*this, t, end);
      Lanes::Gather(carry, state);
      if (t == end) break;
      StepByStep(Element{}, s, c, kC / kPer, t, t + kSteps, state - c * kParts);
      carry = Lanes::Spread(state);
      t += kSteps;
    }
    return end;
  }

 private:
  const Segment &s;
  const int64_t c;
  Part *const state;
  TimeRows<kC, kPer, kW, kBackwards, kConstant, Element> rows;
  V carry;
};

// function(Indices<kBackwards, kConstant>) for the direction and the coefficients of a segment.
template <class Function>
CONVSCAN_INLINE auto WithDirection(const Segment &s, const Function &function) {
  if (s.a_time == 0) return s.x_time > 0 ? function(Indices<0, 1>{}) : function(Indices<1, 1>{});
  return s.x_time > 0 ? function(Indices<0, 0>{}) : function(Indices<1, 0>{});
}

// All channels of a segment from c on in groups of kU kW; returns the first that no group reaches.
template <int kW, int kU, int kT, class Element>
CONVSCAN_INLINE int64_t ScanInSquares(Element, const Segment &s, int64_t c, typename Element::Part *state) {
  return WithDirection(s, [&]<int kBackwards, int kConstant>(Indices<kBackwards, kConstant>) CONVSCAN_INLINED {
    for (; c + kU * kW <= s.channels; c += kU * kW)
      ScanSquares<kW, kU, kT, kBackwards, kConstant>(Element{}, s, c, state);
    return c;
  });
}

// kC / kPer channels from c on by segments; returns the first step that is left.
template <int kC, int kPer, int kW, class Element>
CONVSCAN_INLINE int64_t ScanSegments(Element, const Segment &s, int64_t c, typename Element::Part *state) {
  return WithDirection(s, [&]<int kBackwards, int kConstant>(Indices<kBackwards, kConstant>) CONVSCAN_INLINED {
    return ScanOfSegments<kC, kPer, kW, kBackwards, kConstant, Element>(s, c, state).Run();
  });
}

}  // namespace convscan::CONVSCAN_ISA
