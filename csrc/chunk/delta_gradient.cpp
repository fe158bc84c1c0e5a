// The gradients of the gated delta rule, tile by tile from the end; chunk/delta.h has the names.
//
//   du = P^T dy + (D[n-1,s] k[s])^T dS,   w[t] = du[t] - sum_{s>t} M[s,t] b[s],   b = beta w
//   dv = b,   dbeta = w x,   dM[t,s] = -b[t] u[s],   dP[t,s] = dy[t] u[s]
//   dS = D[n-1,-1] dS + sum_t (D[t,-1] q[t]) dy[t]^T - (D[t,-1] k[t]) b[t]^T
//
// Decays enter as D[t,s] only: the gradient of the running sum of g at t is what the factors at t add up to (q dq, and
// k dk of the reader) less what those at s do (k dk of the writer), and that of g the sum of these behind it. The state
// before a tile is computed again, from checkpoints a square root of the tiles apart.
#include "chunk/delta.h"
#include "core/kernels.h"
#include "core/parallel.h"
#include "core/storage.h"
#include "core/workspace.h"

namespace convscan::CONVSCAN_ISA {
namespace {

template <class T>
struct GradientTile {
  static constexpr int W = kLanes<T>;
  static constexpr int64_t kSteps = kDeltaSteps;

  DeltaSizes<T> sizes;
  T *dy_b;                      // [2 n][values]: dy, then b
  T *w;                         // [steps][values]: du, then w
  T *by_keys;                   // [2 n][keys]: dy_b times the transposed state
  T *d_written;                 // [steps][keys]
  T *by_steps;                  // [2 n][steps]: dy_b times the transposed u
  T *dq, *dk_reader, *dk, *dg;  // [steps][keys]; dk of the writer, then of both
  T *dbeta;                     // [steps]
  T *turned;                    // [values][keys] or [values][steps]

  explicit GradientTile(const DeltaSizes<T> &sizes) : sizes(sizes) {}

  void Take(Arena &arena) {
    dy_b = arena.Take<T>(2 * kSteps * sizes.values);
    w = arena.Take<T>(kSteps * sizes.values);
    by_keys = arena.Take<T>(2 * kSteps * sizes.keys);
    by_steps = arena.Take<T>(2 * kSteps * kSteps);
    T **const of_keys[] = {&d_written, &dq, &dk_reader, &dk, &dg};
    for (T **array : of_keys) *array = arena.Take<T>(kSteps * sizes.keys);
    dbeta = arena.Take<T>(kSteps);
    turned = arena.Take<T>(sizes.values * Max(sizes.keys, kSteps));
  }

  // `tile` is solved at `state`, dy is in dy_b; dstate is that of the state after the tile, then of the one before it.
  void Run(const DeltaTile<T> &tile, const T *state, T *dstate) {
    const int64_t n = tile.n, row = sizes.values;
    T *const b = dy_b + n * row;
    Multiply<false>(n, row, n, RowMajor(tile.p, kSteps).Transposed(), dy_b, row, w, row);
    Multiply<true>(n, row, sizes.keys, RowMajor(tile.written, sizes.keys), dstate, row, w, row);
    for (int64_t t = n - 1; t >= 0; --t) {
      Vec<T> sum{};
      for (int64_t c = 0; c < row; c += W) {
        Vec<T> rest = At(w + t * row + c);
        for (int64_t s = t + 1; s < n; ++s) rest -= tile.m[s * kSteps + t] * At(b + s * row + c);
        Store<W>(w + t * row + c, rest);
        Store<W>(b + t * row + c, rest * tile.beta[t]);
        sum += rest * At(tile.x + t * row + c);
      }
      dbeta[t] = SumOf<T>(sum);
    }
    MultiplyTransposed<false>(2 * n, sizes.keys, row, RowMajor(dy_b, row), state, row, by_keys, sizes.keys, turned,
                              sizes.keys);
    MultiplyTransposed<false>(n, sizes.keys, row, RowMajor(tile.u, row), dstate, row, d_written, sizes.keys, turned,
                              sizes.keys);
    MultiplyTransposed<false>(2 * n, n, row, RowMajor(dy_b, row), tile.u, row, by_steps, kSteps, turned, kSteps);
    Decays(tile, state, dstate);
    tile.DecayState(dstate);
    Multiply<true>(sizes.keys, row, 2 * n, RowMajor(tile.read, sizes.keys).Transposed(), dy_b, row, dstate, row);
  }

 private:
  CONVSCAN_INLINE static Vec<T> At(const T *p) { return Load<W>(p); }

