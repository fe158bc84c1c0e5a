// The selective scan with lanes over states, for single steps of generation and for few channels: nothing is packed,
// every state, rate and projection is read once, where it lies.
#include "core/kernels.h"
#include "core/storage.h"
#include "scan/selective.h"

namespace convscan::CONVSCAN_ISA {
namespace {

// How numbers of states lie: apart, or real ones behind one another, of which fewer than a vector's lanes may be left.
enum class Layout { strided, part, whole };

// The first `count` of W numbers of P parts; zeros beyond.
template <Layout kLayout, class T, int P>
CONVSCAN_INLINE Planar<T, P> GatherStates(const T *p, int64_t stride, int64_t count) {
  constexpr int W = kLanes<T>;
  if constexpr (kLayout == Layout::whole) return {{Load<W>(p)}};
  if constexpr (kLayout == Layout::part) return {{LoadPart<W>(p, count)}};
  T lanes[P][W] = {};
  for (int64_t i = 0; i < Min(W, count); ++i)
    for (int part = 0; part < P; ++part) lanes[part][i] = p[i * stride * P + part];
  Planar<T, P> v;
  for (int part = 0; part < P; ++part) v.part[part] = Load<W>(lanes[part]);
  return v;
}
template <Layout kLayout, class T, int P>
CONVSCAN_INLINE void ScatterStates(T *p, int64_t stride, int64_t count, const Planar<T, P> &v) {
  constexpr int W = kLanes<T>;
  if constexpr (kLayout == Layout::whole) return Store<W>(p, v.part[0]);
  if constexpr (kLayout == Layout::part) return StorePart<W>(p, v.part[0], count);
  T lanes[P][W];
  for (int part = 0; part < P; ++part) Store<W>(lanes[part], v.part[part]);
  for (int64_t i = 0; i < Min(W, count); ++i)
    for (int part = 0; part < P; ++part) p[i * stride * P + part] = lanes[part][i];
}

// exp(dt A): A comes into the units of the exponential by a product in two numbers.
template <class T, int P>
CONVSCAN_INLINE Planar<T, P> GateOf(T dt, const Planar<T, P> &a) {
  constexpr int W = kLanes<T>;
  constexpr T kHigh = static_cast<T>(1.4426950408889634074);  // log2 e, and what that lacks
  constexpr T kLow = sizeof(T) == 4 ? static_cast<T>(1.4426950408889634074 - static_cast<double>(kHigh))
                                    : static_cast<T>(2.0355273740931033e-17);
  const Vec<T> high = a.part[0] * kHigh;
  const Vec<T> low = a.part[0] * kLow + MultiplyAdd(a.part[0], Broadcast<T>(kHigh), -high);
  const Vec<T> magnitude = Exp2OfProduct<W, T>(Broadcast<T>(dt), {high, low});
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

// Numbers of the states of a channel, `stride` apart.
template <class T>
struct OfStates {
  T *data;
  int64_t stride;
};

// One step of one channel; h is read from and written to [states], which may be one array. Lanes add up to sum C h.
template <bool kDense, class T, int P>
CONVSCAN_INLINE Vec<T> Step(int64_t states, T dt, T input, OfStates<const T> a, OfStates<const T> b, OfStates<const T> c,
                            OfStates<const T> from, OfStates<T> to) {
  constexpr int W = kLanes<T>;
  Vec<T> sum{};
  const auto advance = [&]<Layout kLayout>(int64_t n) {
    const auto gather = [&](const OfStates<const T> &of) {
      return GatherStates<kLayout, T, P>(of.data + n * of.stride * P, of.stride, states - n);
    };
    Planar<T, P> h{};
    if (from.data != nullptr) h = gather(from);
    h = Next(GateOf(dt, gather(a)), h, Broadcast<T>(input), gather(b));
    Planar<T, P> weight = gather(c);
#pragma GCC unroll 2
    for (int part = 0; part < P; ++part) weight.part[part] *= kOutputScales<T, P>[part];
    sum += Dot(weight, h);
    ScatterStates<kLayout, T, P>(to.data + n * to.stride * P, to.stride, states - n, h);
  };
  int64_t n = 0;
  if constexpr (kDense) {
    for (; n + W <= states; n += W) advance.template operator()<Layout::whole>(n);
    if (n < states) advance.template operator()<Layout::part>(n);
  } else {
    for (; n < states; n += W) advance.template operator()<Layout::strided>(n);
  }
  return sum;
}

// Lane i is the sum of the lanes of v[i].
template <class T>
CONVSCAN_INLINE Vec<T> SumsOfLanes(Vec<T> (&v)[kLanes<T>]) {
  Transpose<T>(v);
#pragma GCC unroll 16
  for (int half = kLanes<T> / 2; half > 0; half /= 2)
#pragma GCC unroll 16
    for (int i = 0; i < half; ++i) v[i] += v[i + half];
  return v[0];
}

// B or C of one step, for one channel after the other.
template <class T, int P>
class ProjectionOfChannels {
 public:
  ProjectionOfChannels(const convscan_selective &p, const convscan_projection &b, int64_t batch, int64_t t, int64_t first)
      : in_group_(p.channels / p.groups), step_(b.group * P), is_constant_(b.is_constant) {
    const int64_t group = first / in_group_;
    inside_ = first - group * in_group_;
    at_ = static_cast<const T *>(b.data) +
          (is_constant_ ? first * b.group : batch * b.batch + t * b.time + group * b.group) * P;
  }

  CONVSCAN_INLINE const T *Next() {
    const T *const at = at_;
    if (is_constant_ || ++inside_ == in_group_) {
      at_ += step_;
      inside_ = 0;
    }
    return at;
  }

 private:
  int64_t in_group_, step_, inside_;
  bool is_constant_;
  const T *at_;
};

// A vector's worth of channels, or fewer, of one batch entry through all of time.
template <bool kDense, class S, int P, class T = Compute<S>>
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
    if (address == nullptr) return Vec<T>{};
    const T *const at = static_cast<const T *>(address) + first * stride;
    if (stride == 1) return LoadLanes(at, count);
    T lanes[W] = {};
    for (int64_t i = 0; i < count; ++i) lanes[i] = at[i * stride];
    return Load<W>(lanes);
  };
  // Of the first channel.
  const auto at = [&](const convscan_states &s) {
    T *const data = static_cast<T *>(s.data);
    return data == nullptr ? data : data + (batch * s.batch + first * s.channel) * P;
  };
  const Vec<T> bias = channels(p.delta_bias, p.delta_bias_stride), skip = channels(p.d, p.d_stride);
  // States stay where the last ones go, or in the workspace.
  const bool has_final = p.final_state.data != nullptr;
  T *const kept = has_final ? at(p.final_state) : states;
  const int64_t kept_stride = has_final ? p.final_state.state : 1;
  const int64_t kept_channel = (has_final ? p.final_state.channel : p.states) * P;
  const T *const initial = at(p.initial_state), *const rates = static_cast<const T *>(p.a.data) + first * p.a.channel * P;
  for (int64_t t = 0; t < p.length; ++t) {
    const Vec<T> sample = row(p.u, p.u_strides, t), dt = StepSize<T>(p, row(p.delta, p.delta_strides, t) + bias);
    T steps[W], inputs[W];
    Store<W>(steps, dt);
    Store<W>(inputs, dt * sample);
    ProjectionOfChannels<T, P> b(p, p.b, batch, t, first), c(p, p.c, batch, t, first);
    OfStates<const T> from = {kept, kept_stride};
    int64_t from_channel = kept_channel;
    if (t == 0) {
      from = {initial, p.initial_state.state};
      from_channel = initial == nullptr ? 0 : p.initial_state.channel * P;
    }
    OfStates<const T> a = {rates, p.a.state};
    OfStates<T> to = {kept, kept_stride};
    const int64_t a_channel = p.a.channel * P, b_state = p.b.state, c_state = p.c.state, all = p.states;
    Vec<T> sums[W] = {};
    for (int64_t i = 0; i < count; ++i) {
      sums[i] = Step<kDense, T, P>(all, steps[i], inputs[i], a, {b.Next(), b_state}, {c.Next(), c_state}, from, to);
      a.data += a_channel;
      from.data += from_channel;
      to.data += kept_channel;
    }
    Vec<T> y = skip * sample + SumsOfLanes<T>(sums);
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
    for (int64_t n = 0; n < p.states; ++n)
      for (int part = 0; part < P; ++part)
        kept[i * kept_channel + n * kept_stride * P + part] =
            initial == nullptr ? T(0) : initial[(i * p.initial_state.channel + n * p.initial_state.state) * P + part];
}

template <class S, int P>
convscan_status Scan(const convscan_selective &p) {
  using T = Compute<S>;
  constexpr int64_t W = kLanes<T>;
  constexpr int64_t kSmallProblem = 1 << 14;  // gates that one thread computes before another has woken up
  const bool is_small = p.batch * p.length * p.channels * Max(1, p.states) < kSmallProblem;
  const size_t workspace = p.final_state.data != nullptr ? 0 : sizeof(T) * static_cast<size_t>(W * p.states * P);
  const bool is_dense = P == 1 && p.a.state == 1 && p.b.state == 1 && p.c.state == 1 &&
                        (p.initial_state.data == nullptr || p.initial_state.state == 1) &&
                        (p.final_state.data == nullptr || p.final_state.state == 1);
  const int64_t vectors = CeilDiv(p.channels, W);
  bool failed = false;
  ParallelShares(p.batch * vectors, is_small ? 1 : p.threads, [&](int64_t begin, int64_t end) {
    T *const states = workspace == 0 ? nullptr : static_cast<T *>(Workspace(workspace));
    if (workspace != 0 && states == nullptr) {
      __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
      return;
    }
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % vectors * W, count = Min(W, p.channels - first);
      if (is_dense) {
        StepChannels<P == 1, S, P>(p, i / vectors, first, count, states);
      } else {
        StepChannels<false, S, P>(p, i / vectors, first, count, states);
      }
    }
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
