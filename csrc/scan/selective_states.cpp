// The selective scan with lanes over states, for single steps of generation and for few channels: nothing is packed,
// every state, rate and projection is read once, where it lies.
#include "core/kernels.h"
#include "core/storage.h"
#include "scan/selective.h"

namespace convscan::CONVSCAN_ISA {
namespace {

// Strided numbers of P parts, the first `count` of W; zeros beyond.
template <class T, int P>
CONVSCAN_INLINE Planar<T, P> GatherStates(const T *p, int64_t stride, int64_t count) {
  constexpr int W = kLanes<T>;
  if constexpr (P == 1)
    if (stride == 1 && count >= W) return {{Load<W>(p)}};
  T lanes[P][W] = {};
  for (int64_t i = 0; i < Min(W, count); ++i)
    for (int part = 0; part < P; ++part) lanes[part][i] = p[i * stride * P + part];
  Planar<T, P> v;
  for (int part = 0; part < P; ++part) v.part[part] = Load<W>(lanes[part]);
  return v;
}
template <class T, int P>
CONVSCAN_INLINE void ScatterStates(T *p, int64_t stride, int64_t count, const Planar<T, P> &v) {
  constexpr int W = kLanes<T>;
  if constexpr (P == 1)
    if (stride == 1 && count >= W) return Store<W>(p, v.part[0]);
  T lanes[P][W];
  for (int part = 0; part < P; ++part) Store<W>(lanes[part], v.part[part]);
  for (int64_t i = 0; i < Min(W, count); ++i)
    for (int part = 0; part < P; ++part) p[i * stride * P + part] = lanes[part][i];
}

// exp(dt A), the product rounded once: a table of rates would cost more than it saves.
template <class T, int P>
CONVSCAN_INLINE Planar<T, P> GateOf(T dt, const Planar<T, P> &a) {
  constexpr int W = kLanes<T>;
  const Vec<T> magnitude = Exp<W, T>(dt * a.part[0]);
  if constexpr (P == 1) {
    return {{magnitude}};
  } else {
    // The angle is the sum of many turns: in single precision its rate is a sum of two numbers.
    using Wide = Vec<double, W>;
    const Wide rate = __builtin_convertvector(a.part[1], Wide) * 0.63661977236758134308;  // 2 / pi
    const Vec<T> high = __builtin_convertvector(rate, Vec<T>);
    const Vec<T> low = __builtin_convertvector(rate - __builtin_convertvector(high, Wide), Vec<T>);
    Vec<T> cosine, sine;
    CosSinOfProduct<W, T>(Broadcast<T>(dt), {high, low}, cosine, sine);
    return {{magnitude * cosine, magnitude * sine}};
  }
}

template <class T>
CONVSCAN_INLINE T SumLanes(Vec<T> v) {
  T sum = 0;
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<T>; ++i) sum += v[i];
  return sum;
}

// One step of one channel; h is read from and written to [states], which may be one array.
template <class T, int P>
CONVSCAN_INLINE T Step(const convscan_selective &p, T dt, T input, const T *a, const T *b, const T *c, const T *from,
                       int64_t from_stride, T *to, int64_t to_stride) {
  constexpr int W = kLanes<T>;
  Vec<T> sum{};
  for (int64_t n = 0; n < p.states; n += W) {
    const int64_t count = p.states - n;
    const Planar<T, P> rate = GatherStates<T, P>(a + n * p.a.state * P, p.a.state, count);
    Planar<T, P> h{};
    if (from != nullptr) h = GatherStates<T, P>(from + n * from_stride * P, from_stride, count);
    h = Next(GateOf(dt, rate), h, Broadcast<T>(input), GatherStates<T, P>(b + n * p.b.state * P, p.b.state, count));
    Planar<T, P> weight = GatherStates<T, P>(c + n * p.c.state * P, p.c.state, count);
#pragma GCC unroll 2
    for (int part = 0; part < P; ++part) weight.part[part] *= kOutputScales<T, P>[part];
    sum += Dot(weight, h);
    ScatterStates<T, P>(to + n * to_stride * P, to_stride, count, h);
  }
  return SumLanes<T>(sum);
}

// A vector's worth of channels, or fewer, of one batch entry through all of time.
template <class S, int P, class T = Compute<S>>
void StepChannels(const convscan_selective &p, int64_t batch, int64_t first, int64_t count, T *states) {
  constexpr int W = kLanes<T>;
  const auto row = [&](const void *address, const convscan_strides &s, int64_t t) {
    const S *const at = static_cast<const S *>(address) + batch * s.batch + t * s.time + first * s.channel;
    if (s.channel == 1) return LoadLanes(at, count);
    T lanes[W] = {};
    for (int64_t i = 0; i < count; ++i) lanes[i] = LoadScalar(at + i * s.channel);
    return Load<W>(lanes);
  };
  const auto channels = [&](const void *address, int64_t stride) {
    T lanes[W] = {};
    for (int64_t i = 0; address != nullptr && i < count; ++i)
      lanes[i] = static_cast<const T *>(address)[(first + i) * stride];
    return Load<W>(lanes);
  };
  const auto projection = [&](const convscan_projection &b, int64_t t, int64_t channel) {
    const int64_t at = b.is_constant ? channel * b.group
                                     : batch * b.batch + t * b.time + channel / (p.channels / p.groups) * b.group;
    return static_cast<const T *>(b.data) + at * P;
  };
  const auto at = [&](const convscan_states &s, int64_t channel) {
    T *const data = static_cast<T *>(s.data);
    return data == nullptr ? data : data + (batch * s.batch + channel * s.channel) * P;
  };
  const Vec<T> bias = channels(p.delta_bias, p.delta_bias_stride), skip = channels(p.d, p.d_stride);
  const bool has_final = p.final_state.data != nullptr;
  for (int64_t t = 0; t < p.length; ++t) {
    const Vec<T> sample = row(p.u, p.u_strides, t), dt = StepSize<T>(p, row(p.delta, p.delta_strides, t) + bias);
    const Vec<T> input = dt * sample;
    T sums[W] = {};
    for (int64_t i = 0; i < count; ++i) {
      // States stay where the last ones go, or in the workspace.
      const int64_t stride = has_final ? p.final_state.state : 1;
      T *const to = has_final ? at(p.final_state, first + i) : states + i * p.states * P;
      const bool is_first = t == 0;
      sums[i] = Step<T, P>(p, dt[i], input[i], static_cast<const T *>(p.a.data) + (first + i) * p.a.channel * P, projection(p.b, t, first + i),
                           projection(p.c, t, first + i), is_first ? at(p.initial_state, first + i) : to,
                           is_first ? p.initial_state.state : stride, to, stride);
    }
    Vec<T> y = skip * sample + Load<W>(sums);
    if (p.z != nullptr) y *= Silu<W, T>(row(p.z, p.z_strides, t));
    S *const out = static_cast<S *>(p.y) + batch * p.y_strides.batch + t * p.y_strides.time + first * p.y_strides.channel;
    if (p.y_strides.channel == 1) {
      StoreLanes(out, y, count);
    } else {
      for (int64_t i = 0; i < count; ++i) StoreScalar(out + i * p.y_strides.channel, y[i]);
    }
  }
  if (p.length > 0 || !has_final) return;
  for (int64_t i = 0; i < count; ++i)
    for (int64_t n = 0; n < p.states * P; ++n) {
      const T *const from = at(p.initial_state, first + i);
      const int64_t state = n / P, part = n % P;
      at(p.final_state, first + i)[state * p.final_state.state * P + part] =
          from == nullptr ? T(0) : from[state * p.initial_state.state * P + part];
    }
}

template <class S, int P>
convscan_status Scan(const convscan_selective &p) {
  using T = Compute<S>;
  constexpr int64_t kW = kLanes<T>;
  constexpr int64_t kChunk = 16;                // vectors of channels in a task
  constexpr int64_t kSmallProblem = 1 << 15;  // gates that one thread computes before another has woken up
  const int64_t width = kChunk * kW, chunks = CeilDiv(p.channels, width);
  const bool is_small = p.batch * p.length * p.channels * Max(1, p.states) < kSmallProblem;
  const size_t workspace = p.final_state.data != nullptr ? 0 : sizeof(T) * static_cast<size_t>(kW * p.states * P);
  bool failed = false;
  ParallelFor(p.batch * chunks, is_small ? 1 : p.threads, [&](int64_t task) {
    T *const states = workspace == 0 ? nullptr : static_cast<T *>(Workspace(workspace));
    if (workspace != 0 && states == nullptr) {
      __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
      return;
    }
    const int64_t begin = task % chunks * width, end = Min(p.channels, begin + width);
    for (int64_t c = begin; c < end; c += kW) StepChannels<S, P>(p, task / chunks, c, Min(kW, end - c), states);
  });
  return failed ? CONVSCAN_OUT_OF_MEMORY : CONVSCAN_OK;
}

}  // namespace

convscan_status SelectiveOverStates(const convscan_selective &problem) {
  return WithRealStorage(problem.dtype, [&]<class S>(Type<S>) {
    return problem.is_complex ? Scan<S, 2>(problem) : Scan<S, 1>(problem);
  });
}

}  // namespace convscan::CONVSCAN_ISA