  // The gradients that pass through decays: of q, k and g.
  void Decays(const DeltaTile<T> &tile, const T *state, const T *dstate) {
    const int64_t n = tile.n, row = sizes.keys;
    // What the last step's decay to the end adds up to: the decayed state's part, then what is written.
    for (int64_t i = 0; i < row; ++i) {
      Vec<T> sum{};
      for (int64_t c = 0; c < sizes.values; c += W)
        sum += At(state + i * sizes.values + c) * At(dstate + i * sizes.values + c);
      dg[(n - 1) * row + i] = tile.from_start[(n - 1) * row + i] * SumOf<T>(sum);
    }
    for (int64_t i = 0; i < row; i += W) {
      Vec<T> at_end = At(dg + (n - 1) * row + i);
      for (int64_t t = 0; t < n; ++t) {
        const Vec<T> decay = At(tile.from_start + t * row + i);
        Store<W>(dq + t * row + i, decay * At(by_keys + t * row + i));
        Store<W>(dk_reader + t * row + i, -decay * At(by_keys + (n + t) * row + i));
        at_end += At(tile.written + t * row + i) * At(d_written + t * row + i);
      }
      for (int64_t s = 0; s < n; ++s) {
        const Vec<T> key = At(tile.k + s * row + i);
        const T own = by_steps[s * kSteps + s];
        Vec<T> writer = own * At(tile.q + s * row + i) + At(tile.to_end + s * row + i) * At(d_written + s * row + i);
        Store<W>(dq + s * row + i, At(dq + s * row + i) + own * key);
        Vec<T> decay = Broadcast<T>(1);
        for (int64_t t = s + 1; t < n; ++t) {
          decay *= At(tile.a + t * row + i);
          const Vec<T> moved = decay * key;
          const T dp = by_steps[t * kSteps + s], dm = -by_steps[(n + t) * kSteps + s];
          Store<W>(dq + t * row + i, At(dq + t * row + i) + dp * moved);
          Store<W>(dk_reader + t * row + i, At(dk_reader + t * row + i) + dm * moved);
          writer += decay * (dp * At(tile.q + t * row + i) + dm * At(tile.k + t * row + i));
        }
        Store<W>(dk + s * row + i, writer);
      }
      Vec<T> behind = at_end;
      for (int64_t t = n - 1; t >= 0; --t) {
        const Vec<T> key = At(tile.k + t * row + i), reader = At(dk_reader + t * row + i);
        const Vec<T> writer = At(dk + t * row + i);
        behind += At(tile.q + t * row + i) * At(dq + t * row + i) + key * (reader - writer);
        // Nothing passes a closed gate, whatever cancels behind it only nearly.
        Store<W>(dg + t * row + i, At(tile.a + t * row + i) == 0 ? Vec<T>{} : behind);
        Store<W>(dk + t * row + i, reader + writer);
      }
    }
  }
};

template <class S>
class Gradient {
 public:
  using T = Compute<S>;

  explicit Gradient(const convscan_delta_rule_gradient &problem) : g_(problem), p_(problem.forward), sizes_(p_) {
    int64_t longest = p_.length;
    if (p_.boundaries != nullptr) {
      longest = 0;
      for (int64_t s = 0; s < p_.sequences; ++s) longest = Max(longest, p_.boundaries[s + 1] - p_.boundaries[s]);
    }
    const int64_t tiles = CeilDiv(longest, kDeltaSteps);
    while (span_ * span_ < tiles) ++span_;
    checkpoints_ = CeilDiv(tiles, span_);
  }

  convscan_status Run() const {
    Arena counting(nullptr);
    Memory(counting, *this);
    bool failed = false;
    ParallelFor(p_.batch * p_.sequences * p_.heads, p_.threads, [&](int64_t task) {
      void *const block = Workspace(counting.Used());
      if (block == nullptr) {
        __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
        return;
      }
      Arena arena(block);
      Memory memory(arena, *this);
      Task(task % p_.heads, task / p_.heads % p_.sequences, task / p_.heads / p_.sequences, memory);
    });
    return failed ? CONVSCAN_OUT_OF_MEMORY : CONVSCAN_OK;
  }

 private:
  struct Memory {
    DeltaTile<T> tile;
    GradientTile<T> gradient;
    T *checkpoints, *states, *dstate;

    Memory(Arena &arena, const Gradient &of) : tile(of.p_), gradient(of.sizes_) {
      tile.Take(arena);
      gradient.Take(arena);
      checkpoints = arena.Take<T>(Max(1, of.checkpoints_) * of.sizes_.State());
      states = arena.Take<T>(of.span_ * of.sizes_.State());
      dstate = arena.Take<T>(of.sizes_.State());
    }
  };

  void Clear(T *state) const { __builtin_memset(state, 0, sizeof(T) * static_cast<size_t>(sizes_.State())); }
  void Copy(T *to, const T *from) const {
    __builtin_memcpy(to, from, sizeof(T) * static_cast<size_t>(sizes_.State()));
  }

