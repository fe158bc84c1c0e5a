// The gradients of the selective scan, a tile of time after the other from the last one on: see selective.h.
//
// Within a tile, the states are computed again from the one that the forward scan kept at its start, and stay in the
// first-level cache together with their gates, for one state and one vector of channels at a time. Then, backwards,
//
//   g[t] = C[t] dy[t] + conj(exp(dt[t+1] A)) g[t+1],   r[t] = conj(exp(dt[t] A)) g[t] conj(h[t-1]),
//
// where dy is multiplied by silu(z) already, from which come dA = sum dt r, dB = dt u g, dC = dy h, du = dt B g and
// d dt = u B g + A r. What B and C get is summed over lanes only once for all vectors of a block. Shards of channels
// write sums of their own, which the caller adds up: nothing depends on which thread ran first.
#include "core/kernels.h"
#include "core/storage.h"
#include "scan/selective.h"

namespace convscan::CONVSCAN_ISA {
namespace {

template <class S, int P, class T = Compute<S>>
struct Memory {
  static constexpr int kRows = 7, kCopies = 7;
  T *rates, *a, *carried, *da, *db, *dc;  // of channels and states
  T *bias, *skip, *dskip, *dbias;         // of channels
  T *dt, *input, *u, *dy, *y, *ds, *de;   // rows; ds is Re sum conj(B) g, de is Re sum conj(A) r
  T *b, *c, *db_steps, *dc_steps;         // spread over lanes
  T *gates, *h;
  S *copies[kCopies];

  Memory(Arena &arena, int64_t states) {
    constexpr int64_t kSteps = kSelectiveSteps, kStep = P * kLanes<T>;
    rates = arena.Take<T>(states * kSelectiveChannels * 2 * P);
    T **const of_states[] = {&a, &carried, &da, &db, &dc};
    for (T **array : of_states) *array = arena.Take<T>(states * kSelectiveChannels * P);
    T **const of_channels[] = {&bias, &skip, &dskip, &dbias};
    for (T **array : of_channels) *array = arena.Take<T>(kSelectiveChannels);
    T **const rows[] = {&dt, &input, &u, &dy, &y, &ds, &de};
    for (T **array : rows) *array = arena.Take<T>(kSteps * kSelectiveChannels);
    T **const spread[] = {&b, &c, &db_steps, &dc_steps};
    for (T **array : spread) *array = arena.Take<T>(kSpreadNumbers<T, P>);
    gates = arena.Take<T>(kSteps * kStep);
    h = arena.Take<T>((kSteps + 1) * kStep);
    for (S *&copy : copies) copy = arena.Take<S>(kSteps * kSelectiveChannels);
  }
};

// One array over a tile: at step t, p + t * stride.
template <class T>
struct Steps {
  T *p;
  int64_t stride;
};

// One state of one vector of channels through a tile, forwards and back.
template <bool kNeedsOutput, int P, class T>
__attribute__((noinline)) void Backtrack(int64_t steps, const T *dt, const T *input, const T *dy, T *y, T *ds, T *de,
                                         const T *rates, const T *a, T *carried, T *da, Steps<const T> b,
                                         Steps<const T> c, Steps<T> db, Steps<T> dc, T *gates, T *h) {
  constexpr int W = kLanes<T>;
  const Rate<T, P> rate = LoadRate<T, P>(rates);
  Planar<T, P> state = LoadPlanar<T, P>(h);
  for (int64_t t = 0; t < steps; ++t) {
    const Planar<T, P> gate = Gate<T, P>(Load<W>(dt + t * W), rate);
    StorePlanar<T, P>(gates + t * P * W, gate);
    state = Next(gate, state, Load<W>(input + t * W), LoadPlanar<T, P>(b.p + t * b.stride));
    StorePlanar<T, P>(h + (t + 1) * P * W, state);
    if constexpr (kNeedsOutput)
      Store<W>(y + t * W, Load<W>(y + t * W) + Dot(LoadPlanar<T, P>(c.p + t * c.stride), state));
  }
  const Planar<T, P> exponent = LoadPlanar<T, P>(a);
  Planar<T, P> g = LoadPlanar<T, P>(carried), sum = LoadPlanar<T, P>(da);
  for (int64_t t = steps - 1; t >= 0; --t) {
    const Vec<T> out = Load<W>(dy + t * W), x = Load<W>(input + t * W), step = Load<W>(dt + t * W);
    const Planar<T, P> weight = LoadPlanar<T, P>(c.p + t * c.stride), after = LoadPlanar<T, P>(h + (t + 1) * P * W);
#pragma GCC unroll 2
    for (int i = 0; i < P; ++i) {
      g.part[i] += weight.part[i] * out;
      T *const to_c = dc.p + t * dc.stride + i * W, *const to_b = db.p + t * db.stride + i * W;
      Store<W>(to_c, Load<W>(to_c) + out * after.part[i]);
      Store<W>(to_b, Load<W>(to_b) + x * g.part[i]);
    }
    Store<W>(ds + t * W, Load<W>(ds + t * W) + Dot(LoadPlanar<T, P>(b.p + t * b.stride), g));
    g = ConjugateProduct(LoadPlanar<T, P>(gates + t * P * W), g);
    const Planar<T, P> r = ConjugateProduct(LoadPlanar<T, P>(h + t * P * W), g);
    Store<W>(de + t * W, Load<W>(de + t * W) + Dot(exponent, r));
#pragma GCC unroll 2
    for (int i = 0; i < P; ++i) sum.part[i] += step * r.part[i];
  }
  StorePlanar<T, P>(carried, g);
  StorePlanar<T, P>(da, sum);
}

// out[t * stride] = or += scale times the sum of the lanes of step t.
template <class T>
CONVSCAN_INLINE void SumLanes(int64_t steps, const T *lanes, int64_t lanes_stride, T scale, bool is_first, T *out,
                              int64_t stride) {
  constexpr int W = kLanes<T>;
  for (int64_t t = 0; t < steps; t += W) {
    Vec<T> square[W];
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) square[i] = Load<W>(lanes + (t + i) * lanes_stride);
    Transpose<T>(square);
    Vec<T> sum = square[0];
#pragma GCC unroll 16
    for (int i = 1; i < W; ++i) sum += square[i];
    sum *= scale;
    T sums[W];
    Store<W>(sums, sum);
    for (int64_t i = 0; i < Min(W, steps - t); ++i) {
      T *const to = out + (t + i) * stride;
      *to = is_first ? sums[i] : *to + sums[i];
    }
  }
}

template <class S, int P, class T = Compute<S>>
struct Block {
  const convscan_selective_gradient &p;
  const SelectiveBlock &block;
  int64_t shard;
  bool is_first;  // of its shard
  const Memory<S, P> &m;

