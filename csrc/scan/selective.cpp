// The selective scan of Mamba, forwards: see selective.h.
#include "scan/selective.h"

#include "core/kernels.h"
#include "core/storage.h"

namespace convscan::CONVSCAN_ISA {
namespace {

// States followed at a time: their rates and values fill the registers.
constexpr int kStates = 2;

template <class S, int P, class T = Compute<S>>
struct Memory {
  T *rates, *states, *bias, *skip;
  T *dt, *input, *y;     // rows
  T *b, *c;              // spread
  S *copies[3];          // rows of planes whose channels are not contiguous; that of z becomes that of y

  Memory(Arena &arena, int64_t states_count) {
    rates = arena.Take<T>(states_count * kSelectiveChannels * 2 * P);
    states = arena.Take<T>(states_count * kSelectiveChannels * P);
    bias = arena.Take<T>(kSelectiveChannels);
    skip = arena.Take<T>(kSelectiveChannels);
    T **const all_rows[] = {&dt, &input, &y}, **const all_spread[] = {&b, &c};
    for (T **rows : all_rows) *rows = arena.Take<T>(kSelectiveSteps * kSelectiveChannels);
    for (T **spread : all_spread) *spread = arena.Take<T>(kStates * kSpreadNumbers<T, P>);
    for (S *&copy : copies) copy = arena.Take<S>(kSelectiveSteps * kSelectiveChannels);
  }
};

// K states of one vector of channels through a tile; y gets their part of the sum.
template <int K, int P, class T>
__attribute__((noinline)) void Follow(int64_t steps, const T *dt, const T *input, T *y, const T *rates,
                                      int64_t rate_stride, T *states, int64_t state_stride, const T *b,
                                      int64_t b_stride, const T *c, int64_t c_stride) {
  constexpr int W = kLanes<T>;
  Rate<T, P> rate[K];
  Planar<T, P> h[K];
#pragma GCC unroll 4
  for (int k = 0; k < K; ++k) {
    rate[k] = LoadRate<T, P>(rates + k * rate_stride);
    h[k] = LoadPlanar<T, P>(states + k * state_stride);
  }
  for (int64_t t = 0; t < steps; ++t, dt += W, input += W, y += W, b += b_stride, c += c_stride) {
    const Vec<T> step = Load<W>(dt), x = Load<W>(input);
    Vec<T> sum = Load<W>(y);
#pragma GCC unroll 4
    for (int k = 0; k < K; ++k) {
      h[k] = Next(Gate<T, P>(step, rate[k]), h[k], x, LoadPlanar<T, P>(b + k * P * W));
      sum += Dot(LoadPlanar<T, P>(c + k * P * W), h[k]);
    }
    Store<W>(y, sum);
  }
#pragma GCC unroll 4
  for (int k = 0; k < K; ++k) StorePlanar<T, P>(states + k * state_stride, h[k]);
}

// States n to n + K of all of the block's channels through a tile.
template <int K, class S, int P, class T = Compute<S>>
void FollowStates(const convscan_selective &p, const SelectiveBlock &block, const Memory<S, P> &m, int64_t t0,
                  int64_t steps, int64_t n) {
  constexpr int W = kLanes<T>;
  const Spread<T> b = SpreadStates<T, P>(p.b, block, t0, steps, n, K, kInputScales<T>, m.b);
  const Spread<T> c = SpreadStates<T, P>(p.c, block, t0, steps, n, K, kOutputScales<T, P>, m.c);
  for (int64_t cv = 0; cv < block.vectors; ++cv) {
    const int64_t at = (n * block.vectors + cv) * P * W;
    Follow<K, P, T>(steps, RowAt(m.dt, cv, 0), RowAt(m.input, cv, 0), RowAt(m.y, cv, 0), m.rates + 2 * at,
                    2 * P * W * block.vectors, m.states + at, P * W * block.vectors, b.At(cv, 0), b.time, c.At(cv, 0),
                    c.time);
  }
}

// One sequence of a block whose rates and parameters are in place.
template <class S, int P, class T = Compute<S>>
void ScanSequence(const convscan_selective &p, const SelectiveBlock &block, int64_t sequence, const Memory<S, P> &m) {
  constexpr int W = kLanes<T>;
  const auto plane = [&](const void *address, const convscan_strides &s) {
    const S *const base = static_cast<const S *>(address);
    return Plane<Real<S>>(base == nullptr ? base : base + block.batch * s.batch, s.time, s.channel, p.channels);
  };
  const Plane<Real<S>> u = plane(p.u, p.u_strides), delta = plane(p.delta, p.delta_strides);
  const Plane<Real<S>> z = plane(p.z, p.z_strides), y = plane(p.y, p.y_strides);
  const SelectiveSpan span(p, sequence);
  FillFrom<T, P>(p.initial_state, block, sequence, p.states, m.states);
  for (int64_t tile = 0; tile < span.Tiles(); ++tile) {
    const int64_t t0 = span.begin + tile * kSelectiveSteps, steps = Min(kSelectiveSteps, span.end - t0);
    if (p.checkpoints != nullptr) {
      T *const rows = static_cast<T *>(p.checkpoints) +
                      (block.batch * SelectiveTiles(p) + span.first_tile + tile) * p.states * P * p.channels;
      for (int64_t n = 0; n < p.states; ++n)
        for (int64_t cv = 0; cv < block.vectors; ++cv)
          for (int part = 0; part < P; ++part)
            StoreLanes(rows + (n * P + part) * p.channels + block.channel + cv * W,
                       Load<W>(m.states + ((n * block.vectors + cv) * P + part) * W), LanesOf<T>(block, cv));
    }
    const Tile part{t0, block.channel, steps, block.channels};
    const Rows<const S> u_rows = RowsToRead(u, part, m.copies[0]), delta_rows = RowsToRead(delta, part, m.copies[1]);
    for (int64_t cv = 0; cv < block.vectors; ++cv) {
      const int64_t lanes = LanesOf<T>(block, cv);
      const Vec<T> shift = Load<W>(m.bias + cv * W), factor = Load<W>(m.skip + cv * W);
      for (int64_t t = 0; t < steps; ++t) {
        const Vec<T> sample = LoadLanes(u_rows.base + t * u_rows.stride + cv * W, lanes);
        const Vec<T> dt = StepSize<T>(p, LoadLanes(delta_rows.base + t * delta_rows.stride + cv * W, lanes) + shift);
        Store<W>(RowAt(m.dt, cv, t), dt);
        Store<W>(RowAt(m.input, cv, t), dt * sample);
        Store<W>(RowAt(m.y, cv, t), factor * sample);
      }
    }
    int64_t n = 0;
    for (; n + kStates <= p.states; n += kStates) FollowStates<kStates, S, P>(p, block, m, t0, steps, n);
    for (; n < p.states; ++n) FollowStates<1, S, P>(p, block, m, t0, steps, n);
    const Rows<const S> z_rows = p.z == nullptr ? Rows<const S>{} : RowsToRead(z, part, m.copies[0]);
    const Rows<S> y_rows = RowsToWrite(y, part, m.copies[1]);
    for (int64_t cv = 0; cv < block.vectors; ++cv) {
      const int64_t lanes = LanesOf<T>(block, cv);
      for (int64_t t = 0; t < steps; ++t) {
        Vec<T> sum = Load<W>(RowAt(m.y, cv, t));
        if (p.z != nullptr) sum *= Silu<W, T>(LoadLanes(z_rows.base + t * z_rows.stride + cv * W, lanes));
        StoreLanes(y_rows.base + t * y_rows.stride + cv * W, sum, lanes);
      }
    }
    PutRows(y, part, m.copies[1]);
  }
  if (p.final_state.data != nullptr) PutStates<T, P>(p.final_state, block, sequence, p.states, m.states);
}

template <class S, int P, class T = Compute<S>>
void ScanBlock(const convscan_selective &p, const SelectiveBlock &block, const Memory<S, P> &m) {
  const T *const bias = static_cast<const T *>(p.delta_bias), *const skip = static_cast<const T *>(p.d);
  FillRates<T, P>(p, block, m.rates);
  FillChannels(block, m.bias, [&](int64_t i) { return bias ? bias[(block.channel + i) * p.delta_bias_stride] : T(0); });
  FillChannels(block, m.skip, [&](int64_t i) { return skip ? skip[(block.channel + i) * p.d_stride] : T(0); });
  for (int64_t s = block.first_sequence; s < block.last_sequence; ++s) ScanSequence<S, P>(p, block, s, m);
}

template <class S, int P>
convscan_status Scan(const convscan_selective &p) {
  using T = Compute<S>;
  // Tasks for threads: of some sequences, then of fewer channels, but whole cache lines of them.
  constexpr int64_t kTasks = 16, kLeast = 16;
  const auto tasks = [&](int64_t width) { return p.batch * p.groups * CeilDiv(p.channels / p.groups, width); };
  int64_t width = kSelectiveChannels;
  const int64_t parts = Max(1, Min(p.sequences, CeilDiv(kTasks, Max(1, tasks(width)))));
  while (width > kLeast && tasks(width) * parts < kTasks) width /= 2;
  Arena counting(nullptr);
  Memory<S, P>(counting, p.states);
  const bool done =
      ForEachSelectiveTask<T>(p, width, parts, counting.Used(), [&](const SelectiveBlock &block, int64_t, void *memory) {
        Arena arena(memory);
        ScanBlock<S, P>(p, block, Memory<S, P>(arena, p.states));
      });
  return done ? CONVSCAN_OK : CONVSCAN_OUT_OF_MEMORY;
}

}  // namespace

convscan_status SelectiveOverChannels(const convscan_selective &problem) {
  return WithRealStorage(problem.dtype, [&]<class S>(Type<S>) {
    return problem.is_complex ? Scan<S, 2>(problem) : Scan<S, 1>(problem);
  });
}

}  // namespace convscan::CONVSCAN_ISA
