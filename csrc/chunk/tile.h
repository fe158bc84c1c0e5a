// A tile of time of one head's linear attention with decay, as two sums over dense products.
//
//   S[t] = diag(a[t]) S[t-1] + w[t] k[t] v[t]^T,   y[t] = S[t]^T q[t],   a = exp(g)
//
// With D[t,s] the product of a over (s, t], a tile of n steps that begins at state S is
//
//   y[t] = S^T (D[t,-1] q[t]) + sum_{s<=t} P[t,s] v[s],   P[t,s] = w[s] q[t]^T D[t,s] k[s]
//   S    = D[n-1,-1] S + sum_s w[s] (D[n-1,s] k[s]) v[s]^T
//
// Decays are multiplied one after the other, each at most as often as a loop over time would: nothing is divided by a
// product that may have underflowed, and a = 0 is a number like any other. Where a is one number a step, D is a matrix
// and P an ordinary product weighted by it, shared by all heads of a group but for the weights: 64 steps a tile. Where a
// differs between keys, P is summed by key while the decays are multiplied on: 16 steps, which P's cost grows with.
#pragma once

#include "chunk/rows.h"
#include "convscan.h"
#include "core/arena.h"
#include "core/matmul.h"
#include "core/vector.h"

namespace convscan::CONVSCAN_ISA {

// Steps of a tile: with one decay for all keys, and with one for each.
inline constexpr int64_t kSteps = 64, kStepsPerKey = 16;
// Rows and columns of P are made in blocks of this many, of which those above the diagonal are left out.
inline constexpr int64_t kBlock = 16;

template <class T>
CONVSCAN_INLINE Vec<T> LoadVector(const T *p) {
  return Load<kLanes<T>>(p);
}

// The sizes of a tile in memory: rows are filled up with zeros to whole vectors.
struct TileSizes {
  int64_t steps, keys, values;
};

inline constexpr int64_t kKeyMultiple = 4;

template <class T>
TileSizes SizesOf(int64_t length, int64_t keys, int64_t values, bool per_key) {
  const auto whole = [](int64_t count, int64_t multiple) { return CeilDiv(count, multiple) * multiple; };
  const int64_t steps = per_key ? kStepsPerKey : Min(kSteps, Max(kBlock, whole(length, kBlock)));
  return {steps, whole(keys, Max(kLanes<T>, kKeyMultiple)), whole(values, kLanes<T>)};
}

// The columns of the state that a task has: [first, first + count) of v, and where it `has_sum` one more, as if v had a
// column of ones behind its last.
struct Columns {
  int64_t first, count;
  bool has_sum;

  int64_t Total() const { return count + has_sum; }
};

// c += p b, p lower triangular with zeros above its diagonal.
template <class T>
void MultiplyLower(int64_t n, int64_t columns, const T *p, int64_t p_row, const T *b, int64_t b_row, T *c,
                   int64_t c_row) {
  for (int64_t i = 0; i < n; i += kBlock)
    Multiply<true>(Min(kBlock, n - i), columns, Min(i + kBlock, n), RowMajor(p + i * p_row, p_row), b, b_row,
                   c + i * c_row, c_row);
}

// c += p^T b.
template <class T>
void MultiplyUpper(int64_t n, int64_t columns, const T *p, int64_t p_row, const T *b, int64_t b_row, T *c,
                   int64_t c_row) {
  for (int64_t i = 0; i < n; i += kBlock)
    Multiply<true>(Min(kBlock, n - i), columns, n - i, RowMajor(p + i * p_row + i, p_row).Transposed(), b + i * b_row,
                   b_row, c + i * c_row, c_row);
}

// p = a b in the blocks on and below the diagonal.
template <class T>
void MultiplyToLower(int64_t n, int64_t depth, const T *a, int64_t a_row, const T *b, int64_t b_row, T *p,
                     int64_t p_row) {
  for (int64_t i = 0; i < n; i += kBlock)
    Multiply<false>(Min(kBlock, n - i), Min(i + kBlock, p_row), depth, RowMajor(a + i * a_row, a_row), b, b_row,
                    p + i * p_row, p_row);
}

// to = the transpose of n rows, with zero columns up to to_row.
template <class T>
void TurnTile(int64_t n, int64_t columns, const T *from, int64_t from_row, T *to, int64_t to_row) {
  TransposeTile(n, columns, from, from_row, to, to_row);
  for (int64_t i = 0; n < to_row && i < columns; ++i)
    for (int64_t s = n; s < to_row; ++s) to[i * to_row + s] = 0;
}

// What every head of a group has in common.
template <class T>
struct KeyTile {
  int64_t n = 0;
  T *q, *k;               // [steps][keys], q scaled
  T *turned = nullptr;    // [keys][steps]: k; for one decay a step, like what follows
  T *products = nullptr;  // [steps][steps]: q^T k on and below the diagonal

  void Take(Arena &arena, const TileSizes &sizes, bool per_key) {
    q = arena.Take<T>(sizes.steps * sizes.keys);
    k = arena.Take<T>(sizes.steps * sizes.keys);
    if (per_key) return;
    turned = arena.Take<T>(sizes.steps * sizes.keys);
    products = arena.Take<T>(sizes.steps * sizes.steps);
  }

