// The gradients of linear attention with decay, from the last tile of time to the first.
//
// With dS the gradient with respect to the state after a tile, D and P as in tile.h, and dP = dy v^T below the diagonal,
//
//   dv = P^T dy + w D[n-1,s] dS^T k               dS before the tile = D[n-1,-1] dS + sum_t D[t,-1] q[t] dy[t]^T
//   dq = D[t,-1] S dy + sum_s dP[t,s] w D[t,s] k  dk = w D[n-1,s] dS v + sum_t dP[t,s] w D[t,s] q
//
// The gradient of g[r] is the sum over all products that a[r] is a factor of: those from a step or the state before r to
// a step from r on, or to the state behind. All of them are added up and none is subtracted again, so that nothing
// cancels, and a[r] = 0 has the gradient zero exactly.
//
// States before tiles are not kept by the forward pass. One pass keeps them for every span of tiles, as many as there
// are tiles in a span; each span, from the last on, is then gone through again to have those of its tiles.
#include "chunk/state.h"
#include "chunk/tile.h"
#include "core/kernels.h"
#include "core/parallel.h"
#include "core/storage.h"
#include "core/workspace.h"

namespace convscan::CONVSCAN_ISA {
namespace {

constexpr int64_t kSmallProblem = 1 << 16;

template <class S, bool kPerKey>
class Gradient {
 public:
  using T = Compute<S>;
  static constexpr int W = kLanes<T>;

  explicit Gradient(const convscan_attention_gradient &problem) : g_(problem), p_(problem.forward) {
    in_group_ = p_.heads / p_.groups;
    blocks_ = CeilDiv(in_group_, g_.block);
    heads_ = Min(g_.block, in_group_);
    sizes_ = SizesOf<T>(p_.length, p_.keys, p_.values + (g_.has_sums != 0), kPerKey);
    int64_t longest = p_.boundaries == nullptr ? p_.length : 0;
    for (int64_t s = 0; p_.boundaries != nullptr && s < p_.sequences; ++s)
      longest = Max(longest, p_.boundaries[s + 1] - p_.boundaries[s]);
    span_ = 1;
    while (span_ * span_ * sizes_.steps < longest) ++span_;
    threads_ = p_.batch * p_.length * p_.heads * p_.keys * p_.values < kSmallProblem ? 1 : p_.threads;
  }

  convscan_status Run() const {
    Arena counting(nullptr);
    Memory().Take(counting, *this);
    bool failed = false;
    ParallelFor(p_.batch * p_.sequences * p_.groups * blocks_, threads_, [&](int64_t task) {
      void *const memory = Workspace(counting.Used());
      if (memory == nullptr) {
        __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
        return;
      }
      Arena arena(memory);
      Memory taken;
      taken.Take(arena, *this);
      Task(task, taken);
    });
    return failed ? CONVSCAN_OUT_OF_MEMORY : CONVSCAN_OK;
  }

 private:
  using Head = HeadTile<T, kPerKey>;

  struct Memory {
    KeyTile<T> keys;
    Head head;
    T *dy, *decayed_dy, *dv, *turned_v;  // [steps][values]; the last turned
    T *dq, *dk, *of_state;               // [steps][keys]
    T *dp, *dproducts;                   // [steps][steps]
    T *turned_state;                     // [values][keys]
    T *dg, *ends, *begins;               // like a
    T *dw, *later;                       // [steps]
    T *spans, *tiles, *dstates;          // states: [span][heads], [tiles of a span][heads], [heads]

    void Take(Arena &arena, const Gradient &of) {
      const TileSizes &s = of.sizes_;
      keys.Take(arena, s, kPerKey);
      head.Take(arena, s);
      T **const of_values[] = {&dy, &decayed_dy, &dv, &turned_v};
      for (T **const each : of_values) *each = arena.Take<T>(s.steps * s.values);
      T **const of_keys[] = {&dq, &dk, &of_state, &dg, &ends, &begins};
      for (T **const each : of_keys) *each = arena.Take<T>(s.steps * Max(s.keys, 1));
      T **const of_pairs[] = {&dp, &dproducts};
      for (T **const each : of_pairs) *each = arena.Take<T>(s.steps * s.steps);
      T **const of_steps[] = {&dw, &later};
      for (T **const each : of_steps) *each = arena.Take<T>(s.steps);
      turned_state = arena.Take<T>(s.values * s.keys);
      const int64_t states = of.heads_ * s.keys * s.values;
      spans = arena.Take<T>(of.span_ * states);
      tiles = arena.Take<T>(of.span_ * states);
      dstates = arena.Take<T>(states);
    }
  };

