// The gradients of the scan in one pass from its end to its beginning:
//
//   g[t] = dy[t] + conj(a[t+1]) g[t+1],   dx[t] = g[t],   da[t] = g[t] conj(y[t-1]),   dy_init = conj(a[0]) g[0]
//
// It is the scan of dy the other way round, with coefficients one step late. Of packed sequences every one starts anew and
// leaves its own dy_init. Where a is shared over time, channels or the batch, da is summed as it is made, in float64, in an
// order that depends on the sizes alone: what is summed together is done by one task.
//
// Here lanes are channels, and da is made while g is in registers. Arrays along time take the way of
// gradient_along_time.cpp.
#include "core/kernels.h"
#include "core/parallel.h"
#include "core/workspace.h"
#include "scan/gradient.h"
#include "scan/plane.h"
#include "scan/segment.h"

namespace convscan::CONVSCAN_ISA {
namespace {

// Sums of da over some of its axes: entries (step, channel) of a chunk of time, those of a summed axis all the same.
struct Sums {
  double *entries = nullptr;  // null: da is not summed
  int64_t first = 0;          // step of the first entry
  int64_t step = 0, channel = 0;
};

// Adds a tile of da, in rows of tile.channels numbers.
template <class Part>
void AddToSums(const Sums &sums, const Tile &tile, int parts, const Part *row) {
  for (int64_t r = 0; r < tile.steps; ++r, row += tile.channels * parts) {
    double *entry = sums.entries + ((tile.t + r - sums.first) * sums.step + tile.c * sums.channel) * parts;
    if (sums.channel != 0) {
      for (int64_t i = 0; i < tile.channels * parts; ++i) entry[i] += static_cast<double>(row[i]);
    } else {
      for (int64_t i = 0; i < tile.channels * parts; i += parts)
        for (int part = 0; part < parts; ++part) entry[part] += static_cast<double>(row[i + part]);
    }
  }
}

// What becomes of the gradient of a.
enum class Da { none, stored, summed };

// What the kernel reads and writes of some steps. `a` is the coefficients one step late, `before` the outputs that a
// multiplies. The gradient of a is stored like a, or as computed when it is summed by tiles.
template <class Element, class Gradient>
struct GradientRows {
  Rows<const typename Element::Storage> dy, a, before;
  Rows<typename Element::Storage> dx;
  Rows<Gradient> da;
  double *sums;  // of every channel, where da is summed over time as it is made
};

// Adds to sums in double precision.
template <class Part, int W, int... I>
CONVSCAN_INLINE void AddWide(double *sums, Vec<Part, W> v, Indices<I...>) {
  if constexpr (W > kLanes<double>) {  // a register's worth of doubles at a time
    constexpr MakeIndices<W / 2> kHalf{};
    AddWide<Part, W / 2>(sums, __builtin_shufflevector(v, v, I...), kHalf);
    AddWide<Part, W / 2>(sums + W / 2, __builtin_shufflevector(v, v, (I + W / 2)...), kHalf);
  } else {
    Store<W>(sums, Load<W>(sums) + __builtin_convertvector(v, Vec<double, W>));
  }
}

// `count` rows, U vectors of N channels at a time, from channel c on. kFirst: nothing comes before them, count is 1.
template <int N, int U, Da kDa, bool kFirst, bool kStream, class Element, class Gradient>
CONVSCAN_INLINE void GradientColumns(const GradientRows<Element, Gradient> &rows, int64_t count, int64_t c,
                                     int64_t channels, typename Element::Part *state) {
  using Storage = typename Element::Storage;
  using Conjugate = typename ConjugateOf<Element>::Type;
  using Part = typename Element::Part;
  constexpr int kParts = Element::kParts, kScalars = N * kParts;
  constexpr int kLine = 64 / static_cast<int>(sizeof(Storage));
  for (; c + N * U <= channels; c += N * U) {
    Numbers<Element, N> g[U];
    if constexpr (!kFirst)
      Repeat<U>([&](int u) CONVSCAN_INLINED { g[u] = LoadNumbers<Element, N>(state + c * kParts + u * kScalars); });
    const Storage *dy = rows.dy.base + c * kParts, *a = rows.a.base + c * kParts, *before = rows.before.base + c * kParts;
    Storage *dx = rows.dx.base + c * kParts;
    Gradient *da = rows.da.base + c * kParts;
    for (int64_t r = 0; r < count; ++r) {
      if constexpr (U * kScalars >= kLine) {
        Repeat<U * kScalars / kLine>([&](int line) CONVSCAN_INLINED {
          __builtin_prefetch(dy + kRowsAhead * rows.dy.stride + line * kLine);
          if (!kFirst) __builtin_prefetch(a + kRowsAhead * rows.a.stride + line * kLine);
          if (kDa != Da::none) __builtin_prefetch(before + kRowsAhead * rows.before.stride + line * kLine);
        });
      }
      Repeat<U>([&](int u) CONVSCAN_INLINED {
        const int at = u * kScalars;
        if constexpr (kFirst) {
          g[u] = LoadNumbers<Element, N>(dy + at);
        } else {
          g[u] = MultiplyAdd<Conjugate, N>(LoadNumbers<Element, N>(a + at), g[u], LoadNumbers<Element, N>(dy + at));
        }
        StoreNumbers<Element, N>(dx + at, g[u], kStream);
        if constexpr (kDa != Da::none) {
          const auto product = ConjugateMultiply<Element, N>(LoadNumbers<Element, N>(before + at), g[u]);
          if constexpr (kDa == Da::summed && kScalars > 1) {
            AddWide<Part, kScalars>(rows.sums + c * kParts + at, product, MakeIndices<kScalars / 2>{});
          } else if constexpr (kDa == Da::summed) {
            rows.sums[c + at] += static_cast<double>(product);
          } else {
            StoreNumbers<Element, N>(da + at, product, kStream);
          }
        }
      });
      dy += rows.dy.stride;
      dx += rows.dx.stride;
      if constexpr (!kFirst) a += rows.a.stride;
      if constexpr (kDa != Da::none) before += rows.before.stride;
      if constexpr (kDa == Da::stored) da += rows.da.stride;
    }
    Repeat<U>([&](int u) CONVSCAN_INLINED { StoreNumbers<Element, N>(state + c * kParts + u * kScalars, g[u]); });
  }
  if constexpr (U > 1) {
    GradientColumns<N, 1, kDa, kFirst, false>(rows, count, c, channels, state);
  } else if constexpr (N > 1) {
    if (c < channels) GradientColumns<N / 2, 1, kDa, kFirst, false>(rows, count, c, channels, state);
  }
}

// Steps of all channels at hand.
template <Da kDa, class Element, class Gradient>
__attribute__((noinline)) void GradientSteps(const GradientRows<Element, Gradient> &rows, bool is_first, bool streams,
                                             int64_t count, int64_t channels, typename Element::Part *state) {
  constexpr int kN = kNumbers<Element>, kLine = kVectorBytes < 64 ? 64 / kVectorBytes : 1;
  if (is_first) return GradientColumns<kN, 1, kDa, true, false>(rows, count, 0, channels, state);
  if (streams) return GradientColumns<kN, kLine, kDa, false, true>(rows, count, 0, channels, state);
  // Four vectors at least, since every one waits for its step before.
  GradientColumns<kN, 4, kDa, false, false>(rows, count, 0, channels, state);
}

// Time runs as the gradient does; a is one step late already, and y one early.
template <class Element>
struct GradientPlanes {
  Plane<Element> dy, a, before, dx, da;