  // The first `steps` from t on, as they are.
  template <class S>
  void LoadPlain(const convscan_attention &p, const TileSizes &sizes, int64_t batch, int64_t group, int64_t t,
                 int64_t steps) {
    n = steps;
    Rows<S>(p.q, p.q_strides, batch, t, group).LoadInto(n, p.keys, static_cast<T>(p.scale), q, sizes.keys);
    Rows<S>(p.k, p.k_strides, batch, t, group).LoadInto(n, p.keys, T(1), k, sizes.keys);
  }

  // And what outputs are made of.
  template <class S>
  void Load(const convscan_attention &p, const TileSizes &sizes, bool per_key, int64_t batch, int64_t group, int64_t t,
            int64_t steps) {
    LoadPlain<S>(p, sizes, batch, group, t, steps);
    if (per_key) return;
    TurnTile(n, sizes.keys, k, sizes.keys, turned, sizes.steps);
    MultiplyToLower(n, sizes.keys, q, sizes.keys, turned, sizes.steps, products, sizes.steps);
  }
};

// What one head adds: its values, and its decays.
template <class T, bool kPerKey>
struct HeadTile {
  static constexpr int W = kLanes<T>;

  TileSizes sizes;
  T *v;                // [steps][values]
  T *w;                // [steps]
  T *a;                // [steps], or [steps][keys]
  T *from_start;       // like a: D[t,-1]
  T *to_end;           // like a: D[n-1,s]
  T *p;                // [steps][steps]
  T *d = nullptr;      // [steps][steps], for one decay a step
  T *weighted;         // [steps][values]: w[s] D[n-1,s] v[s]; or [steps][keys]: w[s] D[n-1,s] k[s]
  T *decayed_q = nullptr;  // [steps][keys]: D[t,-1] q[t], for one decay a key, like what follows
  T *moving_q = nullptr;   // [keys][steps]: D[t,s] q[t] while s goes down

  void Take(Arena &arena, const TileSizes &of) {
    sizes = of;
    const int64_t decays = kPerKey ? sizes.steps * sizes.keys : sizes.steps;
    v = arena.Take<T>(sizes.steps * sizes.values);
    w = arena.Take<T>(sizes.steps);
    a = arena.Take<T>(decays);
    from_start = arena.Take<T>(decays);
    to_end = arena.Take<T>(decays);
    p = arena.Take<T>(sizes.steps * sizes.steps);
    if constexpr (kPerKey) {
      weighted = arena.Take<T>(sizes.steps * sizes.keys);
      decayed_q = arena.Take<T>(sizes.steps * sizes.keys);
      moving_q = arena.Take<T>(sizes.steps * sizes.keys);
    } else {
      weighted = arena.Take<T>(sizes.steps * sizes.values);
      d = arena.Take<T>(sizes.steps * sizes.steps);
    }
  }

  // Whether only the state is wanted of the tile, which needs no P.
  enum class For { state, output };

  template <class S>
  void Load(const convscan_attention &problem, const KeyTile<T> &keys, int64_t batch, int64_t head, int64_t t,
            const Columns &columns, For purpose) {
    const int64_t n = keys.n;
    Rows<S>(problem.v, problem.v_strides, batch, t, head).From(columns.first).LoadInto(n, columns.count, T(1), v, sizes.values);
    if (columns.has_sum)
      for (int64_t s = 0; s < n; ++s) v[s * sizes.values + columns.count] = 1;
    const Rows<T> from_w(problem.w, problem.w_strides, batch, t, head);
    for (int64_t s = 0; s < n; ++s) w[s] = problem.w == nullptr ? T(1) : from_w.At(s, 0);
    const Rows<T> from_g(problem.g, problem.g_strides, batch, t, head);
    if constexpr (kPerKey) {
      from_g.LoadInto(n, problem.keys, T(1), a, sizes.keys);
      ExpInPlace(n * sizes.keys, a);
      PrepareKeys(keys);
      if (purpose == For::output) PrepareProductsOfKeys(keys);
    } else {
      for (int64_t s = 0; s < sizes.steps; ++s) a[s] = s < n ? from_g.At(s, 0) : T(0);
      ExpInPlace(sizes.steps, a);
      PrepareSteps(n);
      if (purpose == For::output) PrepareProducts(keys);
      for (int64_t s = 0; s < n; ++s) ScaleRow(sizes.values, w[s] * to_end[s], v + s * sizes.values, weighted + s * sizes.values);
    }
  }

  // y = the tile's output.
  void Output(const KeyTile<T> &keys, const T *state, T *y) const {
    const T *const q = kPerKey ? decayed_q : keys.q;
    Multiply<false>(keys.n, sizes.values, sizes.keys, RowMajor(q, sizes.keys), state, sizes.values, y, sizes.values);
    if constexpr (!kPerKey)
      for (int64_t t = 0; t < keys.n; ++t) ScaleRow(sizes.values, from_start[t], y + t * sizes.values, y + t * sizes.values);
    MultiplyLower(keys.n, sizes.values, p, sizes.steps, v, sizes.values, y, sizes.values);
  }