  // A task's heads, and the states of one of them.
  struct Place {
    int64_t batch, sequence, group, block, first, last, begin, end;
    int64_t Heads() const { return last - first; }
  };

  Place PlaceOf(int64_t task) const {
    Place at;
    at.block = task % blocks_;
    at.group = task / blocks_ % p_.groups;
    at.sequence = task / blocks_ / p_.groups % p_.sequences;
    at.batch = task / blocks_ / p_.groups / p_.sequences;
    at.first = at.group * in_group_ + at.block * g_.block;
    at.last = Min(at.first + g_.block, (at.group + 1) * in_group_);
    at.begin = p_.boundaries == nullptr ? 0 : p_.boundaries[at.sequence];
    at.end = p_.boundaries == nullptr ? p_.length : p_.boundaries[at.sequence + 1];
    return at;
  }

  Columns AllColumns() const { return {0, p_.values, g_.has_sums != 0}; }
  int64_t StateSize() const { return sizes_.keys * sizes_.values; }

  void Task(int64_t task, Memory &m) const {
    const Place at = PlaceOf(task);
    const int64_t size = StateSize(), all = at.Heads() * size, span_steps = span_ * sizes_.steps;
    const auto each_head = [&](const convscan_attention_state &from, T *to) {
      for (int64_t h = at.first; h < at.last; ++h)
        LoadState(from, p_, at.batch, at.sequence, h, AllColumns(), sizes_, to + (h - at.first) * size);
    };
    each_head(p_.initial, m.spans);
    each_head(g_.dfinal, m.dstates);
    const int64_t spans = CeilDiv(at.end - at.begin, span_steps);
    for (int64_t i = 0; i + 1 < spans; ++i) {
      Copy(all, m.spans + i * all, m.spans + (i + 1) * all);
      for (int64_t j = 0; j < span_; ++j)
        AdvanceStates(at, at.begin + i * span_steps + j * sizes_.steps, m, m.spans + (i + 1) * all);
    }
    for (int64_t i = spans - 1; i >= 0; --i) {
      const int64_t begin = at.begin + i * span_steps, tiles = CeilDiv(Min(span_steps, at.end - begin), sizes_.steps);
      Copy(all, m.spans + i * all, m.tiles);
      for (int64_t j = 0; j + 1 < tiles; ++j) {
        Copy(all, m.tiles + j * all, m.tiles + (j + 1) * all);
        AdvanceStates(at, begin + j * sizes_.steps, m, m.tiles + (j + 1) * all);
      }
      for (int64_t j = tiles - 1; j >= 0; --j) TileGradients(at, begin + j * sizes_.steps, m, m.tiles + j * all);
    }
    for (int64_t h = at.first; h < at.last; ++h)
      StoreState(g_.dinitial, p_, at.batch, at.sequence, h, AllColumns(), sizes_, m.dstates + (h - at.first) * size);
  }

  static void Copy(int64_t count, const T *from, T *to) {
    __builtin_memcpy(to, from, sizeof(T) * static_cast<size_t>(count));
  }

  void AdvanceStates(const Place &at, int64_t t, Memory &m, T *states) const {
    m.keys.template LoadPlain<S>(p_, sizes_, at.batch, at.group, t, Min(sizes_.steps, at.end - t));
    for (int64_t h = at.first; h < at.last; ++h) {
      m.head.template Load<S>(p_, m.keys, at.batch, h, t, AllColumns(), Head::For::state);
      m.head.Advance(m.keys, states + (h - at.first) * StateSize());
    }
  }

