// One step of linear attention with decay, in place: the state is read and written once, by rows of consecutive numbers.
#include "chunk/rows.h"
#include "core/arena.h"
#include "core/kernels.h"
#include "core/parallel.h"
#include "core/storage.h"
#include "core/workspace.h"

namespace convscan::CONVSCAN_ISA {
namespace {

// Rows of the state at a time.
constexpr int kRows = 4;
// Below this many bytes of states, waking threads takes longer than the step.
constexpr int64_t kSmallStates = 1 << 18;

template <class S>
class Step {
 public:
  using T = Compute<S>;
  static constexpr int W = kLanes<T>;

  explicit Step(const convscan_attention_step &problem) : p_(problem) {}

  convscan_status Run() const {
    Arena counting(nullptr);
    Memory().Take(counting, p_);
    const int64_t heads = p_.batch * p_.heads, bytes = heads * p_.keys * p_.values * static_cast<int64_t>(sizeof(T));
    bool failed = false;
    ParallelFor(heads, bytes < kSmallStates ? 1 : p_.threads, [&](int64_t task) {
      void *const memory = Workspace(counting.Used());
      if (memory == nullptr) {
        __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
        return;
      }
      Arena arena(memory);
      Memory taken;
      taken.Take(arena, p_);
      Head(task / p_.heads, task % p_.heads, taken);
    });
    return failed ? CONVSCAN_OUT_OF_MEMORY : CONVSCAN_OK;
  }

 private:
  static int64_t Whole(int64_t count) { return CeilDiv(count, W) * W; }

  struct Memory {
    T *a, *q, *k;  // [keys]: decays, scaled queries, weighted keys
    T *v, *y;      // [values]

    void Take(Arena &arena, const convscan_attention_step &p) {
      T **const of_keys[] = {&a, &q, &k};
      for (T **const each : of_keys) *each = arena.Take<T>(Whole(p.keys));
      T **const of_values[] = {&v, &y};
      for (T **const each : of_values) *each = arena.Take<T>(Whole(p.values));
    }
  };

  // The one step of a head, as rows of an array without time.
  template <class Stored>
  static Rows<Stored> At(const void *array, const convscan_step_strides &s, int64_t batch, int64_t head) {
    return Rows<Stored>(array, {s.batch, 0, s.head, s.channel}, batch, 0, head);
  }

  static T ExpOf(T x) { return FlushNumber(Exp<1, T>(Vec<T, 1>{x})[0]); }
  static T SoftplusOf(T x) { return Softplus<1, T>(Vec<T, 1>{x})[0]; }
  static T Number(const void *array, int64_t at) { return static_cast<const T *>(array)[at]; }

