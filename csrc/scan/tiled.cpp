// The scan divided over time: threads take tiles in order, and a tile is read twice, the second time from cache.
//
//   first pass    the product p of the tile's coefficients and its last state s when started from zero
//   hand over     the state after the tile, p y + s, from the state y after the tile before it, as soon as that is known
//   second pass   the tile itself, from y
//
// Only the hand-over is sequential, and it costs a multiply-add per channel and tile. It is done whatever the number of
// threads, so that results do not depend on it.
//
// Products are kept in float64. They can underflow where the state's share is lost anyway, but must not overflow while
// the state decays: a tile whose coefficients could multiply anything by more than 2^500 has no first pass. It waits
// for the tile before it and hands over its own last state.
#include <sched.h>

#include "core/kernels.h"
#include "core/parallel.h"
#include "core/workspace.h"
#include "scan/plane.h"
#include "scan/segment.h"

namespace convscan::CONVSCAN_ISA {
namespace {

// Channels of a tile and bytes of one array in it: x and a of a tile fit a quarter of a second-level cache of 512 KiB,
// and the states handed over are at most 1 % of the input.
constexpr int64_t kWidth = 256;
constexpr int64_t kArrayBytes = 65536;

constexpr double kLargestGrowth = 0x1p500;

// Products of coefficients, and of their magnitudes where they exceed one (squared for complex numbers).
struct Products {
  double product[2 * kWidth], growth[2 * kWidth];
};

template <class Element>
struct InDouble {
  using Type = Real<double>;
};
template <class S>
struct InDouble<Complex<S>> {
  using Type = Complex<double>;
};

// `count` rows, U vectors of N channels at a time.
template <int N, int U, class Element>
CONVSCAN_INLINE void ProductColumns(Element, Rows<const typename Element::Storage> a, int64_t count, int64_t channels,
                                    double *product, double *growth, int64_t c = 0) {
  using Double = typename InDouble<Element>::Type;
  constexpr int kParts = Element::kParts, kScalars = N * kParts;
  using V = Vec<double, kScalars>;
  for (; c + N * U <= channels; c += N * U) {
    V p[U], g[U];
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) {
      p[u] = Load<kScalars>(product + c * kParts + u * kScalars);
      g[u] = Load<kScalars>(growth + c * kParts + u * kScalars);
    }
    const typename Element::Storage *row = a.base + c * kParts;
    for (int64_t r = 0; r < count; ++r, row += a.stride) {
#pragma GCC unroll 4
      for (int u = 0; u < U; ++u) {
        const V v = __builtin_convertvector(Load<kScalars>(row + u * kScalars), V);
        V magnitude = v < 0 ? -v : v;
        if constexpr (kParts == 2) magnitude = v * v + SwapParts(v * v, MakeIndices<kScalars>{});
        g[u] *= magnitude <= 1 ? V{} + 1 : magnitude;
        if constexpr (kScalars == 1) {
          p[u] *= v;
        } else {
          p[u] = Multiply<Double, N>(v, p[u]);
        }
      }
    }
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) {
      Store<kScalars>(product + c * kParts + u * kScalars, p[u]);
      Store<kScalars>(growth + c * kParts + u * kScalars, g[u]);
    }
  }
  if constexpr (U > 1) {
    ProductColumns<N, 1>(Element{}, a, count, channels, product, growth, c);
  } else if constexpr (N > 1) {
    if (c < channels) ProductColumns<N / 2, 1>(Element{}, a, count, channels, product, growth, c);
  }
}

// (re, im) *= (factor_re, factor_im), the imaginary parts only where there are any.
CONVSCAN_INLINE void MultiplyBy(double *number, const double *factor, int parts) {
  if (parts == 1) {
    number[0] *= factor[0];
  } else {
    const double re = number[0] * factor[0] - number[1] * factor[1];
    number[1] = number[0] * factor[1] + number[1] * factor[0];
    number[0] = re;
  }
}

