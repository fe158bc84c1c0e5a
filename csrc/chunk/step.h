// One step on one head's state, in place: the state is read and written once, in rows of consecutive numbers.
//
//   S = diag(a) S + k w^T,   y = S^T q,   w = v
//
// or, where the memory is corrected, w = beta (v - (diag(a) S)^T k). Then what S answers to k and to q is summed first, and
// y = (diag(a) S)^T q + (k^T q) w: a second pass over as much of the state as the first-level cache keeps meanwhile.
// Columns of S, the values, are independent of each other.
//
// Rows are asked for some rows ahead: with states that come from memory a step of 24 heads of 128 x 64 takes 31 us where it
// took 56, of 16 heads of 64 x 128 14.5 where it took 16.5; in the caches 4.9 where it took 4.5.
#pragma once

#include "chunk/rows.h"
#include "core/matmul.h"

namespace convscan::CONVSCAN_ISA {

// What a step has of a head. Rows are filled up with zeros to whole vectors.
template <class T>
struct StepNumbers {
  int64_t keys, values;
  const T *a, *k, *q;  // [keys]
  const T *v;          // [values]
  T *y;                // [values], to the end of the last vector
  T *ak, *aq;          // [keys]: a k and a q, where the memory is corrected
  T beta, kq;          // and k^T q
};

inline constexpr int64_t kRowsAhead = 8;

// Consecutive values. A panel of columns goes through all keys with what it has of w and y in registers.
template <bool kCorrects, class T>
class StepOverValues {
 public:
  static constexpr int W = kLanes<T>;

  StepOverValues(const StepNumbers<T> &numbers, int64_t row) : n_(numbers), row_(row) {}

  void Run(T *state) const {
    // The second pass finds a panel in the first-level cache.
    constexpr int64_t kPanelBytes = 32 << 10;
    const int64_t most = kCorrects ? kPanelBytes / static_cast<int64_t>(sizeof(T)) / W / Max(1, n_.keys) : kMostVectors;
    int64_t c = 0;
    const auto by = [&]<int V>() {
      for (; V <= most && c + V * W <= n_.values; c += V * W) Panel<V, true>(c, state + c);
    };
    by.template operator()<kMostVectors>();
    by.template operator()<kMostVectors / 2>();
    for (; c + W <= n_.values; c += W) Panel<1, true>(c, state + c);
    if (c < n_.values) Panel<1, false>(c, state + c);
  }

 private:
  // Of both sums, or of w and y, and of a state's row.
  static constexpr int kMostVectors = kVectorRegisters >= 32 ? 8 : 4;

  template <int V, bool kWhole>
  void Panel(int64_t c, T *s) const {
    const int64_t lanes = n_.values - c;
    Vec<T> w[V], y[V];
#pragma GCC unroll 8
    for (int j = 0; j < V; ++j) {
      w[j] = Load<W>(n_.v + c + j * W);
      y[j] = Vec<T>{};
    }
    if constexpr (kCorrects) {
      Vec<T> answer[V] = {};
      const T *row = s;
      for (int64_t i = 0; i < n_.keys; ++i, row += row_) {
        const Vec<T> ak = Broadcast<T>(n_.ak[i]), aq = Broadcast<T>(n_.aq[i]);
#pragma GCC unroll 8
        for (int j = 0; j < V; ++j) {
          __builtin_prefetch(row + kRowsAhead * row_ + j * W, 1);
          const Vec<T> number = LoadLanes<W, kWhole>(row + j * W, lanes);
          answer[j] += number * ak;
          y[j] += number * aq;
        }
      }
#pragma GCC unroll 8
      for (int j = 0; j < V; ++j) {
        w[j] = (w[j] - answer[j]) * n_.beta;
        y[j] += w[j] * n_.kq;
      }
    }
    for (int64_t i = 0; i < n_.keys; ++i, s += row_) {
      const Vec<T> a = Broadcast<T>(n_.a[i]), k = Broadcast<T>(n_.k[i]), q = Broadcast<T>(n_.q[i]);
#pragma GCC unroll 8
      for (int j = 0; j < V; ++j) {
        if constexpr (!kCorrects) __builtin_prefetch(s + kRowsAhead * row_ + j * W, 1);
        const Vec<T> next = LoadLanes<W, kWhole>(s + j * W, lanes) * a + w[j] * k;
        StoreLanes<W, kWhole>(s + j * W, next, lanes);
        if constexpr (!kCorrects) y[j] += next * q;
      }
    }
#pragma GCC unroll 8
    for (int j = 0; j < V; ++j) Store<W>(n_.y + c + j * W, y[j]);
  }

  const StepNumbers<T> &n_;
  int64_t row_;
};

// Consecutive keys. A vector's worth of values at a time, whose sums over keys are turned and added up together.
template <bool kCorrects, class T>
class StepOverKeys {
 public:
  static constexpr int W = kLanes<T>;