  void Head(int64_t batch, int64_t head, Memory &m) const {
    const int64_t group = head / (p_.heads / p_.groups), keys = Whole(p_.keys);
    T weight = 1, floor = 0;
    switch (p_.gates) {
      case CONVSCAN_GATES_DECAY: {
        const Rows<T> g = At<T>(p_.g, p_.g_strides, batch, head);
        if (p_.per_key) {
          g.LoadInto(1, p_.keys, T(1), m.a, keys);
          ExpInPlace(keys, m.a);
        } else {
          Fill(keys, ExpOf(g.At(0, 0)), m.a);
        }
        break;
      }
      case CONVSCAN_GATES_SSD: {
        const T bias = p_.bias == nullptr ? T(0) : Number(p_.bias, head * p_.bias_stride);
        const T dt = At<T>(p_.g, p_.g_strides, batch, head).At(0, 0) + bias;
        weight = p_.softplus ? SoftplusOf(dt) : dt;
        Fill(keys, ExpOf(weight * Number(p_.rate, head * p_.rate_stride)), m.a);
        break;
      }
      case CONVSCAN_GATES_MLSTM: {
        T &stabiliser = static_cast<T *>(p_.m)[batch * p_.m_strides[0] + head * p_.m_strides[1]];
        const T i = Closed(At<T>(p_.i, p_.i_strides, batch, head).At(0, 0));
        const T f = At<T>(p_.g, p_.g_strides, batch, head).At(0, 0);
        const T kept = Closed(-SoftplusOf(-f)) + stabiliser, next = kept > i ? kept : i;
        weight = ExpOf(i - next);
        Fill(keys, ExpOf(kept - next), m.a);
        // Where exp(-m) would overflow, y is zero long before.
        constexpr T kMost = sizeof(T) == 4 ? T(80) : T(700);
        floor = ExpOf(-next > kMost ? kMost : -next);
        stabiliser = next;
        break;
      }
    }
    At<S>(p_.q, p_.q_strides, batch, group).LoadInto(1, p_.keys, static_cast<T>(p_.scale), m.q, keys);
    At<S>(p_.k, p_.k_strides, batch, group).LoadInto(1, p_.keys, weight, m.k, keys);
    At<S>(p_.v, p_.v_strides, batch, head).LoadInto(1, p_.values, T(1), m.v, Whole(p_.values));
    T *const state = static_cast<T *>(p_.s) + batch * p_.s_strides[0] + head * p_.s_strides[1];
    if (p_.s_strides[3] == 1) RowsOfValues(m, state);
    else if (p_.s_strides[2] == 1) RowsOfKeys(m, state);
    else AnyOrder(m, state);
    T divisor = 1;
    if (p_.gates == CONVSCAN_GATES_MLSTM) {
      T *const n = static_cast<T *>(p_.n) + batch * p_.n_strides[0] + head * p_.n_strides[1];
      T sum = 0;
      for (int64_t i = 0; i < p_.keys; ++i) {
        T &number = n[i * p_.n_strides[2]];
        number = number * m.a[i] + m.k[i];
        sum += number * m.q[i];
      }
      sum = sum < 0 ? -sum : sum;
      divisor = (sum < floor ? floor : sum) + static_cast<T>(p_.eps);
    }
    Finish(batch, head, divisor, m);
  }

  // Gates beyond this are as closed, or as open, as any.
  static T Closed(T x) {
    constexpr T kEnd = T(1e4);
    return x < -kEnd ? -kEnd : x > kEnd ? kEnd : x;
  }

  static void Fill(int64_t count, T value, T *to) {
    for (int64_t i = 0; i < count; ++i) to[i] = value;
  }

  // Consecutive values: four keys at a time share what is loaded of v and y. Their numbers are kept in registers, for all
  // the compiler knows a store to the state may change them.
  void RowsOfValues(const Memory &m, T *state) const {
    for (int64_t c = 0; c < p_.values; ++c) m.y[c] = 0;
    int64_t i = 0;
    for (; i + kRows <= p_.keys; i += kRows) KeysOf<kRows>(m, i, state + i * p_.s_strides[2]);
    for (; i < p_.keys; ++i) KeysOf<1>(m, i, state + i * p_.s_strides[2]);
  }

  template <int N>
  void KeysOf(const Memory &m, int64_t i, T *s) const {
    const int64_t row = p_.s_strides[2], values = p_.values;
    Vec<T> a[N], k[N], q[N];
#pragma GCC unroll 4
    for (int r = 0; r < N; ++r) {
      a[r] = Broadcast<T>(m.a[i + r]);
      k[r] = Broadcast<T>(m.k[i + r]);
      q[r] = Broadcast<T>(m.q[i + r]);
    }
    int64_t c = 0;
    for (; c + W <= values; c += W) {
      const Vec<T> v = Load<W>(m.v + c);
      Vec<T> y = Load<W>(m.y + c);
#pragma GCC unroll 4
      for (int r = 0; r < N; ++r) {
        const Vec<T> next = Load<W>(s + r * row + c) * a[r] + v * k[r];
        Store<W>(s + r * row + c, next);
        y += next * q[r];
      }
      Store<W>(m.y + c, y);
    }
    for (; c < values; ++c)
      for (int r = 0; r < N; ++r) {
        T &number = s[r * row + c];
        number = number * m.a[i + r] + m.v[c] * m.k[i + r];
        m.y[c] += number * m.q[i + r];
      }
  }