// number to the power of count, by squaring.
inline void Power(double *number, int64_t count, int parts) {
  double square[2] = {number[0], parts == 2 ? number[1] : 0};
  number[0] = 1;
  if (parts == 2) number[1] = 0;
  for (; count > 0; count /= 2) {
    if (count % 2 != 0) MultiplyBy(number, square, parts);
    MultiplyBy(square, square, parts);
  }
}

void Reset(Products &result, int64_t channels, int parts) {
  for (int64_t i = 0; i < channels * parts; ++i) {
    result.product[i] = parts == 2 && i % 2 != 0 ? 0 : 1;
    result.growth[i] = 1;
  }
}

// The products of a segment's coefficients; false when one could be too large.
template <class Element>
bool MultiplyAll(const Segment &s, Products &result) {
  using Storage = typename Element::Storage;
  constexpr int kParts = Element::kParts;
  const auto add = [&](const Plane<Element> &plane, int64_t length, int64_t channels) {
    alignas(64) Storage copy[kTileNumbers<Element> * kParts];
    Products folded;
    Reset(folded, channels, kParts);
    ForEachTile<Element>(plane.order, length, channels, [&](const Tile &tile) {
      ProductColumns<kNumbers<typename InDouble<Element>::Type>, 4>(Element{}, RowsToRead(plane, tile, copy), tile.steps, tile.channels,
                         folded.product + tile.c * kParts, folded.growth + tile.c * kParts);
    });
    for (int64_t n = 0; n < channels; ++n) {
      const int64_t at = n % s.channels * kParts;
      MultiplyBy(result.product + at, folded.product + n * kParts, kParts);
      result.growth[at] *= folded.growth[n * kParts];
    }
  };
  // Where steps follow each other without a gap, several of them are one long row: a vector holds more than one step
  // of few channels. The order of a product is free.
  constexpr int64_t kFold = 16;
  const bool folds = s.channels <= kFold && (s.channels == 1 || s.a_channel == 1) &&
                     (s.a_time == s.channels || s.a_time == -s.channels);
  Reset(result, s.channels, kParts);
  if (s.a_time == 0) {
    add(Plane<Element>(s.a, 0, s.a_channel, s.channels), 1, s.channels);
    for (int64_t n = 0; n < s.channels; ++n) {
      Power(result.product + n * kParts, s.length, kParts);
      Power(result.growth + n * kParts, s.length, 1);
    }
  } else if (folds) {
    const int64_t folded = s.length / kFold, first = s.a_time > 0 ? 0 : (1 - folded * kFold) * s.channels;
    const int64_t bytes = static_cast<int64_t>(sizeof(Storage)) * kParts;
    add(Plane<Element>(Advance(s.a, first * bytes), kFold * s.channels, 1, kFold * s.channels), folded,
        kFold * s.channels);
    add(Plane<Element>(Advance(s.a, folded * kFold * s.a_time * bytes), s.a_time, s.a_channel, s.channels),
        s.length - folded * kFold, s.channels);
  } else {
    add(Plane<Element>(s.a, s.a_time, s.a_channel, s.channels), s.length, s.channels);
  }
  bool bounded = true;
  const double largest = kParts == 2 ? kLargestGrowth * kLargestGrowth : kLargestGrowth;
  for (int64_t n = 0; n < s.channels; ++n) bounded &= result.growth[n * kParts] <= largest;
  return bounded;
}

// state = p before + state
template <class Element>
void HandOver(const Products &p, const void *before, void *state, int64_t channels) {
  using Part = typename Element::Part;
  constexpr int kParts = Element::kParts;
  for (int64_t n = 0; n < channels; ++n) {
    double share[2] = {};
    for (int i = 0; i < kParts; ++i) share[i] = static_cast<const Part *>(before)[n * kParts + i];
    MultiplyBy(share, p.product + n * kParts, kParts);
    for (int i = 0; i < kParts; ++i) {
      Part &last = static_cast<Part *>(state)[n * kParts + i];
      last = static_cast<Part>(share[i] + static_cast<double>(last));
    }
  }
}