  // state = the one after the tile.
  void Advance(const KeyTile<T> &keys, T *state) const {
    DecayState(keys.n, state);
    const T *const left = kPerKey ? weighted : keys.k, *const right = kPerKey ? v : weighted;
    Multiply<true>(sizes.keys, sizes.values, keys.n, RowMajor(left, sizes.keys).Transposed(), right, sizes.values, state,
                   sizes.values);
  }

  // state = D[n-1,-1] state, what a tile does to it and to its gradient alike.
  void DecayState(int64_t n, T *state) const {
    const T *const total = from_start + (n - 1) * (kPerKey ? sizes.keys : 1);
    if constexpr (kPerKey) {
      for (int64_t i = 0; i < sizes.keys; ++i) ScaleRow(sizes.values, total[i], state + i * sizes.values, state + i * sizes.values);
    } else {
      ScaleRow(sizes.keys * sizes.values, total[0], state, state);
    }
  }

 private:
  void PrepareSteps(int64_t n) {
    T product = 1;
    for (int64_t t = 0; t < n; ++t) from_start[t] = product = FlushNumber(product * a[t]);
    product = 1;
    for (int64_t s = n - 1; s >= 0; --s) {
      to_end[s] = product;
      product = FlushNumber(product * a[s]);
    }
  }

  void PrepareProducts(const KeyTile<T> &keys) {
    for (int64_t t = 0; t < keys.n; ++t) {
      // Columns up to the end of the block on the diagonal.
      const int64_t end = t / kBlock * kBlock + kBlock, row = t * sizes.steps;
      const int64_t before = t == 0 ? 0 : (t - 1) / kBlock * kBlock + kBlock;
      for (int64_t s = 0; s < before; s += W) Store<W>(d + row + s, Flush<T>(LoadVector(d + row - sizes.steps + s) * a[t]));
      for (int64_t s = before; s < end; ++s) d[row + s] = 0;
      d[row + t] = 1;
      for (int64_t s = 0; s < end; s += W)
        Store<W>(p + row + s, LoadVector(keys.products + row + s) * LoadVector(d + row + s) *
                                  LoadVector(w + s));
      // Not a product with zero, which an infinite product would turn into NaN.
      for (int64_t s = t + 1; s < end; ++s) p[row + s] = 0;
    }
  }

  void PrepareKeys(const KeyTile<T> &keys) {
    const int64_t n = keys.n, row = sizes.keys;
    for (int64_t i = 0; i < row; i += W) {
      Vec<T> product = Broadcast<T>(1);
      for (int64_t t = 0; t < n; ++t) {
        product = Flush<T>(product * LoadVector(a + t * row + i));
        Store<W>(from_start + t * row + i, product);
        Store<W>(decayed_q + t * row + i, product * LoadVector(keys.q + t * row + i));
      }
      product = Broadcast<T>(1);
      for (int64_t s = n - 1; s >= 0; --s) {
        Store<W>(to_end + s * row + i, product);
        Store<W>(weighted + s * row + i, product * LoadVector(keys.k + s * row + i) * w[s]);
        product = Flush<T>(product * LoadVector(a + s * row + i));
      }
    }
  }

  // P, one column s after the other from the last.
  void PrepareProductsOfKeys(const KeyTile<T> &keys) {
    constexpr int kVectors = kStepsPerKey / W < 1 ? 1 : kStepsPerKey / W;
    constexpr int kChains = 4;  // as many sums over keys as an addition takes cycles
    static_assert(kStepsPerKey % W == 0 && kKeyMultiple % kChains == 0);
    const int64_t n = keys.n, row = sizes.keys;
    TurnTile(n, row, keys.q, row, moving_q, kStepsPerKey);
    for (int64_t s = n - 1; s >= 0; --s) {
      Vec<T> sums[kChains][kVectors] = {};
      T later[kStepsPerKey];  // of the steps from s on: they are decayed by a[s] on the way to s - 1
      for (int64_t t = 0; t < kStepsPerKey; ++t) later[t] = t >= s;
      for (int64_t i = 0; i < row; i += kChains) {
#pragma GCC unroll 4
        for (int chain = 0; chain < kChains; ++chain) {
          T *const q = moving_q + (i + chain) * kStepsPerKey;
          const Vec<T> k = Broadcast<T>(keys.k[s * row + i + chain]), decay = Broadcast<T>(a[s * row + i + chain]);
#pragma GCC unroll 8
          for (int v = 0; v < kVectors; ++v) {
            const Vec<T> decayed = LoadVector(q + v * W);
            sums[chain][v] += k * decayed;
            Store<W>(q + v * W, LoadVector(later + v * W) != 0 ? decayed * decay : decayed);
          }
        }
      }
      T column[kStepsPerKey];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v)
        Store<W>(column + v * W, ((sums[0][v] + sums[1][v]) + (sums[2][v] + sums[3][v])) * w[s]);
      for (int64_t t = 0; t < n; ++t) p[t * sizes.steps + s] = t >= s ? column[t] : T(0);
    }
  }
};

}  // namespace convscan::CONVSCAN_ISA