  void TileGradients(const Place &at, int64_t t, Memory &m, const T *states) const {
    const int64_t n = Min(sizes_.steps, at.end - t);
    m.keys.template Load<S>(p_, sizes_, kPerKey, at.batch, at.group, t, n);
    __builtin_memset(m.dq, 0, sizeof(T) * static_cast<size_t>(sizes_.steps * sizes_.keys));
    __builtin_memset(m.dk, 0, sizeof(T) * static_cast<size_t>(sizes_.steps * sizes_.keys));
    for (int64_t h = at.first; h < at.last; ++h) {
      m.head.template Load<S>(p_, m.keys, at.batch, h, t, AllColumns(), Head::For::output);
      LoadOutputGradient(at, h, t, m);
      HeadGradients(m, states + (h - at.first) * StateSize(), m.dstates + (h - at.first) * StateSize());
      StoreHead(at, h, t, m);
    }
    for (int64_t i = 0; i < n; ++i) ScaleRow(sizes_.keys, static_cast<T>(p_.scale), m.dq + i * sizes_.keys, m.dq + i * sizes_.keys);
    const auto block_of = [&](void *sums, int64_t stride) { return static_cast<T *>(sums) + at.block * stride; };
    Rows<T>(block_of(g_.dq, g_.dq_block_stride), g_.dq_strides, at.batch, t, at.group)
        .StoreFrom(n, p_.keys, m.dq, sizes_.keys);
    Rows<T>(block_of(g_.dk, g_.dk_block_stride), g_.dk_strides, at.batch, t, at.group)
        .StoreFrom(n, p_.keys, m.dk, sizes_.keys);
  }

  void LoadOutputGradient(const Place &at, int64_t h, int64_t t, Memory &m) const {
    const int64_t n = m.keys.n;
    Rows<S>(g_.dy, g_.dy_strides, at.batch, t, h).LoadInto(n, p_.values, T(1), m.dy, sizes_.values);
    if (g_.dsums == nullptr) return;
    const Rows<T> dsums(g_.dsums, g_.dsums_strides, at.batch, t, h);
    for (int64_t s = 0; s < n; ++s) m.dy[s * sizes_.values + p_.values] = dsums.At(s, 0);
  }

  void StoreHead(const Place &at, int64_t h, int64_t t, Memory &m) const {
    const int64_t n = m.keys.n;
    Rows<S>(g_.dv, g_.dv_strides, at.batch, t, h).StoreFrom(n, p_.values, m.dv, sizes_.values);
    if constexpr (kPerKey) {
      Rows<T>(g_.dg, g_.dg_strides, at.batch, t, h).StoreFrom(n, p_.keys, m.dg, sizes_.keys);
    } else {
      Rows<T>(g_.dg, g_.dg_strides, at.batch, t, h).StoreFrom(n, 1, m.dg, 1);
    }
    if (g_.dw != nullptr) Rows<T>(g_.dw, g_.dw_strides, at.batch, t, h).StoreFrom(n, 1, m.dw, 1);
  }

  // Adds to dq and dk, and fills dv, dg and dw; dstate becomes the gradient with respect to the state before the tile.
  void HeadGradients(Memory &m, const T *state, T *dstate) const {
    const int64_t n = m.keys.n, keys = sizes_.keys, values = sizes_.values, steps = sizes_.steps;
    const Head &head = m.head;
    // dP, and dv = P^T dy + w D[n-1,s] dS^T k.
    TurnTile(n, values, head.v, values, m.turned_v, steps);
    MultiplyToLower(n, values, m.dy, values, m.turned_v, steps, m.dp, steps);
    Multiply<false>(n, values, keys, RowMajor(kPerKey ? head.weighted : m.keys.k, keys), dstate, values, m.dv, values);
    if constexpr (!kPerKey)
      for (int64_t s = 0; s < n; ++s) {
        T *const row = m.dv + s * values;
        m.begins[s] = head.to_end[s] * Dot(values, head.v + s * values, row);  // times w: what leaves s for the end
        m.dw[s] = m.begins[s];
        m.begins[s] *= head.w[s];
        ScaleRow(values, head.w[s] * head.to_end[s], row, row);
      }
    MultiplyUpper(n, values, head.p, steps, m.dy, values, m.dv, values);
    if constexpr (kPerKey) {
      KeyGradients(m, state, dstate);
    } else {
      StepGradients(m, state, dstate);
    }
  }