  void Task(int64_t head, int64_t sequence, int64_t batch, Memory &memory) const {
    const int64_t begin = p_.boundaries == nullptr ? 0 : p_.boundaries[sequence];
    const int64_t end = p_.boundaries == nullptr ? p_.length : p_.boundaries[sequence + 1];
    const int64_t tiles = CeilDiv(end - begin, kDeltaSteps), state = sizes_.State();
    DeltaTile<T> &tile = memory.tile;
    const auto read = [&](int64_t i) {
      const int64_t t = begin + i * kDeltaSteps;
      tile.template Read<S>(p_, batch, head, t, Min(kDeltaSteps, end - t));
    };
    // Padding stays zero: every state is made of the first.
    T *const first = memory.checkpoints;
    Clear(first);
    if (p_.initial != nullptr)
      MoveState<false>(static_cast<T *>(const_cast<void *>(p_.initial)), p_.initial_strides, p_, batch, sequence, head,
                       first, sizes_.values);
    const int64_t stretches = CeilDiv(tiles, span_);
    for (int64_t i = 0; i < (stretches - 1) * span_; ++i) {
      T *const from = memory.checkpoints + i / span_ * state;
      if (i % span_ == 0) Copy(memory.states, from);
      read(i);
      tile.Solve(memory.states, nullptr);
      tile.Advance(memory.states);
      if ((i + 1) % span_ == 0) Copy(from + state, memory.states);
    }
    Clear(memory.dstate);
    if (g_.dlast != nullptr)
      MoveState<false>(static_cast<T *>(const_cast<void *>(g_.dlast)), g_.dlast_strides, p_, batch, sequence, head,
                       memory.dstate, sizes_.values);
    for (int64_t stretch = stretches - 1; stretch >= 0; --stretch) {
      const int64_t start = stretch * span_, stop = Min(start + span_, tiles);
      Copy(memory.states, memory.checkpoints + stretch * state);
      for (int64_t i = start; i + 1 < stop; ++i) {
        T *const from = memory.states + (i - start) * state;
        read(i);
        tile.Solve(from, nullptr);
        Copy(from + state, from);
        tile.Advance(from + state);
      }
      for (int64_t i = stop - 1; i >= start; --i) {
        const T *const from = memory.states + (i - start) * state;
        read(i);
        tile.Solve(from, nullptr);
        const int64_t t = begin + i * kDeltaSteps;
        Rows<S>(g_.dy, g_.dy_strides, batch, t, head)
            .LoadInto(tile.n, p_.values, T(1), memory.gradient.dy_b, sizes_.values);
        memory.gradient.Run(tile, from, memory.dstate);
        StoreTile(memory, batch, head, t);
      }
    }
    if (g_.dinitial != nullptr)
      MoveState<true>(static_cast<T *>(g_.dinitial), g_.dinitial_strides, p_, batch, sequence, head, memory.dstate,
                      sizes_.values);
  }

  void StoreTile(const Memory &memory, int64_t batch, int64_t head, int64_t t) const {
    const GradientTile<T> &of = memory.gradient;
    const int64_t n = memory.tile.n;
    ScaleRow(n * sizes_.keys, static_cast<T>(p_.scale), of.dq, of.dq);
    Rows<T>(g_.dq, g_.dq_strides, batch, t, head).StoreFrom(n, p_.keys, of.dq, sizes_.keys);
    Rows<T>(g_.dk, g_.dk_strides, batch, t, head).StoreFrom(n, p_.keys, of.dk, sizes_.keys);
    Rows<S>(g_.dv, g_.dv_strides, batch, t, head)
        .StoreFrom(n, p_.values, of.dy_b + n * sizes_.values, sizes_.values);
    Rows<T>(g_.dbeta, g_.dbeta_strides, batch, t, head).StoreFrom(n, 1, of.dbeta, 1);
    const Rows<T> dg(g_.dg, g_.dg_strides, batch, t, head);
    if (p_.per_key) return dg.StoreFrom(n, p_.keys, of.dg, sizes_.keys);
    for (int64_t s = 0; s < n; ++s) {
      T sum = 0;
      for (int64_t i = 0; i < p_.keys; ++i) sum += of.dg[s * sizes_.keys + i];
      dg.Set(s, 0, sum);
    }
  }

  const convscan_delta_rule_gradient &g_;
  const convscan_delta_rule &p_;
  DeltaSizes<T> sizes_;
  int64_t span_ = 1, checkpoints_;  // tiles between checkpoints
};

}  // namespace

convscan_status DeltaRuleGradientChunked(const convscan_delta_rule_gradient &problem) {
  return WithRealStorage(problem.forward.dtype, [&]<class S>(Type<S>) { return Gradient<S>(problem).Run(); });
}

}  // namespace convscan::CONVSCAN_ISA