  static constexpr int W = kLanes<T>;
  const convscan_selective &f = p.forward;

  Plane<Real<S>> PlaneOf(const void *address, const convscan_strides &s) const {
    const S *const base = static_cast<const S *>(address);
    return Plane<Real<S>>(base == nullptr ? base : base + block.batch * s.batch, s.time, s.channel, f.channels);
  }

  void Zero(T *array, int64_t count) const {
    __builtin_memset(array, 0, sizeof(T) * static_cast<size_t>(count));
  }

  // State n of all channels of the block through a tile.
  void FollowState(int64_t checkpoint, int64_t t0, int64_t steps, int64_t n) const {
    const Spread<T> b = SpreadStates<T, P>(f.b, block, t0, steps, n, 1, kInputScales<T>, m.b);
    const Spread<T> c = SpreadStates<T, P>(f.c, block, t0, steps, n, 1, kOutputScales<T, P>, m.c);
    const T *const kept = static_cast<const T *>(f.checkpoints) +
                          ((block.batch * SelectiveTiles(f) + checkpoint) * f.states + n) * P * f.channels +
                          block.channel;
    constexpr int64_t kStep = P * W;
    if (!f.b.is_constant) Zero(m.db_steps, kSelectiveSteps * kStep);
    if (!f.c.is_constant) Zero(m.dc_steps, kSelectiveSteps * kStep);
    for (int64_t cv = 0; cv < block.vectors; ++cv) {
      const int64_t at = (n * block.vectors + cv) * kStep;
      for (int part = 0; part < P; ++part)
        Store<W>(m.h + part * W, LoadLanes(kept + part * f.channels + cv * W, LanesOf<T>(block, cv)));
      const auto run = f.z != nullptr ? Backtrack<true, P, T> : Backtrack<false, P, T>;
      run(steps, RowAt(m.dt, cv, 0), RowAt(m.input, cv, 0), RowAt(m.dy, cv, 0), RowAt(m.y, cv, 0),
          RowAt(m.ds, cv, 0), RowAt(m.de, cv, 0), m.rates + 2 * at, m.a + at, m.carried + at, m.da + at,
          {b.At(cv, 0), b.time}, {c.At(cv, 0), c.time}, StepsOf(f.b, m.db + at, m.db_steps),
          StepsOf(f.c, m.dc + at, m.dc_steps), m.gates, m.h);
    }
    for (int part = 0; part < P; ++part) {
      PutSteps(f.b, p.db, m.db_steps, kInputScales<T>[part], t0, steps, n, part);
      PutSteps(f.c, p.dc, m.dc_steps, kOutputScales<T, P>[part], t0, steps, n, part);
    }
  }

