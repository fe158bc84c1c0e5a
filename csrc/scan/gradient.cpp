// The gradients of the scan in one pass from its end to its beginning:
//
//   g[t] = dy[t] + c[t],   c[t-1] = conj(a[t]) g[t],   dx[t] = g[t],   da[t] = g[t] conj(y[t-1]),   dy_init = c[-1]
//
// The state is c, not g, so that every step reads a, y and dy at its own place only. Where a is shared over time,
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

template <class Element>
struct GradientPlanes {
  // Time runs as the gradient does; y is one step late already.
  Plane<Element> dy, a, y, dx, da;
  Sums sums;
};

template <int N, int R, class Element>
CONVSCAN_INLINE void AddToSums(const Sums &sums, int64_t t, int64_t c, const Numbers<Element, N> (&v)[R]) {
  constexpr int kParts = Element::kParts;
  double *entry = sums.entries + ((t - sums.first) * sums.step + c * sums.channel) * kParts;
  if (sums.channel != 0 && sums.step == 0) {
    Numbers<Element, N> total = v[0];
#pragma GCC unroll 16
    for (int r = 1; r < R; ++r) total += v[r];
    Store<N * kParts>(entry, Load<N * kParts>(entry) + __builtin_convertvector(total, Vec<double, N * kParts>));
    return;
  }
  for (int r = 0; r < R; ++r, entry += sums.step * kParts) {
    if (sums.channel != 0) {
      Store<N * kParts>(entry, Load<N * kParts>(entry) + __builtin_convertvector(v[r], Vec<double, N * kParts>));
    } else {
      for (int i = 0; i < N * kParts; ++i) entry[i % kParts] += v[r][i];
    }
  }
}

// Steps [t, t + R) of N channels; y_before replaces what is read of y where it is given.
template <int N, int R, class Element>
CONVSCAN_INLINE Numbers<Element, N> GradientTile(const GradientPlanes<Element> &p, int64_t t, int64_t c,
                                                 Numbers<Element, N> carried,
                                                 const Numbers<Element, N> *y_before = nullptr) {
  Numbers<Element, N> g[R], a[R];
  LoadTile<N, R>(p.dy, t, c, g);
  LoadTile<N, R>(p.a, t, c, a);
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    g[r] += carried;
    carried = ConjugateMultiply<Element, N>(a[r], g[r]);
  }
  StoreTile<N, R>(p.dx, t, c, g);
  if (p.da.base == nullptr) return carried;
  if (y_before != nullptr) {
    a[0] = *y_before;
  } else {
    LoadTile<N, R>(p.y, t, c, a);
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) g[r] = ConjugateMultiply<Element, N>(a[r], g[r]);
  if (p.sums.entries != nullptr) {
    AddToSums<N, R, Element>(p.sums, t, c, g);
  } else {
    StoreTile<N, R>(p.da, t, c, g);
  }
  return carried;
}

// Steps [t, end) of channels [c, channels), R at a time.
template <int N, int R, class Element>
CONVSCAN_INLINE void GradientTiles(const GradientPlanes<Element> &p, int64_t t, int64_t end, int64_t c,
                                   int64_t channels, typename Element::Part *state) {
  constexpr int kParts = Element::kParts;
  for (; c + N <= channels; c += N) {
    Numbers<Element, N> carried = Load<N * kParts>(state + c * kParts);
    int64_t step = t;
    for (; step + R <= end; step += R) carried = GradientTile<N, R>(p, step, c, carried);
    for (; step < end; ++step) carried = GradientTile<N, 1>(p, step, c, carried);
    Store<N * kParts>(state + c * kParts, carried);
  }
  if constexpr (N > 1) {
    if (c < channels) GradientTiles<N / 2, kTileSteps<N / 2>>(p, t, end, c, channels, state);
  }
}

// The last step, whose y[t-1] is y_init.
template <int N, class Element>
CONVSCAN_INLINE void FirstStepGradient(const GradientPlanes<Element> &p, int64_t t, int64_t c, int64_t channels,
                                       const Plane<Element> &y_init, typename Element::Part *state) {
  constexpr int kParts = Element::kParts;
  for (; c + N <= channels; c += N) {
    Numbers<Element, N> before[1] = {};
    if (y_init.base != nullptr) LoadTile<N, 1>(y_init, 0, c, before);
    Store<N * kParts>(state + c * kParts, GradientTile<N, 1>(p, t, c, Load<N * kParts>(state + c * kParts), before));
  }
  if constexpr (N > 1) {
    if (c < channels) FirstStepGradient<N / 2>(p, t, c, channels, y_init, state);
  }
}

