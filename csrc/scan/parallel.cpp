// The recurrence as a scan over the pairs (a, x) under (a, x) then (b, z) = (ab, bx + z), inside vector registers:
// lanes hold successive steps, log2(lanes) shifted multiply-adds give every lane the sum from the vector's first step
// on, and one more adds what the state carried in becomes. Where few channels lie side by side, lanes hold several
// steps of all of them and shifts go by whole steps.
//
// Products of up to a vector's worth of coefficients are formed, which the recurrence itself never does. They are used
// only where every coefficient of a group of vectors is at most kLargest in magnitude, so that no product overflows,
// and what underflows cannot matter beside the rounding of the state; and where the results are finite, so that an
// overflow shows at the step where it happens. Any other group is run step by step.
#include "core/kernels.h"
#include "core/parallel.h"
#include "scan/element.h"
#include "scan/segment.h"

namespace convscan::CONVSCAN_ISA {
namespace {

// 16 lanes are the most of any vector: products stay below 2^(6 * 16), times sqrt 2 each where they are complex.
constexpr float kLargest = 64.0f;

// Lanes move up by Distance scalars; `fill` comes in from below.
template <int Distance, class V, int... I>
CONVSCAN_INLINE V ShiftUp(V v, V fill, Indices<I...>) {
  constexpr int kW = sizeof...(I);
  return __builtin_shufflevector(v, fill, (I < Distance ? I + kW : I - Distance)...);
}

// The last `Period` scalars in every group of lanes.
template <int Period, class V, int... I>
CONVSCAN_INLINE V RepeatLast(V v, Indices<I...>) {
  constexpr int kW = sizeof...(I);
  return __builtin_shufflevector(v, v, (kW - Period + I % Period)...);
}

template <int Parts, class V, int... I>
CONVSCAN_INLINE V Ones(V, Indices<I...>) {
  return V{(Parts == 2 && (I & 1) ? 0 : 1)...};
}

// Steps of D channels each, D * Element::kParts scalars apart: x becomes the sums from the first step on, a the products.
template <class Element, int N, int D, int Distance = D>
CONVSCAN_INLINE void ScanLanes(Numbers<Element, N> &x, Numbers<Element, N> &a) {
  if constexpr (Distance < N) {
    constexpr MakeIndices<N * Element::kParts> kAll{};
    constexpr int kShift = Distance * Element::kParts;
    x = MultiplyAdd<Element, N>(a, ShiftUp<kShift>(x, Numbers<Element, N>{}, kAll), x);
    a = Multiply<Element, N>(a, ShiftUp<kShift>(a, Ones<Element::kParts>(a, kAll), kAll));
    ScanLanes<Element, N, D, 2 * Distance>(x, a);
  }
}

template <class V>
CONVSCAN_INLINE bool AnySet(V mask) {
  uint64_t words[sizeof(V) / 8], any = 0;
  __builtin_memcpy(words, &mask, sizeof(V));
  for (uint64_t word : words) any |= word;
  return any != 0;
}

template <class V>
CONVSCAN_INLINE V Magnitude(V v) {
  return v < 0 ? -v : v;
}

// N numbers of D channels, the first at step t: contiguous, or one after the other (Step: stride of time).
template <class Element, int N, int D, class Storage = typename Element::Storage>
CONVSCAN_INLINE Numbers<Element, N> LoadSteps(const Storage *p, int64_t time, int64_t channel, bool contiguous) {
  constexpr int kParts = Element::kParts;
  if (contiguous) return LoadNumbers<Element, N>(p);
  alignas(64) Storage lanes[N * kParts];
  for (int n = 0; n < N; ++n)
    for (int i = 0; i < kParts; ++i) lanes[n * kParts + i] = p[n / D * time + n % D * channel + i];
  return LoadNumbers<Element, N>(lanes);
}

template <class Element, int N, int D, class Storage = typename Element::Storage>
CONVSCAN_INLINE void StoreSteps(Storage *p, int64_t time, int64_t channel, bool contiguous, Numbers<Element, N> v) {
  constexpr int kParts = Element::kParts;
  if (contiguous) return StoreNumbers<Element, N>(p, v);
  alignas(64) Storage lanes[N * kParts];
  StoreNumbers<Element, N>(lanes, v);
  for (int n = 0; n < N; ++n)
    for (int i = 0; i < kParts; ++i) p[n / D * time + n % D * channel + i] = lanes[n * kParts + i];
}

// Steps [t, end) of D channels one by one.
template <class Element, int D>
__attribute__((noinline)) void RunSteps(const Segment &s, int64_t t, int64_t end, int64_t c,
                                        typename Element::Part *state) {
  using Storage = typename Element::Storage;
  constexpr int kParts = Element::kParts;
  for (; t < end; ++t) {
    for (int n = 0; n < D; ++n) {
      const Storage *x = static_cast<const Storage *>(s.x) + (t * s.x_time + (c + n) * s.x_channel) * kParts;
      const Storage *a = static_cast<const Storage *>(s.a) + (t * s.a_time + (c + n) * s.a_channel) * kParts;
      const auto y = MultiplyAdd<Element, 1>(LoadNumbers<Element, 1>(a), LoadNumbers<Element, 1>(state + n * kParts),
                                             LoadNumbers<Element, 1>(x));
      StoreNumbers<Element, 1>(state + n * kParts, y);
      if (s.y != nullptr)
        StoreNumbers<Element, 1>(
            static_cast<Storage *>(s.y) + (t * s.y_time + (c + n) * s.y_channel) * kParts, y);
    }
  }
}

// All of time for channels [c, c + D).
template <class Element, int D>
void RunLanes(const Segment &s, int64_t c, typename Element::Part *state) {
  using Storage = typename Element::Storage;
  using Part = typename Element::Part;
  constexpr int kN = kNumbers<Element>, kParts = Element::kParts;
  using V = Numbers<Element, kN>;
  constexpr MakeIndices<kN * kParts> kAll{};
  constexpr int kGroup = 4, kSteps = kN / D;
  const auto is_contiguous = [](int64_t time, int64_t channel) { return time == D && (D == 1 || channel == 1); };
  const bool x_contiguous = is_contiguous(s.x_time, s.x_channel), a_contiguous = is_contiguous(s.a_time, s.a_channel);
  const bool y_contiguous = is_contiguous(s.y_time, s.y_channel), a_constant = s.a_time == 0;
  const Storage *x = static_cast<const Storage *>(s.x) + c * s.x_channel * kParts;
  const Storage *a = static_cast<const Storage *>(s.a) + c * s.a_channel * kParts;
  Storage *y = s.y == nullptr ? nullptr : static_cast<Storage *>(s.y) + c * s.y_channel * kParts;

  V constant{};
  if (a_constant) constant = LoadSteps<Element, kN, D>(a, 0, s.a_channel * kParts, false);
  V carried{};
  for (int i = 0; i < kN * kParts; ++i) carried[i] = state[i % (D * kParts)];
  int64_t t = 0;
  for (; t + kGroup * kSteps <= s.length; t += kGroup * kSteps) {
    V sums[kGroup], products[kGroup], unsuitable{};
#pragma GCC unroll 4
    for (int g = 0; g < kGroup; ++g) {
      const int64_t at = t + g * kSteps;
      sums[g] = LoadSteps<Element, kN, D>(x + at * s.x_time * kParts, s.x_time * kParts, s.x_channel * kParts,
                                          x_contiguous);
      products[g] = a_constant ? constant
                               : LoadSteps<Element, kN, D>(a + at * s.a_time * kParts, s.a_time * kParts,
                                                           s.a_channel * kParts, a_contiguous);
      const V magnitude = Magnitude(products[g]);
      unsuitable = magnitude <= Part{kLargest} ? unsuitable : V{} + Part{1};
      ScanLanes<Element, kN, D>(sums[g], products[g]);
    }
    const V before = carried;
#pragma GCC unroll 4
    for (int g = 0; g < kGroup; ++g) {
      sums[g] = MultiplyAdd<Element, kN>(products[g], carried, sums[g]);
      carried = RepeatLast<D * kParts>(sums[g], kAll);
      unsuitable = sums[g] - sums[g] == V{} ? unsuitable : V{} + Part{1};
    }
    if (__builtin_expect(AnySet(unsuitable), false)) {
      Part stepwise[D * kParts];
      for (int i = 0; i < D * kParts; ++i) stepwise[i] = before[i];
      RunSteps<Element, D>(s, t, t + kGroup * kSteps, c, stepwise);
      for (int i = 0; i < kN * kParts; ++i) carried[i] = stepwise[i % (D * kParts)];
      continue;
    }
    if (y == nullptr) continue;
#pragma GCC unroll 4
    for (int g = 0; g < kGroup; ++g)
      StoreSteps<Element, kN, D>(y + (t + g * kSteps) * s.y_time * kParts, s.y_time * kParts, s.y_channel * kParts,
                                 y_contiguous, sums[g]);
  }
  for (int i = 0; i < D * kParts; ++i) state[i] = carried[i];
  RunSteps<Element, D>(s, t, s.length, c, state);
}

// Side by side where all channels fit a fraction of a vector, otherwise one after the other.
template <class Element, int D = 1>
void RunSegment(const Segment &s, void *state_memory) {
  auto *state = static_cast<typename Element::Part *>(state_memory);
  if constexpr (2 * D < kNumbers<Element>) {
    if (s.channels > D && s.x_channel == 1) return RunSegment<Element, 2 * D>(s, state_memory);
  }
  if (s.channels == D) return RunLanes<Element, D>(s, 0, state);
  for (int64_t c = 0; c < s.channels; ++c) RunLanes<Element, 1>(s, c, state + c * Element::kParts);
}

}  // namespace

SegmentKernel ParallelSegment(convscan_dtype dtype) {
  return WithElement(dtype, [](auto element) -> SegmentKernel { return RunSegment<decltype(element)>; });
}

convscan_status ScanParallel(const convscan_scan &problem) {
  const convscan_scan p = Forwards(problem);
  // Enough channels for a few kilobytes of state; how they are divided changes no number unless they fit a vector.
  constexpr int64_t kWidth = 64;
  const int64_t blocks = CeilDiv(p.channels, kWidth);
  const int threads = p.batch * p.length * p.channels < kSmallProblem ? 1 : p.threads;
  const SegmentKernel kernel = ParallelSegment(p.dtype);
  ParallelFor(p.batch * blocks, threads, [&](int64_t task) {
    alignas(64) char state[kWidth * 16];
    const int64_t b = task / blocks, c = task % blocks * kWidth, channels = Min(kWidth, p.channels - c);
    LoadInitialState(p, b, c, channels, state);
    kernel(Cut(p, b, 0, p.length, c, channels), state);
  });
  return CONVSCAN_OK;
}

}  // namespace convscan::CONVSCAN_ISA
