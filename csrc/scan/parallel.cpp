// The recurrence along time inside vector registers, for rows whose steps are neighbours in memory.
//
// N N successive steps are transposed so that each of N lanes holds a segment of N steps. Three phases over some
// blocks of them:
//
//   products   the product p of each segment's coefficients and its last state s when started from zero
//   carry      the state before each segment, c <- p c + s, one multiply-add a segment
//   outputs    the recurrence itself in every lane, from the state before its segment
//
// Two rows go through the phases together, which hides the latency of the carry. Only products of N coefficients are
// formed, which the recurrence itself never does; where one could overflow, underflow or hide a zero, the blocks are
// run step by step instead.
#include "core/kernels.h"
#include "core/parallel.h"
#include "scan/element.h"
#include "scan/segment.h"

namespace convscan::CONVSCAN_ISA {
namespace {

constexpr int kRowsAtOnce = 2;

// The magnitude of a coefficient that a product may contain, and the least that a product may have: then no partial
// product leaves the normal numbers, N <= 16.
constexpr float kLargest = 2;
template <class Part>
constexpr Part kSmallest = sizeof(Part) == 4 ? static_cast<Part>(0x1p-96) : static_cast<Part>(0x1p-900);

template <class V>
CONVSCAN_INLINE bool AnySet(V mask) {
  uint64_t words[sizeof(V) / 8], any = 0;
  __builtin_memcpy(words, &mask, sizeof(V));
  for (uint64_t word : words) any |= word;
  return any != 0;
}

// |v|: the sign bits cleared, which a comparison and a selection would do in three instructions.
template <class V>
CONVSCAN_INLINE V Magnitude(V v) {
  using Part = decltype(v[0] + v[0]);
  using Bits = Vec<Unsigned<Part>, sizeof(V) / sizeof(Part)>;
  return BitCast<V>(BitCast<Bits>(v) & (~Bits{} >> 1));
}

// One array along time.
template <class Element>
struct Row {
  using Storage = typename Element::Storage;
  static constexpr int kN = kNumbers<Element>, kParts = Element::kParts;
  using V = Numbers<Element, kN>;

  Storage *base;
  int64_t stride;  // of time, in numbers; 0 where the array is constant

  // Vector j of the block that starts at step t: step j of each of N segments of N steps.
  CONVSCAN_INLINE void Load(int64_t t, V (&v)[kN]) const {
    if (stride == 1) {
#pragma GCC unroll 16
      for (int l = 0; l < kN; ++l) v[l] = LoadNumbers<Element, kN>(base + (t + l * kN) * kParts);
      TransposeNumbers<Element, kN>(v);
    } else if (stride == -1) {
#pragma GCC unroll 16
      for (int l = 0; l < kN; ++l) v[l] = LoadNumbers<Element, kN>(base - (t + l * kN + kN - 1) * kParts);
      TransposeNumbers<Element, kN>(v);
      Reverse(v);
    } else {
      alignas(64) Storage lanes[kN * kParts];
      for (int j = 0; j < kN; ++j) {
        for (int l = 0; l < kN; ++l)
          for (int i = 0; i < kParts; ++i) lanes[l * kParts + i] = base[(t + l * kN + j) * stride * kParts + i];
        v[j] = LoadNumbers<Element, kN>(lanes);
      }
    }
  }

  // Asks for the block that starts at step t.
  CONVSCAN_INLINE void Prefetch(int64_t t) const {
    constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(Storage)) / kParts;
    if (stride == 1 || stride == -1)
#pragma GCC unroll 16
      for (int64_t n = 0; n < kN * kN; n += kLine) __builtin_prefetch(base + (t + n) * stride * kParts);
  }

  CONVSCAN_INLINE void Store(int64_t t, V (&v)[kN], bool streams) const {
    if (stride == 1) {
      TransposeNumbers<Element, kN>(v);
#pragma GCC unroll 16
      for (int l = 0; l < kN; ++l) {
        Storage *const to = base + (t + l * kN) * kParts;
        if constexpr (sizeof(Storage) == sizeof(typename Element::Part)) {
          if (streams) {
            StoreStream<kN * kParts>(to, v[l]);
            continue;
          }
        }
        StoreNumbers<Element, kN>(to, v[l]);
      }
    } else if (stride == -1) {
      Reverse(v);
      TransposeNumbers<Element, kN>(v);
#pragma GCC unroll 16
      for (int l = 0; l < kN; ++l) StoreNumbers<Element, kN>(base - (t + l * kN + kN - 1) * kParts, v[l]);
    } else {
      alignas(64) Storage lanes[kN * kParts];
      for (int j = 0; j < kN; ++j) {
        StoreNumbers<Element, kN>(lanes, v[j]);
        for (int l = 0; l < kN; ++l)
          for (int i = 0; i < kParts; ++i) base[(t + l * kN + j) * stride * kParts + i] = lanes[l * kParts + i];
      }
    }
  }