  bool AreRows(bool is_summed) const {
    const auto is_row = [](const Plane<Element> &plane) { return plane.base == nullptr || plane.order == Order::channel; };
    return is_row(dy) && is_row(a) && is_row(dx) && (da.base == nullptr || (is_row(before) && (is_summed || is_row(da))));
  }
};

// One tile, with `before` read from the rows that are given, if any.
template <class Element>
void GradientTile(const GradientPlanes<Element> &p, const Sums &sums, const Tile &tile, bool is_first,
                  const Rows<const typename Element::Storage> *given, typename Element::Part *state) {
  using Storage = typename Element::Storage;
  using Part = typename Element::Part;
  constexpr int kParts = Element::kParts;
  constexpr int64_t kScalars = kTileNumbers<Element> * kParts;
  alignas(64) Storage copies[4][kScalars];
  alignas(64) Part da_copy[kScalars];
  const int64_t stride = tile.channels * kParts;
  state += tile.c * kParts;
  const Rows<const Storage> dy = RowsToRead(p.dy, tile, copies[0]);
  const Rows<const Storage> a = is_first ? Rows<const Storage>{nullptr, 0} : RowsToRead(p.a, tile, copies[1]);
  const Rows<Storage> dx = RowsToWrite(p.dx, tile, copies[2]);
  if (p.da.base == nullptr) {
    GradientSteps<Da::none>(GradientRows<Element, Storage>{dy, a, {}, dx, {}, nullptr}, is_first, false, tile.steps,
                            tile.channels, state);
  } else {
    const Rows<const Storage> before = given != nullptr ? *given : RowsToRead(p.before, tile, copies[3]);
    if (sums.entries != nullptr) {
      GradientSteps<Da::stored>(GradientRows<Element, Part>{dy, a, before, dx, {da_copy, stride}, nullptr}, is_first, false,
                                tile.steps, tile.channels, state);
      AddToSums(sums, tile, kParts, da_copy);
    } else {
      // A half type's copy lies in the same memory as a full one's would.
      auto *copy = reinterpret_cast<Storage *>(da_copy);
      GradientSteps<Da::stored>(
          GradientRows<Element, Storage>{dy, a, before, dx, RowsToWrite(p.da, tile, copy), nullptr}, is_first, false,
          tile.steps, tile.channels, state);
      PutRows(p.da, tile, copy);
    }
  }
  PutRows(p.dx, tile, copies[2]);
}

// Steps [t, end) of all channels at hand where all arrays are rows. kRows of them at once, more where they are short.
template <class Element>
void GradientOfRows(const GradientPlanes<Element> &p, const Sums &sums, int64_t t, int64_t end, int64_t channels,
                    bool is_first, bool streams, const Rows<const typename Element::Storage> *given,
                    typename Element::Part *state) {
  using Storage = typename Element::Storage;
  const int64_t rows = is_first ? 1 : streams ? 4 : Max(2, 1024 / channels);
  for (; t < end; t += rows) {
    const auto at = [&](const Plane<Element> &plane) -> Rows<Storage> {
      return plane.base == nullptr ? Rows<Storage>{nullptr, 0} : Rows<Storage>{plane.At(t, 0), plane.time};
    };
    const auto read = [&](const Plane<Element> &plane) -> Rows<const Storage> {
      const Rows<Storage> found = at(plane);
      return {found.base, found.stride};
    };
    const GradientRows<Element, Storage> arrays = {
        read(p.dy), read(p.a), given != nullptr ? *given : read(p.before), at(p.dx), at(p.da), sums.entries};
    const int64_t count = Min(rows, end - t);
    if (p.da.base == nullptr) {
      GradientSteps<Da::none>(arrays, is_first, streams, count, channels, state);
    } else if (sums.entries != nullptr) {
      GradientSteps<Da::summed>(arrays, is_first, streams, count, channels, state);
    } else {
      GradientSteps<Da::stored>(arrays, is_first, streams, count, channels, state);
    }
  }
  if (streams) StreamFence();
}

// The gradients of batch entry b, channels [c, c + channels), steps [t, end) as the gradient counts them, which belong to
// sequence s.
template <class Element>
void RunGradient(const convscan_scan_gradient &problem, const Sequences &sequences, int64_t s, int64_t b, int64_t t,
                 int64_t end, int64_t c, int64_t channels, const Sums &sums, bool streams,
                 typename Element::Part *state) {
  using Storage = typename Element::Storage;
  const convscan_scan &f = problem.forward;
  const int64_t bytes = StorageBytes(f.dtype);
  const auto plane = [&](const void *address, const convscan_strides &by, int64_t late) -> Plane<Element> {
    if (address == nullptr) return {};
    const int64_t direction = f.reverse ? 1 : -1;
    const int64_t start = (f.reverse ? 0 : f.length - 1) + late * direction;
    return {Advance(address, bytes * (b * by.batch + start * by.time + c * by.channel)), direction * by.time,
            by.channel, channels};
  };
  const GradientPlanes<Element> p = {plane(problem.dy, problem.dy_strides, 0), plane(f.a, f.a_strides, -1),
                                     plane(f.y, f.y_strides, 1), plane(problem.dx, problem.dx_strides, 0),
                                     plane(problem.da, problem.da_strides, 0)};
  // Sums over time alone are made with the rows; others by tiles.
  const bool are_rows = p.AreRows(sums.entries != nullptr) &&
                        (sums.entries == nullptr || (sums.step == 0 && sums.channel == 1));
  const auto run = [&](int64_t first, int64_t stop, bool is_first, const Rows<const Storage> *given) {
    if (first >= stop) return;
    if (are_rows) return GradientOfRows(p, sums, first, stop, channels, is_first, streams, given, state);
    ForEachTile<Element>(p.dy.order, stop - first, channels, [&](Tile tile) {
      tile.t += first;
      Rows<const Storage> part{};
      if (given != nullptr) part = {given->base + tile.c * Element::kParts, 0};
      GradientTile(p, sums, tile, is_first, given == nullptr ? nullptr : &part, state);
    });
  };
  // By themselves: the step that nothing comes before, and the one whose y[t-1] is y_init.
  const int64_t first = t == sequences.Begin(s) ? t + 1 : t, last = Min(end, sequences.End(s) - 1);
  if (t < Min(first, last)) run(t, t + 1, true, nullptr);
  run(first, last, false, nullptr);
  if (last == end) return;
  constexpr int64_t kGiven = kTileNumbers<Element>;
  alignas(64) Storage before[kGiven * Element::kParts];
  for (int64_t from = 0; from < channels; from += kGiven) {
    // Few enough for the copy; channels are independent.
    const int64_t count = Min(kGiven, channels - from);
    if (f.y_init == nullptr) {
      __builtin_memset(before, 0, sizeof(before));
    } else {
      const int64_t at = b * f.y_init_batch_stride + sequences.Index(s) * f.y_init_sequence_stride;
      const Plane<Element> y_init(Advance(f.y_init, bytes * at), 0, f.y_init_channel_stride, 0);
      MoveTile<true>(y_init, {0, c + from, 1, count}, before);
    }
    const Rows<const Storage> given = {before, 0};
    GradientTile(p, sums, Tile{last, from, 1, count}, last < first, &given, state);
  }
}

// Writes the sums of `steps` steps from t on, as the gradient counts them.
template <class Element>
void StoreSums(const convscan_scan_gradient &problem, int64_t b, int64_t t, int64_t steps, int64_t c,
               int64_t channels, const Sums &sums) {
  const convscan_scan &f = problem.forward;
  constexpr int kParts = Element::kParts;
  auto *da = static_cast<typename Element::Storage *>(problem.da);
  for (int64_t s = 0; s < steps; ++s) {
    const int64_t at = f.reverse ? t + s : f.length - 1 - t - s;
    for (int64_t n = 0; n < channels; ++n)
      for (int i = 0; i < kParts; ++i)
        StoreScalar(da + (b * problem.da_strides.batch + at * problem.da_strides.time +
                          (c + n) * problem.da_strides.channel) * kParts + i,
                    static_cast<typename Element::Part>(
                        sums.entries[(s * sums.step + n * sums.channel) * kParts + i]));
  }
}

// Writes what a sequence passes on to its initial state: conj(a) g of its last step as the gradient counts them, step t, or
// nothing if it has none.
template <class Element>
void StoreInitialGradient(const convscan_scan_gradient &problem, int64_t b, int64_t sequence, int64_t t, bool has_steps,
                          int64_t c, int64_t channels, const typename Element::Part *state) {
  if (problem.dy_init == nullptr) return;
  constexpr int kParts = Element::kParts;
  using Storage = typename Element::Storage;
  using Conjugate = typename ConjugateOf<Element>::Type;
  const convscan_scan &f = problem.forward;
  auto *dy_init = static_cast<Storage *>(problem.dy_init) +
                  (b * problem.dy_init_batch_stride + sequence * problem.dy_init_sequence_stride) * kParts;
  const int64_t step = f.reverse ? t : f.length - 1 - t;
  const auto *a = static_cast<const Storage *>(f.a) + (b * f.a_strides.batch + step * f.a_strides.time) * kParts;
  for (int64_t n = 0; n < channels; ++n) {
    Numbers<Element, 1> passed{};
    if (has_steps)
      passed = MultiplyAdd<Conjugate, 1>(LoadNumbers<Element, 1>(a + (c + n) * f.a_strides.channel * kParts),
                                         LoadNumbers<Element, 1>(state + n * kParts), passed);
    StoreNumbers<Element, 1>(dy_init + (c + n) * problem.dy_init_channel_stride * kParts, passed);
  }
}

// Channels of a block, and steps of a chunk of time where da is summed but not over time: sums of a chunk take at most
// 64 * 64 * 16 bytes, the second-level cache's share of a task.
constexpr int64_t kStateBytes = 8192;
constexpr int64_t kSumChannels = 64, kSumSteps = 64;

// Whether dx and da are more than the caches hold, and rows of whole cache lines.
bool StoresMayStream(const convscan_scan_gradient &p, bool is_summed) {
  const int64_t bytes = StorageBytes(p.forward.dtype);
  const auto is_whole = [=](const void *address, const convscan_strides &s) {
    return reinterpret_cast<uintptr_t>(address) % kBlockBytes == 0 && s.channel == 1 && s.time * bytes % 64 == 0 &&
           s.batch * bytes % 64 == 0;
  };
  return p.dx != p.dy && IsTooLargeForCaches(p.forward, p.da == nullptr ? 3 : is_summed ? 4 : 5) &&
         is_whole(p.dx, p.dx_strides) && (p.da == nullptr || is_summed || is_whole(p.da, p.da_strides));
}

template <class Element>
convscan_status Gradient(const convscan_scan_gradient &problem) {
  using Part = typename Element::Part;
  constexpr int kParts = Element::kParts;
  const convscan_scan &f = problem.forward;
  const bool sums_batch = problem.da != nullptr && problem.da_strides.batch == 0 && f.batch > 1;
  const bool sums_channels = problem.da != nullptr && problem.da_strides.channel == 0 && f.channels > 1;
  const bool sums_time = problem.da != nullptr && problem.da_strides.time == 0 && f.length != 1;
  const bool is_summed = sums_batch || sums_channels || sums_time;

  const int64_t elements = f.batch * f.length * f.channels;
  const int threads = elements < kSmallProblem ? 1 : f.threads;
  // Tasks divide what is not summed together.
  const int64_t line = 64 / static_cast<int64_t>(sizeof(typename Element::Storage)) / kParts;
  int64_t width = f.channels;
  if (!sums_channels) {
    const int64_t workers = threads > 0 ? threads : ThreadCount();
    const int64_t wanted = Max(1, CeilDiv(workers, sums_batch ? 1 : f.batch));
    const int64_t widest =
        is_summed && !sums_time ? kSumChannels : kStateBytes / static_cast<int64_t>(sizeof(Part) * kParts);
    width = Min(widest, CeilDiv(CeilDiv(f.channels, wanted), line) * line);
  }
  const int64_t groups = CeilDiv(f.channels, width);
  const int64_t group_batch = sums_batch ? f.batch : 1;
  const int64_t chunk = is_summed && !sums_time ? kSumSteps : Max(1, f.length);

  const int64_t sum_steps = sums_time ? 1 : chunk, sum_channels = sums_channels ? 1 : width;
  const size_t sum_bytes = is_summed ? sizeof(double) * static_cast<size_t>(kParts * sum_steps * sum_channels) : 0;
  const size_t state_bytes = sizeof(Part) * static_cast<size_t>(kParts * group_batch * width);
  const Sequences sequences(f, !f.reverse);
  const bool streams = StoresMayStream(problem, is_summed);
  bool failed = false;
  ParallelFor(f.batch / group_batch * groups, threads, [&](int64_t task) {
    auto *memory = static_cast<char *>(Workspace(sum_bytes + state_bytes));
    if (memory == nullptr) {
      __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
      return;
    }
    const int64_t b = task / groups * group_batch, c = task % groups * width, channels = Min(width, f.channels - c);
    auto *state = reinterpret_cast<Part *>(memory + sum_bytes);
    Sums sums;
    if (is_summed)
      sums = {reinterpret_cast<double *>(memory), 0, sums_time ? 0 : sum_channels, sums_channels ? 0 : 1};
    __builtin_memset(memory, 0, sum_bytes + state_bytes);
    int64_t first = 0;  // of the sequences that are not finished
    for (int64_t t = 0; t == 0 || t < f.length; t += chunk) {
      const int64_t end = Min(t + chunk, f.length);
      sums.first = t;
      int64_t s = first;
      for (int64_t i = 0; i < group_batch; ++i) {
        Part *const carried = state + i * width * kParts;
        for (s = first; s < sequences.count; ++s) {
          const int64_t begin = Max(t, sequences.Begin(s)), stop = Min(end, sequences.End(s));
          if (begin < stop)
            RunGradient<Element>(problem, sequences, s, b + i, begin, stop, c, channels, sums, streams, carried);
          if (stop != sequences.End(s)) break;
          StoreInitialGradient<Element>(problem, b + i, sequences.Index(s), stop - 1, sequences.Begin(s) < stop, c,
                                        channels, carried);
        }
      }
      first = s;
      if (is_summed && !sums_time) {
        StoreSums<Element>(problem, b, t, end - t, c, Min(channels, sum_channels), sums);
        __builtin_memset(memory, 0, sum_bytes);
      }
    }
    if (sums_time) StoreSums<Element>(problem, b, 0, 1, c, Min(channels, sum_channels), sums);
  });
  return failed ? CONVSCAN_OUT_OF_MEMORY : CONVSCAN_OK;
}

}  // namespace

convscan_status ScanGradientSequential(const convscan_scan_gradient &problem) {
  if (GradientRunsAlongTime(problem)) return ScanGradientAlongTime(problem);
  return WithElement(problem.forward.dtype,
                     [&](auto element) { return Gradient<decltype(element)>(problem); });
}

}  // namespace convscan::CONVSCAN_ISA
