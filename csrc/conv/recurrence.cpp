// Companion form: a filter of K taps is a linear recurrence with K-1 states per channel,
//
//   y = s_0 + h_0 x,   s_k <- s_{k+1} + h_{k+1} x,   s_{K-1} = 0
//
// (the transposed direct form II of a filter without feedback). One step needs nothing of the past but s: O(K) work
// and memory per channel and step, whatever came before. Lanes are channels.
#include "conv/signal.h"
#include "core/kernels.h"
#include "core/storage.h"

namespace convscan::CONVSCAN_ISA {
namespace {

// Times packed together, so that layouts with time innermost pass through registers in whole tiles.
constexpr int64_t kSteps = 64;

template <class S>
struct Companion {
  using T = Compute<S>;
  static constexpr int W = kLanes<T>;

  const convscan_conv &p;
  T *h, *state, *x;
  size_t bytes;

  Companion(const convscan_conv &p, void *workspace) : p(p) {
    Arena arena(workspace);
    h = arena.Take<T>(p.taps * W);
    state = arena.Take<T>(p.taps * W);
    x = arena.Take<T>(kSteps * W);
    bytes = arena.Used();
  }

  // Each sample becomes its output, before bias and activation.
  void Advance(T *sample, int64_t steps) {
    for (int64_t t = 0; t < steps; ++t) {
      const Vec<T> now = Load<W>(sample + t * W);
      Store<W>(sample + t * W, Load<W>(state) + Load<W>(h) * now);
      for (int64_t k = 0; k + 1 < p.taps; ++k)
        Store<W>(state + k * W, Load<W>(state + (k + 1) * W) + Load<W>(h + (k + 1) * W) * now);
    }
  }

  // All of time for the channels [n, n + width) of batch b.
  void Run(int64_t b, int64_t n, int64_t width) {
    const Signal<S> input = InputOf<S>(p);
    Lane lanes[W];
    for (int l = 0; l < W; ++l) {
      lanes[l] = {b, n + Min(l, width - 1), 0};
      const S *from = FilterOf<S>(p, b, lanes[l].channel);
      for (int64_t k = 0; k < p.taps; ++k) h[k * W + l] = LoadScalar(from + k * p.h_tap_stride);
    }
    // s_{K-1} stays zero; zeros before the start leave the others zero too.
    for (int64_t i = 0; i < p.taps * W; ++i) state[i] = T(0);
    if (input.state != nullptr) {
      for (int64_t t = -input.history; t < 0; t += kSteps) {
        const int64_t steps = Min(kSteps, -t);
        input.PackLanes(lanes, t, steps, x);
        Advance(x, steps);
      }
    }
    for (int64_t t = 0; t < p.length; t += kSteps) {
      const int64_t steps = Min(kSteps, p.length - t);
      input.PackLanes(lanes, t, steps, x);
      Advance(x, steps);
      for (int64_t i = 0; i < steps; ++i)
        for (int l = 0; l < width; ++l) x[i * W + l] += BiasOf<S>(p, b, n + l);
      PostGate<S>(p).MultiplyLanes(lanes, t, steps, x);
      ActivateRow<T>(x, steps * W, p.activation);
      S *y = static_cast<S *>(p.y) + b * p.y_strides.batch + t * p.y_strides.time + n * p.y_strides.channel;
      for (int64_t i = 0; i < steps; ++i)
        StoreRow<S>(y + i * p.y_strides.time, p.y_strides.channel, x + i * W, width, false);
    }
  }
};

template <class S>
convscan_status Recurrence(const convscan_conv &p) {
  constexpr int64_t W = Companion<S>::W;
  const int threads = Threads(p.threads, p.batch * p.length * p.channels * p.taps);
  const int64_t groups = CeilDiv(p.channels, W);
  bool failed = false;
  ParallelFor(p.batch * groups, threads, [&](int64_t task) {
    void *workspace = Workspace(Companion<S>(p, nullptr).bytes);
    if (workspace == nullptr) return __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
    const int64_t n = task % groups * W;
    Companion<S>(p, workspace).Run(task / groups, n, Min(W, p.channels - n));
  });
  return failed ? CONVSCAN_OUT_OF_MEMORY : CONVSCAN_OK;
}

}  // namespace

convscan_status ConvRecurrence(const convscan_conv &p) {
  if (p.origin != 0) return CONVSCAN_UNSUPPORTED;
  return WithRealStorage(p.dtype, [&](auto type) { return Recurrence<typename decltype(type)::Storage>(p); });
}

}  // namespace convscan::CONVSCAN_ISA