  // Where the gradient of B or C gathers: with the states where it is constant.
  static Steps<T> StepsOf(const convscan_projection &b, T *constant, T *steps) {
    return b.is_constant ? Steps<T>{constant, 0} : Steps<T>{steps, P * W};
  }

  // To (shard, batch, time, group, state).
  void PutSteps(const convscan_projection &b, void *out, const T *lanes, T scale, int64_t t0, int64_t steps, int64_t n,
                int part) const {
    if (b.is_constant) return;
    const int64_t step = f.groups * f.states * P;
    T *const to = static_cast<T *>(out) + ((shard * f.batch + block.batch) * f.length + t0) * step +
                  (block.group * f.states + n) * P + part;
    SumLanes<T>(steps, lanes + part * W, P * W, scale, is_first, to, step);
  }

  // To (batch, channel, state), or those of a sequence to (batch, sequence, channel, state).
  void PutStatesTo(void *out, T *states, const T (&scales)[2], int64_t sequence = 0, int64_t sequences = 1) const {
    for (int64_t i = 0; i < f.states * block.vectors; ++i)
      for (int part = 0; part < P; ++part)
        Store<W>(states + (i * P + part) * W, Load<W>(states + (i * P + part) * W) * scales[part]);
    const int64_t all = f.channels * f.states;
    PutStates<T, P>({out, sequences * all, f.states, 1, all}, block, sequence, f.states, states);
  }
  void PutChannels(void *out, const T *values) const {
    for (int64_t i = 0; out != nullptr && i < block.channels; ++i)
      static_cast<T *>(out)[block.batch * f.channels + block.channel + i] = values[i];
  }

  void FollowTile(const SelectiveSpan &span, int64_t tile) const {
    const int64_t t0 = span.begin + tile * kSelectiveSteps, steps = Min(kSelectiveSteps, span.end - t0);
    const Tile part{t0, block.channel, steps, block.channels};
    const Plane<Real<S>> du = PlaneOf(p.du, p.du_strides), ddelta = PlaneOf(p.ddelta, p.ddelta_strides);
    const Plane<Real<S>> dz = PlaneOf(p.dz, p.dz_strides);
    const Rows<const S> u = RowsToRead(PlaneOf(f.u, f.u_strides), part, m.copies[0]);
    const Rows<const S> delta = RowsToRead(PlaneOf(f.delta, f.delta_strides), part, m.copies[1]);
    const Rows<const S> dy = RowsToRead(PlaneOf(p.dy, p.dy_strides), part, m.copies[2]);
    Rows<const S> z{};
    if (f.z != nullptr) z = RowsToRead(PlaneOf(f.z, f.z_strides), part, m.copies[3]);
    for (int64_t cv = 0; cv < block.vectors; ++cv) {
      const int64_t lanes = LanesOf<T>(block, cv);
      const Vec<T> shift = Load<W>(m.bias + cv * W), factor = Load<W>(m.skip + cv * W);
      for (int64_t t = 0; t < steps; ++t) {
        const Vec<T> sample = LoadLanes(u.base + t * u.stride + cv * W, lanes);
        const Vec<T> dt = StepSize<T>(f, LoadLanes(delta.base + t * delta.stride + cv * W, lanes) + shift);
        Vec<T> out = LoadLanes(dy.base + t * dy.stride + cv * W, lanes);
        if (f.z != nullptr) out *= Silu<W, T>(LoadLanes(z.base + t * z.stride + cv * W, lanes));
        Store<W>(RowAt(m.u, cv, t), sample);
        Store<W>(RowAt(m.dt, cv, t), dt);
        Store<W>(RowAt(m.input, cv, t), dt * sample);
        Store<W>(RowAt(m.dy, cv, t), out);
        Store<W>(RowAt(m.y, cv, t), factor * sample);
      }
    }
    Zero(m.ds, block.vectors * kSelectiveSteps * W);
    Zero(m.de, block.vectors * kSelectiveSteps * W);
    for (int64_t n = 0; n < f.states; ++n) FollowState(span.first_tile + tile, t0, steps, n);
    const Rows<S> to_u = RowsToWrite(du, part, m.copies[4]), to_delta = RowsToWrite(ddelta, part, m.copies[5]);
    Rows<S> to_z{};
    if (f.z != nullptr) to_z = RowsToWrite(dz, part, m.copies[6]);
    for (int64_t cv = 0; cv < block.vectors; ++cv) {
      const int64_t lanes = LanesOf<T>(block, cv);
      const Vec<T> shift = Load<W>(m.bias + cv * W), factor = Load<W>(m.skip + cv * W);
      Vec<T> dskip = Load<W>(m.dskip + cv * W), dbias = Load<W>(m.dbias + cv * W);
      for (int64_t t = steps - 1; t >= 0; --t) {
        const Vec<T> sample = Load<W>(RowAt(m.u, cv, t)), out = Load<W>(RowAt(m.dy, cv, t));
        const Vec<T> ds = Load<W>(RowAt(m.ds, cv, t));
        Vec<T> slope = ds * sample + Load<W>(RowAt(m.de, cv, t));
        if (f.softplus) slope *= Sigmoid<W, T>(LoadLanes(delta.base + t * delta.stride + cv * W, lanes) + shift);
        dskip += out * sample;
        dbias += slope;
        StoreLanes(to_u.base + t * to_u.stride + cv * W, ds * Load<W>(RowAt(m.dt, cv, t)) + factor * out, lanes);
        StoreLanes(to_delta.base + t * to_delta.stride + cv * W, slope, lanes);
        if (f.z == nullptr) continue;
        const Vec<T> gate = LoadLanes(z.base + t * z.stride + cv * W, lanes), sigmoid = Sigmoid<W, T>(gate);
        StoreLanes(to_z.base + t * to_z.stride + cv * W,
                   LoadLanes(dy.base + t * dy.stride + cv * W, lanes) * Load<W>(RowAt(m.y, cv, t)) * sigmoid *
                       (1 + gate * (1 - sigmoid)),
                   lanes);
      }
      Store<W>(m.dskip + cv * W, dskip);
      Store<W>(m.dbias + cv * W, dbias);
    }
    PutRows(du, part, m.copies[4]);
    PutRows(ddelta, part, m.copies[5]);
    if (f.z != nullptr) PutRows(dz, part, m.copies[6]);
  }

