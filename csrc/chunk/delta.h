// A tile of time of one head's gated delta rule in WY form, as dense products.
//
//   S[t] = (I - beta[t] k[t] k[t]^T) diag(a[t]) S[t-1] + beta[t] k[t] v[t]^T,   y[t] = S[t]^T q[t],   a = exp(g)
//
// A step adds k[t] u[t]^T to the decayed state, with u[t] = beta[t] (v[t] - (diag(a[t]) S[t-1])^T k[t]): what v[t]
// differs from the memory's answer. With D[t,s] the product of a over (s, t], a tile of n steps that begins at state S has
//
//   u[t] = beta[t] (v[t] - S^T (D[t,-1] k[t]) - sum_{s<t} M[t,s] u[s]),   M[t,s] = k[t]^T D[t,s] k[s]
//   y[t] = S^T (D[t,-1] q[t]) + sum_{s<=t} P[t,s] u[s],                   P[t,s] = q[t]^T D[t,s] k[s]
//   S    = D[n-1,-1] S + sum_s (D[n-1,s] k[s]) u[s]^T
//
// a unit triangular system and four products. Decays are multiplied one after the other, never divided: one that is
// zero or whose products underflow is a number like any other. Sixteen steps a tile: the products with the state cost the
// same for any number of steps, those inside a tile and the system grow with it, and decays that differ between keys
// make M and P sums by key.
#pragma once

#include "chunk/rows.h"
#include "convscan.h"
#include "core/arena.h"
#include "core/matmul.h"

namespace convscan::CONVSCAN_ISA {

inline constexpr int64_t kDeltaSteps = 16;

// Moves a head's state between the caller's memory, strides (batch, sequence, head, key, value), and rows of a task's.
template <bool kStore, class T>
void MoveState(T *array, const int64_t (&strides)[5], const convscan_delta_rule &p, int64_t batch, int64_t sequence,
               int64_t head, T *state, int64_t row) {
  T *base = array + batch * strides[0] + sequence * strides[1] + head * strides[2];
  for (int64_t i = 0; i < p.keys; ++i, base += strides[3], state += row) {
    if (strides[4] == 1) {
      __builtin_memcpy(kStore ? base : state, kStore ? state : base, sizeof(T) * static_cast<size_t>(p.values));
      continue;
    }
    for (int64_t c = 0; c < p.values; ++c) {
      if constexpr (kStore) {
        base[c * strides[4]] = state[c];
      } else {
        state[c] = base[c * strides[4]];
      }
    }
  }
}

// Sizes in memory: rows are filled up with zeros to whole vectors.
template <class T>
struct DeltaSizes {
  int64_t keys, values;

  explicit DeltaSizes(const convscan_delta_rule &p)
      : keys(CeilDiv(p.keys, kLanes<T>) * kLanes<T>), values(CeilDiv(p.values, kLanes<T>) * kLanes<T>) {}
  int64_t State() const { return keys * values; }
};

template <class T>
CONVSCAN_INLINE T SumOf(Vec<T> v) {
  T total = 0;
  for (int lane = 0; lane < kLanes<T>; ++lane) total += v[lane];
  return total;
}

template <class T>
struct DeltaTile {
  static constexpr int W = kLanes<T>;
  static constexpr int64_t kSteps = kDeltaSteps;

  DeltaSizes<T> sizes;
  bool per_key;
  int64_t n = 0;
  T *q, *k, *a;        // [steps][keys]; q scaled
  T *from_start;       // [steps][keys]: D[t,-1]
  T *to_end;           // [steps][keys]: D[n-1,s]
  T *read;             // [2 n][keys]: D[t,-1] q[t], then -D[t,-1] k[t]
  T *written;          // [steps][keys]: D[n-1,s] k[s]
  T *m, *p;            // [steps][steps], P zero above its diagonal
  T *turned;           // [keys][steps]: k
  T *beta;             // [steps]
  T *v, *x, *u;        // [steps][values]; u = beta x
  T *answers;          // [2 n][values]: read times the state

  explicit DeltaTile(const convscan_delta_rule &problem) : sizes(problem), per_key(problem.per_key != 0) {}