 private:
  static CONVSCAN_INLINE void Reverse(V (&v)[kN]) {
#pragma GCC unroll 16
    for (int j = 0; j < kN / 2; ++j) {
      const V other = v[j];
      v[j] = v[kN - 1 - j];
      v[kN - 1 - j] = other;
    }
  }
};

// One channel of a segment.
template <class Element>
struct Channel {
  using Storage = typename Element::Storage;
  using Part = typename Element::Part;
  static constexpr int kN = kNumbers<Element>, kParts = Element::kParts;
  static constexpr int kBlock = kN * kN;                                 // steps
  static constexpr int kBlocks = kBlock < 512 ? 512 / kBlock : 1;        // at most this many go through together
  static constexpr int kSegments = kBlocks * kN;
  using V = Numbers<Element, kN>;

  Row<Element> x, a, y;
  Part *state;
  bool streams;

  // Of the blocks at hand, transposed; and per segment, in order.
  V xs[kBlocks][kN], as[kBlocks][kN];
  alignas(64) Part product[kSegments * kParts], last[kSegments * kParts], before[kSegments * kParts];

  Channel() {}
  void Bind(const Segment &s, int64_t c, void *states) {
    const auto row = [c](const void *base, int64_t channel, int64_t time) {
      Storage *const first = static_cast<Storage *>(const_cast<void *>(base));
      return Row<Element>{first == nullptr ? nullptr : first + c * channel * kParts, time};
    };
    x = row(s.x, s.x_channel, s.x_time);
    a = row(s.a, s.a_channel, s.a_time);
    y = row(s.y, s.y_channel, s.y_time);
    state = static_cast<Part *>(states) + c * kParts;
    streams = s.streams && s.y_time == 1 && reinterpret_cast<uintptr_t>(y.base) % 64 == 0;
  }

  // The first phase; false where the products are of no use.
  CONVSCAN_INLINE bool Products(int64_t t, int64_t blocks) {
    LoadBlocks(x, t, blocks, xs);
    LoadBlocks(a, t, blocks, as);
    V unsuitable{};
    for (int64_t b = 0; b < blocks; ++b) {
      // The next blocks come from memory while these are computed.
      x.Prefetch(t + (blocks + b) * kBlock);
      a.Prefetch(t + (blocks + b) * kBlock);
      V p = as[b][0], s = xs[b][0], largest = Magnitude(p);
#pragma GCC unroll 16
      for (int j = 1; j < kN; ++j) {
        const V av = as[b][j], magnitude = Magnitude(av);
        s = MultiplyAdd<Element, kN>(av, s, xs[b][j]);
        p = Multiply<Element, kN>(av, p);
        largest = magnitude > largest ? magnitude : largest;
      }
      // Complex products count by their larger part: at most a factor sqrt 2 a step away from the magnitude.
      V least = Magnitude(p);
      if constexpr (kParts == 2) {
        const V other = SwapParts(least, MakeIndices<kN * kParts>{});
        least = other > least ? other : least;
      }
      const auto is_suitable = (largest <= Part{kLargest}) & (least >= kSmallest<Part>) & (s - s == V{});
      unsuitable = is_suitable ? unsuitable : V{} + Part{1};
      StoreNumbers<Element, kN>(product + b * kN * kParts, p);
      StoreNumbers<Element, kN>(last + b * kN * kParts, s);
    }
    return !AnySet(unsuitable);
  }

  CONVSCAN_INLINE void Outputs(int64_t t, int64_t blocks) {
    V v[kN];
    for (int64_t b = 0; b < blocks; ++b) {
      V s = LoadNumbers<Element, kN>(before + b * kN * kParts);
#pragma GCC unroll 16
      for (int j = 0; j < kN; ++j) v[j] = s = MultiplyAdd<Element, kN>(as[b][j], s, xs[b][j]);
      for (int i = 0; i < kParts; ++i) state[i] = s[(kN - 1) * kParts + i];
      y.Store(t + b * kBlock, v, streams);
    }
  }

