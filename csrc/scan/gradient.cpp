// The gradients of the scan in one pass from its end to its beginning:
//
//   g[t] = dy[t] + c[t],   c[t-1] = conj(a[t]) g[t],   dx[t] = g[t],   da[t] = g[t] conj(y[t-1]),   dy_init = c[-1]
//
// The state is c, not g, so that every step reads a, y and dy at its own place only. Of packed sequences every one
// starts from c = 0 and leaves its own dy_init. Where a is shared over time,
// channels or the batch, da is summed as it is made, in float64, in an order that depends on the sizes alone: what is
// summed together is done by one task.
#include "core/kernels.h"
#include "core/parallel.h"
#include "core/workspace.h"
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

// What the kernel reads and writes of one tile. The gradient of a is stored like a, or as computed when it is summed.
template <class Element, class Gradient>
struct GradientRows {
  Rows<const typename Element::Storage> dy, a, y;
  Rows<typename Element::Storage> dx;
  Rows<Gradient> da;
};

// `count` rows of N channels at a time, from channel c on.
template <int N, bool kGradient, class Element, class Gradient>
CONVSCAN_INLINE void GradientColumns(const GradientRows<Element, Gradient> &rows, int64_t count, int64_t c,
                                     int64_t channels, typename Element::Part *state) {
  constexpr int kParts = Element::kParts;
  for (; c + N <= channels; c += N) {
    Numbers<Element, N> carried = LoadNumbers<Element, N>(state + c * kParts);
    int64_t dy = c * kParts, a = dy, y = dy, dx = dy, da = dy;
    for (int64_t r = 0; r < count; ++r) {
      const Numbers<Element, N> g = LoadNumbers<Element, N>(rows.dy.base + dy) + carried;
      StoreNumbers<Element, N>(rows.dx.base + dx, g);
      carried = ConjugateMultiply<Element, N>(LoadNumbers<Element, N>(rows.a.base + a), g);
      if constexpr (kGradient) {
        const Numbers<Element, N> before = LoadNumbers<Element, N>(rows.y.base + y);
        StoreNumbers<Element, N>(rows.da.base + da, ConjugateMultiply<Element, N>(before, g));
        y += rows.y.stride;
        da += rows.da.stride;
      }
      dy += rows.dy.stride;
      a += rows.a.stride;
      dx += rows.dx.stride;
    }
    StoreNumbers<Element, N>(state + c * kParts, carried);
  }
  if constexpr (N > 1) {
    if (c < channels) GradientColumns<N / 2, kGradient>(rows, count, c, channels, state);
  }
}

template <class Element>
struct GradientPlanes {
  // Time runs as the gradient does; y is one step late already.
  Plane<Element> dy, a, y, dx, da;
};

// One tile, with `y` read from y_rows where they are given.
template <class Element>
void GradientTile(const GradientPlanes<Element> &p, const Sums &sums, const Tile &tile,
                  const Rows<const typename Element::Storage> *y_rows, typename Element::Part *state) {
  using Storage = typename Element::Storage;
  using Part = typename Element::Part;
  constexpr int kN = kNumbers<Element>, kParts = Element::kParts;
  constexpr int64_t kScalars = kTileNumbers<Element> * kParts;
  alignas(64) Storage copies[4][kScalars];
  alignas(64) Part da_copy[kScalars];
  const int64_t stride = tile.channels * kParts;
  state += tile.c * kParts;
  const Rows<const Storage> dy = RowsToRead(p.dy, tile, copies[0]), a = RowsToRead(p.a, tile, copies[1]);
  const Rows<Storage> dx = RowsToWrite(p.dx, tile, copies[2]);
  if (p.da.base == nullptr) {
    GradientColumns<kN, false>(GradientRows<Element, Storage>{dy, a, {}, dx, {}}, tile.steps, 0, tile.channels, state);
  } else {
    const Rows<const Storage> y = y_rows != nullptr ? *y_rows : RowsToRead(p.y, tile, copies[3]);
    if (sums.entries != nullptr) {
      GradientColumns<kN, true>(GradientRows<Element, Part>{dy, a, y, dx, {da_copy, stride}}, tile.steps, 0,
                                tile.channels, state);
      AddToSums(sums, tile, kParts, da_copy);
    } else {
      // A half type's copy lies in the same memory as a full one's would.
      auto *copy = reinterpret_cast<Storage *>(da_copy);
      GradientColumns<kN, true>(GradientRows<Element, Storage>{dy, a, y, dx, RowsToWrite(p.da, tile, copy)}, tile.steps,
                                0, tile.channels, state);
      PutRows(p.da, tile, copy);
    }
  }
  PutRows(p.dx, tile, copies[2]);
}