  StepOverKeys(const StepNumbers<T> &numbers, int64_t row) : n_(numbers), row_(row) {}

  void Run(T *state) const {
    for (int64_t c = 0; c < n_.values; c += W, state += W * row_) {
      const int64_t count = Min(W, n_.values - c);
      Vec<T> answers[W] = {}, reads[W] = {};
      Vec<T> w = Load<W>(n_.v + c), y{};
      if constexpr (kCorrects) {
        EachRow(count, [&]<int R>(int64_t r) { Answers<R>(state + r * row_, answers + r, reads + r); });
        w = (w - SumOfLanes(answers)) * n_.beta;
        y = SumOfLanes(reads) + w * n_.kq;
      }
      T writes[W];
      Store<W>(writes, w);
      EachRow(count, [&]<int R>(int64_t r) { Advance<R>(state + r * row_, writes + r, reads + r); });
      Store<W>(n_.y + c, kCorrects ? y : SumOfLanes(reads));
    }
  }

 private:
  static constexpr int kRows = W < 4 ? W : 4;  // share what is loaded of a, k and q

  template <class Run>
  static CONVSCAN_INLINE void EachRow(int64_t count, const Run &run) {
    int64_t r = 0;
    for (; r + kRows <= count; r += kRows) run.template operator()<kRows>(r);
    for (; r < count; ++r) run.template operator()<1>(r);
  }

  // Lane r is the sum of the lanes of v[r].
  static Vec<T> SumOfLanes(Vec<T> (&v)[W]) {
    Transpose<T>(v);
#pragma GCC unroll 16
    for (int half = W / 2; half > 0; half /= 2)
#pragma GCC unroll 16
      for (int r = 0; r < half; ++r) v[r] += v[r + half];
    return v[0];
  }

  template <int R>
  CONVSCAN_INLINE void Answers(const T *s, Vec<T> *answers, Vec<T> *reads) const {
    Vec<T> answer[R] = {}, read[R] = {};
    const auto add = [&]<bool kWhole>(int64_t i) {
      const Vec<T> ak = Load<W>(n_.ak + i), aq = Load<W>(n_.aq + i);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        __builtin_prefetch(s + (r + kRowsAhead) * row_ + i, 1);
        const Vec<T> number = LoadLanes<W, kWhole>(s + r * row_ + i, n_.keys - i);
        answer[r] += number * ak;
        read[r] += number * aq;
      }
    };
    EachVector(add);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      answers[r] = answer[r];
      reads[r] = read[r];
    }
  }

  template <int R>
  CONVSCAN_INLINE void Advance(T *s, const T *writes, Vec<T> *reads) const {
    Vec<T> w[R], read[R] = {};
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) w[r] = Broadcast<T>(writes[r]);
    const auto add = [&]<bool kWhole>(int64_t i) {
      const Vec<T> a = Load<W>(n_.a + i), k = Load<W>(n_.k + i), q = Load<W>(n_.q + i);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        if constexpr (!kCorrects) __builtin_prefetch(s + (r + kRowsAhead) * row_ + i, 1);
        const Vec<T> next = LoadLanes<W, kWhole>(s + r * row_ + i, n_.keys - i) * a + k * w[r];
        StoreLanes<W, kWhole>(s + r * row_ + i, next, n_.keys - i);
        read[r] += next * q;
      }
    };
    EachVector(add);
    if constexpr (!kCorrects)
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) reads[r] = read[r];
  }

  template <class Add>
  CONVSCAN_INLINE void EachVector(const Add &add) const {
    int64_t i = 0;
    for (; i + W <= n_.keys; i += W) add.template operator()<true>(i);
    if (i < n_.keys) add.template operator()<false>(i);
  }

  const StepNumbers<T> &n_;
  int64_t row_;
};

// Any strides.
template <bool kCorrects, class T>
void StepByNumber(const StepNumbers<T> &n, int64_t key_stride, int64_t value_stride, T *state) {
  for (int64_t c = 0; c < n.values; ++c, state += value_stride) {
    T w = n.v[c];
    if constexpr (kCorrects) {
      T answer = 0;
      for (int64_t i = 0; i < n.keys; ++i) answer += state[i * key_stride] * n.ak[i];
      w = (w - answer) * n.beta;
    }
    T y = 0;
    for (int64_t i = 0; i < n.keys; ++i) {
      T &number = state[i * key_stride];
      number = number * n.a[i] + n.k[i] * w;
      y += number * n.q[i];
    }
    n.y[c] = y;
  }
}

template <bool kCorrects, class T>
void StepState(const StepNumbers<T> &n, int64_t key_stride, int64_t value_stride, T *state) {
  if (value_stride == 1) return StepOverValues<kCorrects, T>(n, key_stride).Run(state);
  if (key_stride == 1) return StepOverKeys<kCorrects, T>(n, value_stride).Run(state);
  StepByNumber<kCorrects>(n, key_stride, value_stride, state);
}

}  // namespace convscan::CONVSCAN_ISA