  static CONVSCAN_INLINE void LoadBlocks(const Row<Element> &row, int64_t t, int64_t blocks, V (*to)[kN]) {
    if (row.stride == 0) {
      alignas(64) Storage lanes[kN * kParts];
      for (int i = 0; i < kN * kParts; ++i) lanes[i] = row.base[i % kParts];
      const V constant = LoadNumbers<Element, kN>(lanes);
      for (int64_t b = 0; b < blocks; ++b)
        for (int j = 0; j < kN; ++j) to[b][j] = constant;
      return;
    }
    for (int64_t b = 0; b < blocks; ++b) {
      V v[kN];
      row.Load(t + b * kBlock, v);
#pragma GCC unroll 16
      for (int j = 0; j < kN; ++j) to[b][j] = v[j];
    }
  }

  // Steps [t, end) one by one.
  __attribute__((noinline)) void Steps(int64_t t, int64_t end) {
    auto s = LoadNumbers<Element, 1>(state);
    for (; t < end; ++t) {
      s = MultiplyAdd<Element, 1>(LoadNumbers<Element, 1>(a.base + t * a.stride * kParts), s,
                                  LoadNumbers<Element, 1>(x.base + t * x.stride * kParts));
      StoreNumbers<Element, 1>(y.base + t * y.stride * kParts, s);
    }
    StoreNumbers<Element, 1>(state, s);
  }
};

// The state before each segment of several rows.
template <int kRows, class Element>
CONVSCAN_INLINE void Carry(Channel<Element> *rows, int64_t segments) {
  constexpr int kParts = Element::kParts;
  Numbers<Element, 1> c[kRows];
  for (int r = 0; r < kRows; ++r) c[r] = LoadNumbers<Element, 1>(rows[r].state);
  for (int64_t i = 0; i < segments * kParts; i += kParts) {
#pragma GCC unroll 2
    for (int r = 0; r < kRows; ++r) {
      StoreNumbers<Element, 1>(rows[r].before + i, c[r]);
      c[r] = MultiplyAdd<Element, 1>(LoadNumbers<Element, 1>(rows[r].product + i), c[r],
                                     LoadNumbers<Element, 1>(rows[r].last + i));
    }
  }
}

template <int kRows, class Element>
void RunRows(Channel<Element> *rows, int64_t length) {
  using C = Channel<Element>;
  int64_t t = 0;
  if constexpr (C::kN > 1) {
    while (t + C::kBlock <= length) {
      const int64_t blocks = Min(C::kBlocks, (length - t) / C::kBlock), steps = blocks * C::kBlock;
      bool suitable = true;
      for (int r = 0; r < kRows; ++r) suitable &= rows[r].Products(t, blocks);
      if (__builtin_expect(suitable, true)) {
        Carry<kRows>(rows, blocks * C::kN);
        for (int r = 0; r < kRows; ++r) rows[r].Outputs(t, blocks);
      } else {
        for (int r = 0; r < kRows; ++r) rows[r].Steps(t, t + steps);
      }
      t += steps;
    }
  }
  for (int r = 0; r < kRows; ++r) rows[r].Steps(t, length);
}

template <class Element>
void RunSegment(const Segment &s, void *states) {
  Channel<Element> rows[kRowsAtOnce];
  int64_t c = 0;
  for (; c + kRowsAtOnce <= s.channels; c += kRowsAtOnce) {
    for (int r = 0; r < kRowsAtOnce; ++r) rows[r].Bind(s, c + r, states);
    RunRows<kRowsAtOnce>(rows, s.length);
  }
  for (; c < s.channels; ++c) {
    rows[0].Bind(s, c, states);
    RunRows<1>(rows, s.length);
  }
  if (s.streams) StreamFence();
}

}  // namespace

SegmentKernel ParallelSegment(convscan_dtype dtype) {
  return WithElement(dtype, [](auto element) -> SegmentKernel { return RunSegment<decltype(element)>; });
}

convscan_status ScanParallel(const convscan_scan &problem) {
  const convscan_scan p = Forwards(problem);
  const Sequences sequences(p, problem.reverse);
  // Pairs of rows stay together whatever the number of threads: a pair that cannot use products runs step by step.
  constexpr int64_t kWidth = 8;
  const int64_t blocks = CeilDiv(p.channels, kWidth);
  const int threads = p.batch * p.length * p.channels < kSmallProblem ? 1 : p.threads;
  const SegmentKernel kernel = ParallelSegment(p.dtype);
  const bool streams = IsTooLargeForCaches(p);
  ParallelFor(p.batch * blocks, threads, [&](int64_t task) {
    alignas(64) char state[kWidth * 16];
    const int64_t b = task / blocks, c = task % blocks * kWidth, channels = Min(kWidth, p.channels - c);
    RunSteps(p, sequences, kernel, b, 0, p.length, c, channels, streams, state);
  });
  return CONVSCAN_OK;
}

}  // namespace convscan::CONVSCAN_ISA