// The gradients of batch entry b, channels [c, c + channels), steps [t, end) as the gradient counts them, which belong to
// sequence s.
template <class Element>
void RunGradient(const convscan_scan_gradient &problem, const Sequences &sequences, int64_t s, int64_t b, int64_t t,
                 int64_t end, int64_t c, int64_t channels, const Sums &sums, typename Element::Part *state) {
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
  const GradientPlanes<Element> p = {plane(problem.dy, problem.dy_strides, 0), plane(f.a, f.a_strides, 0),
                                     plane(f.y, f.y_strides, 1), plane(problem.dx, problem.dx_strides, 0),
                                     plane(problem.da, problem.da_strides, 0)};
  const int64_t last = Min(end, sequences.End(s) - 1);
  ForEachTile<Element>(p.dy.order, last - t, channels, [&](Tile tile) {
    tile.t += t;
    GradientTile(p, sums, tile, nullptr, state);
  });
  if (last == end) return;
  // The first step of the sequence, whose y[t-1] is y_init.
  alignas(64) Storage before[kTileNumbers<Element> * Element::kParts];
  const Rows<const Storage> y_rows = {before, 0};
  ForEachTile<Element>(Order::channel, 1, channels, [&](Tile tile) {
    tile.t = last;
    if (f.y_init == nullptr) {
      __builtin_memset(before, 0, sizeof(before));
    } else {
      const int64_t at = b * f.y_init_batch_stride + sequences.Index(s) * f.y_init_sequence_stride;
      const Plane<Element> y_init(Advance(f.y_init, bytes * at), 0, f.y_init_channel_stride, 0);
      MoveTile<true>(y_init, {0, c + tile.c, 1, tile.channels}, before);
    }
    GradientTile(p, sums, tile, &y_rows, state);
  });
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

// Writes what a sequence passes on to its initial state.
template <class Element>
void StoreInitialGradient(const convscan_scan_gradient &problem, int64_t b, int64_t sequence, int64_t c,
                          int64_t channels, const typename Element::Part *state) {
  if (problem.dy_init == nullptr) return;
  constexpr int kParts = Element::kParts;
  auto *dy_init = static_cast<typename Element::Storage *>(problem.dy_init) +
                  (b * problem.dy_init_batch_stride + sequence * problem.dy_init_sequence_stride) * kParts;
  for (int64_t n = 0; n < channels; ++n)
    for (int i = 0; i < kParts; ++i)
      StoreScalar(dy_init + (c + n) * problem.dy_init_channel_stride * kParts + i, state[n * kParts + i]);
}

// Channels of a block, and steps of a chunk of time where da is summed but not over time: sums of a chunk take at most
// 64 * 64 * 16 bytes, the second-level cache's share of a task.
constexpr int64_t kStateBytes = 8192;
constexpr int64_t kSumChannels = 64, kSumSteps = 64;

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
          if (begin < stop) RunGradient<Element>(problem, sequences, s, b + i, begin, stop, c, channels, sums, carried);
          if (stop != sequences.End(s)) break;
          StoreInitialGradient<Element>(problem, b + i, sequences.Index(s), c, channels, carried);
          __builtin_memset(carried, 0, sizeof(Part) * static_cast<size_t>(kParts * width));
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
  return WithElement(problem.forward.dtype,
                     [&](auto element) { return Gradient<decltype(element)>(problem); });
}

}  // namespace convscan::CONVSCAN_ISA