  // One decay a step.
  void StepGradients(Memory &m, const T *state, T *dstate) const {
    const int64_t n = m.keys.n, keys = sizes_.keys, values = sizes_.values, steps = sizes_.steps;
    const Head &head = m.head;
    for (int64_t t = 0; t < n; ++t) ScaleRow(values, head.from_start[t], m.dy + t * values, m.decayed_dy + t * values);
    // What ends at t coming from the state before, dq += D[t,-1] S dy.
    TransposeTile(keys, values, state, values, m.turned_state, keys);
    Multiply<false>(n, keys, values, RowMajor(m.decayed_dy, values), m.turned_state, keys, m.of_state, keys);
    for (int64_t t = 0; t < n; ++t) m.ends[t] = Dot(keys, m.keys.q + t * keys, m.of_state + t * keys);
    Add(n * keys, m.of_state, m.dq);
    // dk += w D[n-1,s] dS v.
    TransposeTile(keys, values, dstate, values, m.turned_state, keys);
    Multiply<true>(n, keys, values, RowMajor(head.weighted, values), m.turned_state, keys, m.dk, keys);
    // Pairs of steps: dP w D, which q and k are multiplied with, and dP P, what a product through r has.
    for (int64_t t = 0; t < n; ++t) {
      const int64_t row = t * steps, end = t / kBlock * kBlock + kBlock;
      for (int64_t s = 0; s < end; s += W) {
        const Vec<T> decayed = LoadVector(m.dp + row + s) * LoadVector(head.d + row + s);
        Store<W>(m.dproducts + row + s, decayed * LoadVector(head.w + s));
        Store<W>(m.dp + row + s, decayed * LoadVector(m.keys.products + row + s));
      }
      for (int64_t s = t + 1; s < end; ++s) m.dproducts[row + s] = m.dp[row + s] = 0;
      for (int64_t s = 0; s < end; s += W) {
        Store<W>(m.dw + s, LoadVector(m.dw + s) + LoadVector(m.dp + row + s));
        Store<W>(m.dp + row + s, LoadVector(m.dp + row + s) * LoadVector(head.w + s));
      }
    }
    MultiplyLower(n, keys, m.dproducts, steps, m.keys.k, keys, m.dq, keys);
    MultiplyUpper(n, keys, m.dproducts, steps, m.keys.q, keys, m.dk, keys);
    // dg[r] sums what comes from before r and ends at r or later.
    const T total = head.from_start[n - 1] * Dot(keys * values, state, dstate);
    T *const later = m.later;  // of each s < r, the sum over t >= r of dP P
    for (int64_t s = 0; s < steps; ++s) later[s] = 0;
    T from_before = 0;
    for (int64_t r = n - 1; r >= 0; --r) {
      from_before += m.ends[r];
      Vec<T> sums{};
      for (int64_t s = 0; s <= r; s += W) {
        Store<W>(later + s, LoadVector(later + s) + LoadVector(m.dp + r * steps + s));
        if (s + W > r) later[r] = 0;  // nor is it needed any more: later ones are zero already
        sums += LoadVector(later + s);
      }
      T sum = total + from_before;
      for (int lane = 0; lane < W; ++lane) sum += sums[lane];
      m.dg[r] = sum;
    }
    T to_end = 0;
    for (int64_t r = 0; r < n; ++r) {
      m.dg[r] += to_end;
      to_end += m.begins[r];
    }
    head.DecayState(n, dstate);
    Multiply<true>(keys, values, n, RowMajor(m.keys.q, keys).Transposed(), m.decayed_dy, values, dstate, values);
  }

