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
template <class T, class Meanwhile = Nothing>
void MultiplyLower(int64_t n, int64_t columns, const T *p, int64_t p_row, const T *b, int64_t b_row, T *c,
                   int64_t c_row, const Meanwhile &meanwhile = {}) {
  for (int64_t i = 0; i < n; i += kBlock)
    Multiply<true>(Min(kBlock, n - i), columns, Min(i + kBlock, n), RowMajor(p + i * p_row, p_row), b, b_row,
                   c + i * c_row, c_row, meanwhile);
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
    for (int64_t s = n; s < sizes.steps; ++s) w[s] = 0;  // whole vectors are multiplied with
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

  // Blocks of the products that Output and Advance consist of, which call meanwhile() in between.
  int64_t Blocks(const KeyTile<T> &keys) const {
    const int64_t lower = CeilDiv(keys.n, kBlock) * MultiplyBlocks<T>(kBlock, sizes.values);
    return MultiplyBlocks<T>(keys.n, sizes.values) + lower + MultiplyBlocks<T>(sizes.keys, sizes.values);
  }

  // y = the tile's output.
  template <class Meanwhile = Nothing>
  void Output(const KeyTile<T> &keys, const T *state, T *y, const Meanwhile &meanwhile = {}) const {
    const T *const q = kPerKey ? decayed_q : keys.q;
    Multiply<false>(keys.n, sizes.values, sizes.keys, RowMajor(q, sizes.keys), state, sizes.values, y, sizes.values,
                    meanwhile);
    if constexpr (!kPerKey)
      for (int64_t t = 0; t < keys.n; ++t) ScaleRow(sizes.values, from_start[t], y + t * sizes.values, y + t * sizes.values);
    MultiplyLower(keys.n, sizes.values, p, sizes.steps, v, sizes.values, y, sizes.values, meanwhile);
  }

  // state = the one after the tile.
  template <class Meanwhile = Nothing>
  void Advance(const KeyTile<T> &keys, T *state, const Meanwhile &meanwhile = {}) const {
    DecayState(keys.n, state);
    const T *const left = kPerKey ? weighted : keys.k, *const right = kPerKey ? v : weighted;
    Multiply<true>(sizes.keys, sizes.values, keys.n, RowMajor(left, sizes.keys).Transposed(), right, sizes.values, state,
                   sizes.values, meanwhile);
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

  // P by key: a key's queries, lanes over t, are decayed on from one s to the one before while all columns are summed up.
  // Both stay in registers, columns in groups of as many as half of these hold.
  void PrepareProductsOfKeys(const KeyTile<T> &keys) {
    static_assert(kStepsPerKey % W == 0);
    const int64_t n = keys.n, row = sizes.keys;
    TurnTile(n, row, keys.q, row, moving_q, kStepsPerKey);
    for (int64_t s = n; s < kStepsPerKey; ++s) {  // no steps
      __builtin_memset(keys.k + s * row, 0, sizeof(T) * static_cast<size_t>(row));
      __builtin_memset(a + s * row, 0, sizeof(T) * static_cast<size_t>(row));
    }
    EachVectorOfSteps(keys, MakeIndices<kStepsPerKey / W>{});
    for (int64_t t = 0; t < n; ++t)
      for (int64_t s = 0; s < kStepsPerKey; s += W)
        Store<W>(p + t * sizes.steps + s, LoadVector(p + t * sizes.steps + s) * LoadVector(w + s));
  }

  static constexpr int kColumns = kVectorRegisters / 2 < kStepsPerKey ? kVectorRegisters / 2 : kStepsPerKey;

  template <int... V>
  void EachVectorOfSteps(const KeyTile<T> &keys, Indices<V...>) {
    (EachGroupOfColumns<V * W>(keys, MakeIndices<kStepsPerKey / kColumns>{}), ...);
  }
  template <int kFirst, int... G>
  void EachGroupOfColumns(const KeyTile<T> &keys, Indices<G...>) {
    (ColumnsOfSteps<kFirst, kStepsPerKey - (G + 1) * kColumns>(keys, MakeIndices<kColumns>{}), ...);
  }

  // P[t,s] for W steps t from kFirst on and the columns s from kColumn on.
  template <int kFirst, int kColumn, int... I>
  void ColumnsOfSteps(const KeyTile<T> &keys, Indices<I...>) {
    const int64_t row = sizes.keys;
    Vec<T> columns[kColumns] = {};
    if constexpr (kColumn < kFirst + W) {
      for (int64_t i = 0; i < row; ++i) {
        T *const at = moving_q + i * kStepsPerKey + kFirst;
        Vec<T> q = LoadVector(at);
        const auto add = [&]<int kBehind>() {
          constexpr int s = kColumn + kColumns - 1 - kBehind;
          if constexpr (s < kFirst + W) {
            columns[s - kColumn] += q * keys.k[s * row + i];
            // The steps from s on are decayed by a[s] on the way to s - 1.
            const Vec<T> decayed = q * a[s * row + i];
            q = FromStep<s - kFirst>(decayed, q, MakeIndices<W>{});
          }
        };
        (add.template operator()<I>(), ...);
        if constexpr (kColumn > 0) Store<W>(at, q);
      }
    }
    for (int s = 0; s < kColumns; s += W) {
      Vec<T> square[W];
#pragma GCC unroll 16
      for (int r = 0; r < W; ++r) {
        // Nothing above the diagonal, whatever has been summed up there.
        const int column = kColumn + s + r;
        square[r] = column < kFirst ? columns[s + r] : Below(columns[s + r], column - kFirst);
      }
      Transpose<T>(square);
#pragma GCC unroll 16
      for (int r = 0; r < W; ++r) Store<W>(p + (kFirst + r) * sizes.steps + kColumn + s, square[r]);
    }
  }

  // Lanes from kStep on of one, the others of the other.
  template <int kStep, int... L>
  static CONVSCAN_INLINE Vec<T> FromStep(Vec<T> from, Vec<T> before, Indices<L...>) {
    if constexpr (kStep <= 0) {
      return from;
    } else {
      return __builtin_shufflevector(before, from, (L < kStep ? L : L + W)...);
    }
  }
  // Zero in the lanes before `step`.
  static CONVSCAN_INLINE Vec<T> Below(Vec<T> v, int64_t step) {
    T keep[W];
    for (int lane = 0; lane < W; ++lane) keep[lane] = lane >= step;
    return LoadVector(keep) != 0 ? v : Vec<T>{};
  }
};

}  // namespace convscan::CONVSCAN_ISA