  // Consecutive keys: four values at a time share what is loaded of decays, keys and queries.
  void RowsOfKeys(const Memory &m, T *state) const {
    int64_t c = 0;
    for (; c + kRows <= p_.values; c += kRows) ValuesOf<kRows>(m, c, state + c * p_.s_strides[3]);
    for (; c < p_.values; ++c) ValuesOf<1>(m, c, state + c * p_.s_strides[3]);
  }

  template <int N>
  void ValuesOf(const Memory &m, int64_t c, T *s) const {
    const int64_t row = p_.s_strides[3], keys = p_.keys;
    Vec<T> v[N], sums[N];
#pragma GCC unroll 4
    for (int r = 0; r < N; ++r) {
      v[r] = Broadcast<T>(m.v[c + r]);
      sums[r] = Vec<T>{};
    }
    int64_t i = 0;
    for (; i + W <= keys; i += W) {
      const Vec<T> a = Load<W>(m.a + i), k = Load<W>(m.k + i), q = Load<W>(m.q + i);
#pragma GCC unroll 4
      for (int r = 0; r < N; ++r) {
        const Vec<T> next = Load<W>(s + r * row + i) * a + k * v[r];
        Store<W>(s + r * row + i, next);
        sums[r] += next * q;
      }
    }
    for (int r = 0; r < N; ++r) {
      T sum = 0;
      for (int lane = 0; lane < W; ++lane) sum += sums[r][lane];
      for (int64_t rest = i; rest < keys; ++rest) {
        T &number = s[r * row + rest];
        number = number * m.a[rest] + m.k[rest] * m.v[c + r];
        sum += number * m.q[rest];
      }
      m.y[c + r] = sum;
    }
  }

  void AnyOrder(const Memory &m, T *state) const {
    for (int64_t c = 0; c < p_.values; ++c) {
      m.y[c] = 0;
      for (int64_t i = 0; i < p_.keys; ++i) {
        T &number = state[i * p_.s_strides[2] + c * p_.s_strides[3]];
        number = number * m.a[i] + m.k[i] * m.v[c];
        m.y[c] += number * m.q[i];
      }
    }
  }

  // y = silu(z) (y / divisor + skip v).
  void Finish(int64_t batch, int64_t head, T divisor, const Memory &m) const {
    const Rows<S> y = At<S>(p_.y, p_.y_strides, batch, head), z = At<S>(p_.z, p_.z_strides, batch, head);
    const T *const skip = static_cast<const T *>(p_.skip) + (p_.skip == nullptr ? 0 : head * p_.skip_head_stride);
    for (int64_t c = 0; c < p_.values; c += W) {
      const int64_t count = Min(W, p_.values - c);
      Vec<T> result = Load<W>(m.y + c) / divisor;
      if (p_.skip != nullptr || p_.z != nullptr) {
        T factors[W] = {}, gates[W] = {};
        for (int64_t i = 0; i < count; ++i) {
          if (p_.skip != nullptr) factors[i] = skip[(c + i) * p_.skip_channel_stride];
          if (p_.z != nullptr) gates[i] = z.At(0, c + i);
        }
        result += Load<W>(factors) * Load<W>(m.v + c);
        if (p_.z != nullptr) {
          const Vec<T> gate = Load<W>(gates);
          result *= gate / (1 + Exp<W, T>(-gate));
        }
      }
      for (int64_t i = 0; i < count; ++i) y.Set(0, c + i, result[i]);
    }
  }

  const convscan_attention_step &p_;
};

}  // namespace

convscan_status AttentionStep(const convscan_attention_step &problem) {
  return WithRealStorage(problem.dtype, [&]<class S>(Type<S>) { return Step<S>(problem).Run(); });
}

}  // namespace convscan::CONVSCAN_ISA