  // One decay a key.
  void KeyGradients(Memory &m, const T *state, T *dstate) const {
    const int64_t n = m.keys.n, keys = sizes_.keys, values = sizes_.values;
    const Head &head = m.head;
    TransposeTile(keys, values, state, values, m.turned_state, keys);
    Multiply<false>(n, keys, values, RowMajor(m.dy, values), m.turned_state, keys, m.of_state, keys);
    for (int64_t i = 0; i < n * keys; i += W) {
      const Vec<T> dq = LoadVector(m.of_state + i);
      Store<W>(m.ends + i, dq * LoadVector(head.decayed_q + i));
      Store<W>(m.dq + i, LoadVector(m.dq + i) + dq * LoadVector(head.from_start + i));
    }
    TransposeTile(keys, values, dstate, values, m.turned_state, keys);
    Multiply<false>(n, keys, values, RowMajor(head.v, values), m.turned_state, keys, m.of_state, keys);
    for (int64_t s = 0; s < n; ++s) {
      Vec<T> dw{};
      for (int64_t i = s * keys; i < (s + 1) * keys; i += W) {
        const Vec<T> dk = LoadVector(m.of_state + i) * LoadVector(head.to_end + i), k = LoadVector(m.keys.k + i);
        dw += dk * k;
        Store<W>(m.begins + i, dk * k * head.w[s]);
        Store<W>(m.dk + i, LoadVector(m.dk + i) + dk * head.w[s]);
      }
      m.dw[s] = 0;
      for (int lane = 0; lane < W; ++lane) m.dw[s] += dw[lane];
    }
    for (int64_t i = 0; i < keys; i += W) {
      Vec<T> total{};
      for (int64_t lane = 0; lane < W; ++lane)
        total[lane] = Dot(values, state + (i + lane) * values, dstate + (i + lane) * values);
      total *= LoadVector(head.from_start + (n - 1) * keys + i);
      Vec<T> from_before{}, to_end{};
      for (int64_t r = n - 1; r >= 0; --r) {
        from_before += LoadVector(m.ends + r * keys + i);
        Store<W>(m.dg + r * keys + i, total + from_before);
      }
      for (int64_t r = 0; r < n; ++r) {
        Store<W>(m.dg + r * keys + i, LoadVector(m.dg + r * keys + i) + to_end);
        to_end += LoadVector(m.begins + r * keys + i);
      }
      for (int64_t s = n - 1; s >= 0; --s) PairGradients(m, s, i);
    }
    head.DecayState(n, dstate);
    Multiply<true>(keys, values, n, RowMajor(head.decayed_q, keys).Transposed(), m.dy, values, dstate, values);
  }

  // The pairs of step s with those from it on, W keys from i on.
  CONVSCAN_INLINE void PairGradients(Memory &m, int64_t s, int64_t i) const {
    const int64_t n = m.keys.n, keys = sizes_.keys;
    const Head &head = m.head;
    Vec<T> reach[kStepsPerKey];  // k[s] D[t,s]
    Vec<T> decayed = LoadVector(m.keys.k + s * keys + i);
    for (int64_t t = s; t < n; ++t) {
      if (t > s) decayed *= LoadVector(head.a + t * keys + i);
      reach[t] = decayed;
      const Vec<T> dq = decayed * (m.dp[t * sizes_.steps + s] * head.w[s]);
      Store<W>(m.dq + t * keys + i, LoadVector(m.dq + t * keys + i) + dq);
    }
    Vec<T> dreach{};  // what is to be had of k[s] D[t,s], but for w[s]
    for (int64_t t = n - 1; t >= s; --t) {
      dreach += LoadVector(m.keys.q + t * keys + i) * m.dp[t * sizes_.steps + s];
      if (t == s) break;
      const Vec<T> through = dreach * reach[t] * head.w[s];
      Store<W>(m.dg + t * keys + i, LoadVector(m.dg + t * keys + i) + through);
      dreach *= LoadVector(head.a + t * keys + i);
    }
    Store<W>(m.dk + s * keys + i, LoadVector(m.dk + s * keys + i) + dreach * head.w[s]);
    const Vec<T> dw = dreach * LoadVector(m.keys.k + s * keys + i);
    for (int lane = 0; lane < W; ++lane) m.dw[s] += dw[lane];
  }

  static void Add(int64_t count, const T *from, T *to) {
    for (int64_t i = 0; i < count; i += W) Store<W>(to + i, LoadVector(to + i) + LoadVector(from + i));
  }

  const convscan_attention_gradient &g_;
  const convscan_attention &p_;
  int64_t in_group_, blocks_, heads_;  // heads of a group, tasks of a group, most heads of a task
  int64_t span_;                       // tiles of a span, and at most as many spans
  int threads_;
  TileSizes sizes_;
};

}  // namespace

convscan_status AttentionGradientChunked(const convscan_attention_gradient &problem) {
  return WithRealStorage(problem.forward.dtype, [&]<class S>(Type<S>) {
    return problem.forward.per_key ? Gradient<S, true>(problem).Run() : Gradient<S, false>(problem).Run();
  });
}

}  // namespace convscan::CONVSCAN_ISA