  void Take(Arena &arena) {
    T **const of_keys[] = {&q, &k, &a, &from_start, &to_end, &written};
    for (T **array : of_keys) *array = arena.Take<T>(kSteps * sizes.keys);
    read = arena.Take<T>(2 * kSteps * sizes.keys);
    m = arena.Take<T>(kSteps * kSteps);
    p = arena.Take<T>(kSteps * kSteps);
    turned = arena.Take<T>(sizes.keys * kSteps);
    beta = arena.Take<T>(kSteps);
    T **const of_values[] = {&v, &x, &u};
    for (T **array : of_values) *array = arena.Take<T>(kSteps * sizes.values);
    answers = arena.Take<T>(2 * kSteps * sizes.values);
  }

  // `steps` steps from t on, and what is made of them alone.
  template <class S>
  void Read(const convscan_delta_rule &problem, int64_t batch, int64_t head, int64_t t, int64_t steps) {
    n = steps;
    const int64_t group = head / (problem.heads / problem.groups);
    Rows<S>(problem.q, problem.q_strides, batch, t, group)
        .LoadInto(n, problem.keys, static_cast<T>(problem.scale), q, sizes.keys);
    Rows<S>(problem.k, problem.k_strides, batch, t, group).LoadInto(n, problem.keys, T(1), k, sizes.keys);
    Rows<S>(problem.v, problem.v_strides, batch, t, head).LoadInto(n, problem.values, T(1), v, sizes.values);
    Rows<T>(problem.beta, problem.beta_strides, batch, t, head).LoadInto(n, 1, T(1), beta, 1);
    const Rows<T> g(problem.g, problem.g_strides, batch, t, head);
    if (per_key) {
      g.LoadInto(n, problem.keys, T(1), a, sizes.keys);
      for (int64_t i = 0; i < n * sizes.keys; i += W) Store<W>(a + i, Exp<W, T>(At(a + i)));
    } else {
      T logarithms[kSteps] = {};
      g.LoadInto(n, 1, T(1), logarithms, 1);
      for (int64_t i = 0; i < kSteps; i += W) Store<W>(logarithms + i, Exp<W, T>(At(logarithms + i)));
      for (int64_t s = 0; s < n; ++s)
        for (int64_t i = 0; i < sizes.keys; i += W) Store<W>(a + s * sizes.keys + i, Broadcast<T>(logarithms[s]));
    }
    Prepare();
  }

  // Solves for u, and for y unless it is null.
  void Solve(const T *state, T *y) {
    // Without outputs only the second half of the rows is needed.
    const int64_t first = y == nullptr ? n : 0;
    Multiply<false>(2 * n - first, sizes.values, sizes.keys, RowMajor(read + first * sizes.keys, sizes.keys), state,
                    sizes.values, answers + first * sizes.values, sizes.values);
    int64_t c = 0;
    for (; c + 4 * W <= sizes.values; c += 4 * W) Substitute<4>(c);
    for (; c < sizes.values; c += W) Substitute<1>(c);
    if (y == nullptr) return;
    __builtin_memcpy(y, answers, sizeof(T) * static_cast<size_t>(n * sizes.values));
    Multiply<true>(n, sizes.values, n, RowMajor(p, kSteps), u, sizes.values, y, sizes.values);
  }

  // state = the one after the tile.
  void Advance(T *state) const {
    DecayState(state);
    Multiply<true>(sizes.keys, sizes.values, n, RowMajor(written, sizes.keys).Transposed(), u, sizes.values, state,
                   sizes.values);
  }

  // state = D[n-1,-1] state.
  void DecayState(T *state) const {
    const T *const total = from_start + (n - 1) * sizes.keys;
    for (int64_t i = 0; i < sizes.keys; ++i, state += sizes.values) {
      const Vec<T> factor = Broadcast<T>(total[i]);
      for (int64_t c = 0; c < sizes.values; c += W) Store<W>(state + c, At(state + c) * factor);
    }
  }

 private:
  CONVSCAN_INLINE static Vec<T> At(const T *p) { return Load<W>(p); }

  void Prepare() {
    const int64_t row = sizes.keys;
    for (int64_t i = 0; i < row; i += W) {
      Vec<T> product = Broadcast<T>(1);
      for (int64_t t = 0; t < n; ++t) {
        product *= At(a + t * row + i);
        Store<W>(from_start + t * row + i, product);
        Store<W>(read + t * row + i, product * At(q + t * row + i));
        Store<W>(read + (n + t) * row + i, -product * At(k + t * row + i));
      }
    }
    if (per_key) {
      for (int64_t r = 0; r < n; ++r) ProductsByKey(r);
    } else {
      Products();
    }
  }

