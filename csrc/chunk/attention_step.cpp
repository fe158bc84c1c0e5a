// One step of linear attention with decay, or of the gated delta rule, in place: the gates of every kind of it, around the
// step on a head's state of step.h.
#include "chunk/step.h"
#include "core/arena.h"
#include "core/kernels.h"
#include "core/parallel.h"
#include "core/storage.h"
#include "core/workspace.h"

namespace convscan::CONVSCAN_ISA {
namespace {

// Below this many bytes of states, two threads are no faster than one: 4.5 and 4.4 us at half of it in the caches, 16.3 and
// 19.4 out of memory; 39 and 27 us, 105 and 77 at twice of it.
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
    ParallelShares(heads, bytes < kSmallStates ? 1 : p_.threads, [&](int64_t begin, int64_t end) {
      void *const memory = Workspace(counting.Used());
      if (memory == nullptr) {
        __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
        return;
      }
      Arena arena(memory);
      Memory taken;
      taken.Take(arena, p_);
      for (int64_t i = begin; i < end; ++i) Head(i / p_.heads, i % p_.heads, taken);
    });
    return failed ? CONVSCAN_OUT_OF_MEMORY : CONVSCAN_OK;
  }

 private:
  static int64_t Whole(int64_t count) { return CeilDiv(count, W) * W; }

  struct Memory {
    T *a, *q, *k;  // [keys]: decays, scaled queries, weighted keys
    T *ak, *aq;    // [keys]: products of decays with keys and queries
    T *v, *y, *z;  // [values]

    void Take(Arena &arena, const convscan_attention_step &p) {
      T **const of_keys[] = {&a, &q, &k, &ak, &aq};
      for (T **const each : of_keys) *each = arena.Take<T>(Whole(p.keys));
      T **const of_values[] = {&v, &y, &z};
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
      case CONVSCAN_GATES_DECAY:
      case CONVSCAN_GATES_DELTA: {
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
    StepNumbers<T> numbers = {p_.keys, p_.values, m.a, m.k, m.q, m.v, m.y, m.ak, m.aq, 0, 0};
    if (p_.gates == CONVSCAN_GATES_DELTA) {
      numbers.beta = At<T>(p_.i, p_.i_strides, batch, head).At(0, 0);
      numbers.kq = Dot(keys, m.k, m.q);
      for (int64_t i = 0; i < keys; i += W) {
        const Vec<T> a = Load<W>(m.a + i);
        Store<W>(m.ak + i, a * Load<W>(m.k + i));
        Store<W>(m.aq + i, a * Load<W>(m.q + i));
      }
      StepState<true>(numbers, p_.s_strides[2], p_.s_strides[3], state);
    } else {
      StepState<false>(numbers, p_.s_strides[2], p_.s_strides[3], state);
    }
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
    for (int64_t i = 0; i < count; i += W) Store<W>(to + i, Broadcast<T>(value));
  }

  // y = silu(z) (y / divisor + skip v).
  void Finish(int64_t batch, int64_t head, T divisor, Memory &m) const {
    const int64_t values = Whole(p_.values);
    if (p_.gates == CONVSCAN_GATES_MLSTM)
      for (int64_t c = 0; c < values; c += W) Store<W>(m.y + c, Load<W>(m.y + c) / divisor);
    if (p_.skip != nullptr) {
      const Rows<T> skip = At<T>(p_.skip, {0, p_.skip_head_stride, p_.skip_channel_stride}, 0, head);
      skip.LoadInto(1, p_.values, T(1), m.z, values);
      for (int64_t c = 0; c < values; c += W) Store<W>(m.y + c, Load<W>(m.y + c) + Load<W>(m.z + c) * Load<W>(m.v + c));
    }
    if (p_.z != nullptr) {
      At<S>(p_.z, p_.z_strides, batch, head).LoadInto(1, p_.values, T(1), m.z, values);
      for (int64_t c = 0; c < values; c += W) {
        const Vec<T> gate = Load<W>(m.z + c);
        Store<W>(m.y + c, Load<W>(m.y + c) * (gate / (1 + Exp<W, T>(-gate))));
      }
    }
    At<S>(p_.y, p_.y_strides, batch, head).StoreFrom(1, p_.values, m.y, values);
  }

  const convscan_attention_step &p_;
};

}  // namespace

convscan_status AttentionStep(const convscan_attention_step &problem) {
  return WithRealStorage(problem.dtype, [&]<class S>(Type<S>) { return Step<S>(problem).Run(); });
}

}  // namespace convscan::CONVSCAN_ISA