  void Run() const {
    const T *const bias = static_cast<const T *>(f.delta_bias), *const skip = static_cast<const T *>(f.d);
    const int64_t numbers = f.states * block.vectors * P * W;
    FillRates<T, P>(f, block, m.rates);
    convscan_states a = f.a;
    a.batch = 0;
    FillFrom<T, P>(a, block, 0, f.states, m.a);
    Zero(m.da, numbers);
    Zero(m.db, numbers);
    Zero(m.dc, numbers);
    Zero(m.dskip, block.vectors * W);
    Zero(m.dbias, block.vectors * W);
    FillChannels(block, m.bias,
                 [&](int64_t i) { return bias ? bias[(block.channel + i) * f.delta_bias_stride] : T(0); });
    FillChannels(block, m.skip, [&](int64_t i) { return skip ? skip[(block.channel + i) * f.d_stride] : T(0); });
    for (int64_t s = block.first_sequence; s < block.last_sequence; ++s) {
      const SelectiveSpan span(f, s);
      FillFrom<T, P>(p.dfinal_state, block, s, f.states, m.carried);
      for (int64_t tile = span.Tiles() - 1; tile >= 0; --tile) FollowTile(span, tile);
      if (p.dinitial_state != nullptr) PutStatesTo(p.dinitial_state, m.carried, kInputScales<T>, s, f.sequences);
    }
    PutStatesTo(p.da, m.da, kInputScales<T>);
    if (f.b.is_constant) PutStatesTo(p.db, m.db, kInputScales<T>);
    if (f.c.is_constant) PutStatesTo(p.dc, m.dc, kOutputScales<T, P>);
    PutChannels(p.dd, m.dskip);
    PutChannels(p.ddelta_bias, m.dbias);
  }
};

template <class S, int P>
convscan_status Gradient(const convscan_selective_gradient &p) {
  using T = Compute<S>;
  Arena counting(nullptr);
  Memory<S, P>(counting, p.forward.states);
  const int64_t in_group = p.forward.channels / p.forward.groups;
  const bool done = ForEachSelectiveTask<T>(
      p.forward, p.shard_channels, 1, counting.Used(), [&](const SelectiveBlock &block, int64_t shard, void *memory) {
        Arena arena(memory);
        const Memory<S, P> m(arena, p.forward.states);
        const bool is_first = block.channel - block.group * in_group == shard * p.shard_channels;
        Block<S, P>{p, block, shard, is_first, m}.Run();
      });
  return done ? CONVSCAN_OK : CONVSCAN_OUT_OF_MEMORY;
}

}  // namespace

convscan_status SelectiveGradient(const convscan_selective_gradient &problem) {
  return WithRealStorage(problem.forward.dtype, [&]<class S>(Type<S>) {
    return problem.forward.is_complex ? Gradient<S, 2>(problem) : Gradient<S, 1>(problem);
  });
}

}  // namespace convscan::CONVSCAN_ISA