  // M and P where all keys decay alike: ordinary products, weighted by D.
  void Products() {
    const int64_t row = sizes.keys;
    MultiplyTransposed<false>(n, n, row, RowMajor(k, row), k, row, m, kSteps, turned, kSteps);
    Multiply<false>(n, n, row, RowMajor(q, row), turned, kSteps, p, kSteps);
    T decays[kSteps];  // D[t,s] of this t
    for (int64_t t = 0; t < n; ++t) {
      for (int64_t s = 0; s < t; ++s) decays[s] *= a[t * row];
      decays[t] = 1;
      T *const m_row = m + t * kSteps, *const p_row = p + t * kSteps;
      for (int64_t s = 0; s <= t; ++s) {
        m_row[s] *= s < t ? decays[s] : 0;
        p_row[s] *= decays[s];
      }
      for (int64_t s = t + 1; s < n; ++s) p_row[s] = 0;
    }
    for (int64_t s = 0; s < n; ++s)
      for (int64_t i = 0; i < row; i += W) {
        Store<W>(to_end + s * row + i, Broadcast<T>(decays[s]));
        Store<W>(written + s * row + i, At(k + s * row + i) * decays[s]);
      }
  }

  // Column s of M and P where every key has its own decay.
  void ProductsByKey(int64_t s) {
    const int64_t row = sizes.keys;
    Vec<T> of_k[kSteps] = {}, of_q[kSteps] = {};
    for (int64_t i = 0; i < row; i += W) {
      const Vec<T> key = At(k + s * row + i);
      Vec<T> decay = Broadcast<T>(1), moved = key;
      of_q[s] += At(q + s * row + i) * key;
      for (int64_t t = s + 1; t < n; ++t) {
        decay *= At(a + t * row + i);
        moved = decay * key;
        of_k[t] += At(k + t * row + i) * moved;
        of_q[t] += At(q + t * row + i) * moved;
      }
      Store<W>(to_end + s * row + i, decay);
      Store<W>(written + s * row + i, moved);
    }
    T sums_k[kSteps], sums_q[kSteps];
    SumLanes(of_k, sums_k);
    SumLanes(of_q, sums_q);
    for (int64_t t = 0; t < n; ++t) {
      m[t * kSteps + s] = sums_k[t];
      p[t * kSteps + s] = sums_q[t];
    }
  }

  // sums[t] = the sum of the lanes of v[t].
  static void SumLanes(Vec<T> (&v)[kSteps], T (&sums)[kSteps]) {
    for (int64_t t = 0; t < kSteps; t += W) {
      Vec<T> square[W];
      for (int r = 0; r < W; ++r) square[r] = v[t + r];
      Transpose<T>(square);
      for (int r = 1; r < W; ++r) square[0] += square[r];
      Store<W>(sums + t, square[0]);
    }
  }

  // Columns [c, c + kVectors W) of the triangular system.
  template <int kVectors>
  CONVSCAN_INLINE void Substitute(int64_t c) {
    const T *const from_state = answers + n * sizes.values + c;
    for (int64_t t = 0; t < n; ++t) {
      Vec<T> rest[kVectors];
#pragma GCC unroll 4
      for (int i = 0; i < kVectors; ++i)
        rest[i] = At(v + t * sizes.values + c + i * W) + At(from_state + t * sizes.values + i * W);
      for (int64_t s = 0; s < t; ++s) {
        const Vec<T> factor = Broadcast<T>(m[t * kSteps + s]);
#pragma GCC unroll 4
        for (int i = 0; i < kVectors; ++i) rest[i] -= factor * At(u + s * sizes.values + c + i * W);
      }
#pragma GCC unroll 4
      for (int i = 0; i < kVectors; ++i) {
        Store<W>(x + t * sizes.values + c + i * W, rest[i]);
        Store<W>(u + t * sizes.values + c + i * W, rest[i] * beta[t]);
      }
    }
  }
};

}  // namespace convscan::CONVSCAN_ISA