// Waits until `flag` is set. The tile waited for is in work: threads take tiles in order.
void Await(const int *flag) {
  for (int spins = 0; __atomic_load_n(flag, __ATOMIC_ACQUIRE) == 0; ++spins) {
    if (spins > 4096) {
      sched_yield();
    } else {
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
  }
}

// Few channels run with lanes over time, wherever vectors can be loaded so.
SegmentKernel KernelOf(const convscan_scan &p) {
  const bool pays = p.channels == 1 || p.x_strides.time == 1 ||
                    (p.x_strides.channel == 1 && p.x_strides.time == p.channels &&
                     (p.channels & (p.channels - 1)) == 0);
  return pays && 2 * p.channels * ComputeBytes(p.dtype) <= kVectorBytes ? ParallelSegment(p.dtype)
                                                                         : SequentialSegment(p.dtype);
}

}  // namespace

convscan_status ScanTiled(const convscan_scan &problem) {
  const convscan_scan p = Forwards(problem);
  const int64_t number = ComputeBytes(p.dtype), width = Min(p.channels, kWidth);
  const int64_t steps = Max(1, kArrayBytes / StorageBytes(p.dtype) / width);
  const int64_t tiles = CeilDiv(p.length, steps), blocks = CeilDiv(p.channels, width);
  const int64_t units = p.batch * blocks * tiles, state_bytes = width * number;
  int threads = p.batch * p.length * p.channels < kSmallProblem ? 1 : p.threads;
  if (threads <= 0) threads = ThreadCount();

  // The states after every tile, and whether they are there.
  char *states = static_cast<char *>(Workspace(static_cast<size_t>(units * (state_bytes + 4))));
  if (states == nullptr) return CONVSCAN_OUT_OF_MEMORY;
  int *ready = reinterpret_cast<int *>(states + units * state_bytes);
  __builtin_memset(ready, 0, static_cast<size_t>(units) * sizeof(int));

  const SegmentKernel kernel = KernelOf(p);
  const auto run = [&](int64_t unit) {
    alignas(64) char state[kWidth * 16];
    Products products;
    const int64_t tile = unit % tiles, block = unit / tiles % blocks, b = unit / tiles / blocks;
    const int64_t c = block * width, channels = Min(width, p.channels - c);
    const int64_t t = tile * steps, length = Min(steps, p.length - t);
    const bool first = tile == 0, last = tile == tiles - 1;
    const Segment segment = Cut(p, b, t, length, c, channels);
    char *after = states + unit * state_bytes;
    const char *before = after - state_bytes;
    const size_t bytes = static_cast<size_t>(channels * number);
    const auto publish = [&] {
      __builtin_memcpy(after, state, bytes);
      __atomic_store_n(ready + unit, 1, __ATOMIC_RELEASE);
    };

    const bool has_first_pass =
        !first && !last &&
        WithElement(p.dtype, [&](auto element) { return MultiplyAll<decltype(element)>(segment, products); });
    if (has_first_pass) {
      Segment unstored = segment;
      unstored.y = nullptr;
      __builtin_memset(state, 0, bytes);
      kernel(unstored, state);
    }
    if (first) {
      LoadInitialState(p, b, c, channels, state);
    } else {
      Await(ready + unit - 1);
      if (has_first_pass) {
        WithElement(p.dtype,
                    [&](auto element) { HandOver<decltype(element)>(products, before, state, channels); });
        publish();
      }
      __builtin_memcpy(state, before, bytes);
    }
    kernel(segment, state);
    if (!has_first_pass) publish();
  };
  int64_t next = 0;
  ParallelFor(Min(threads, units), threads, [&](int64_t) {
    for (int64_t unit; (unit = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED)) < units;) run(unit);
  });
  return CONVSCAN_OK;
}

}  // namespace convscan::CONVSCAN_ISA