// The gradients of batch entry b, channels [c, c + channels), steps [t, end) as the gradient counts them.
template <class Element>
void RunGradient(const convscan_scan_gradient &problem, int64_t b, int64_t t, int64_t end, int64_t c,
                 int64_t channels, const Sums &sums, typename Element::Part *state) {
  const convscan_scan &f = problem.forward;
  constexpr int kN = kNumbers<Element>;
  const int64_t bytes = StorageBytes(f.dtype);
  const auto plane = [&](const void *address, const convscan_strides &s, int64_t late) -> Plane<Element> {
    if (address == nullptr) return {};
    const int64_t direction = f.reverse ? 1 : -1;
    const int64_t start = (f.reverse ? 0 : f.length - 1) + late * direction;
    return {Advance(address, bytes * (b * s.batch + start * s.time + c * s.channel)), direction * s.time, s.channel};
  };
  GradientPlanes<Element> p = {plane(problem.dy, problem.dy_strides, 0), plane(f.a, f.a_strides, 0),
                               plane(f.y, f.y_strides, 1), plane(problem.dx, problem.dx_strides, 0),
                               plane(problem.da, problem.da_strides, 0), sums};
  const int64_t last = Min(end, f.length - 1);
  const bool channel_order = p.dy.order == Order::channel && p.a.order == Order::channel &&
                             p.y.order == Order::channel && p.dx.order == Order::channel &&
                             (p.da.base == nullptr || sums.entries != nullptr || p.da.order == Order::channel);
  if (channel_order) {
    constexpr int kRows = 4;
    p.dy.order = p.a.order = p.y.order = p.dx.order = p.da.order = Order::channel;
    for (; t < last; t += kRows) GradientTiles<kN, kRows>(p, t, Min(t + kRows, last), 0, channels, state);
  } else {
    const int64_t steps = p.dy.order == Order::channel ? kTileSteps<kN> : f.length;
    for (; t < last; t += steps) GradientTiles<kN, kTileSteps<kN>>(p, t, Min(t + steps, last), 0, channels, state);
  }
  if (end == f.length && f.length > 0) {
    Plane<Element> y_init;
    if (f.y_init != nullptr)
      y_init = {Advance(f.y_init, bytes * (b * f.y_init_batch_stride + c * f.y_init_channel_stride)), 0,
                f.y_init_channel_stride};
    FirstStepGradient<kN>(p, f.length - 1, 0, channels, y_init, state);
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
    for (int64_t t = 0; t == 0 || t < f.length; t += chunk) {
      const int64_t end = Min(t + chunk, f.length);
      sums.first = t;
      for (int64_t i = 0; i < group_batch; ++i)
        RunGradient<Element>(problem, b + i, t, end, c, channels, sums, state + i * width * kParts);
      if (is_summed && !sums_time) {
        StoreSums<Element>(problem, b, t, end - t, c, Min(channels, sum_channels), sums);
        __builtin_memset(memory, 0, sum_bytes);
      }
    }
    if (sums_time) StoreSums<Element>(problem, b, 0, 1, c, Min(channels, sum_channels), sums);
    if (problem.dy_init == nullptr) return;
    auto *dy_init = static_cast<typename Element::Storage *>(problem.dy_init);
    for (int64_t i = 0; i < group_batch; ++i)
      for (int64_t n = 0; n < channels; ++n)
        for (int part = 0; part < kParts; ++part)
          StoreScalar(dy_init + ((b + i) * problem.dy_init_batch_stride + (c + n) * problem.dy_init_channel_stride) *
                          kParts + part,
                      state[(i * width + n) * kParts + part]);
  });
  return failed ? CONVSCAN_OUT_OF_MEMORY : CONVSCAN_OK;
}

}  // namespace

convscan_status ScanGradientSequential(const convscan_scan_gradient &problem) {
  return WithElement(problem.forward.dtype,
                     [&](auto element) { return Gradient<decltype(element)>(problem); });
}

}  // namespace convscan::CONVSCAN_ISA
