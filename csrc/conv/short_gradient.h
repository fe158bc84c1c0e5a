// All gradients of W lanes with a filter of a few taps, one step of time after the other: what lies between inputs and
// gradients, the last samples and the last dz, stays in registers. In the words of direct_gradient.cpp.
#pragma once

#include "conv/activation.h"
#include "conv/signal.h"
#include "core/vector.h"

namespace convscan::CONVSCAN_ISA {

// More taps than this leave no registers for the samples, dz, taps and sums of 32.
inline constexpr int kMostFusedTaps = 4;

// An array of W lanes: the first row of a tile, null for none, and how far the next row is.
template <class S>
struct InputColumn {
  const S *rows = nullptr;
  int64_t step = 0;

  CONVSCAN_INLINE Vec<Compute<S>> Row(int64_t i) const { return Load<kLanes<Compute<S>>>(rows + i * step); }
};
template <class S>
struct OutputColumn {
  S *rows = nullptr;
  int64_t step = 0;

  CONVSCAN_INLINE void Set(int64_t i, Vec<Compute<S>> v, bool streams) const {
    constexpr int W = kLanes<Compute<S>>;
    if (streams) StoreStreamAs<W, S>(rows + i * step, v);
    else Store<W>(rows + i * step, v);
  }
};

// The inputs of a tile at its own times, x and its gate once more at those of du, and the outputs.
template <class S>
struct GradientColumns {
  InputColumn<S> x, pre, dy, post, late_x, late_pre;
  OutputColumn<S> dx, dpre, dpost;
};

// What a tile works with beside its arrays: the K - 1 rows of u and dz before it, its sums over time, and where the next
// tile's inputs are asked for.
template <class T>
struct GradientState {
  const T *h, *bias;
  T *past_u, *past_dz, *sums, *sum_of_bias;
  int64_t ahead;
};

// With kDelayed the rows of dz, at `dz` behind those of the past, are kept and met by the filter `delay` rows later; else
// past_u and past_dz become those of the next tile.
template <class S, int K, bool kDelayed, class Slope>
void GradientsOfColumn(const GradientColumns<S> &c, const GradientState<Compute<S>> &state, int64_t count, Compute<S> *dz_rows,
                       int64_t delay, bool streams, const Slope &slope) {
  using T = Compute<S>;
  constexpr int W = kLanes<T>;
  Vec<T> u[K], dz[K], tap[K], sum[K], of_bias = Load<W>(state.sum_of_bias);
  const Vec<T> shift = Load<W>(state.bias);
  const int64_t ahead = state.ahead;
#pragma GCC unroll 4
  for (int k = 0; k < K; ++k) {
    tap[k] = Load<W>(state.h + k * W);
    sum[k] = Load<W>(state.sums + k * W);
    if (k + 1 == K) break;
    u[k] = Load<W>(state.past_u + k * W);
    dz[k] = Load<W>(state.past_dz + k * W);
  }
  for (int64_t i = 0; i < count; ++i) {
    u[K - 1] = c.x.Row(i);
    __builtin_prefetch(c.x.rows + (i + ahead) * c.x.step, 0, 2);
    if (c.pre.rows != nullptr) {
      u[K - 1] *= c.pre.Row(i);
      __builtin_prefetch(c.pre.rows + (i + ahead) * c.pre.step, 0, 2);
    }
    Vec<T> dw = c.dy.Row(i);
    __builtin_prefetch(c.dy.rows + (i + ahead) * c.dy.step, 0, 2);
    Vec<T> z = shift;
#pragma GCC unroll 4
    for (int k = 0; k < K; ++k) z += tap[k] * u[K - 1 - k];
    if (c.post.rows != nullptr) {
      const Vec<T> gate = c.post.Row(i);
      __builtin_prefetch(c.post.rows + (i + ahead) * c.post.step, 0, 2);
      dw = slope(dw, gate * z);
      if (c.dpost.rows != nullptr) c.dpost.Set(i, dw * z, streams);
      dw *= gate;
    } else {
      dw = slope(dw, z);
    }
    dz[K - 1] = dw;
    if constexpr (kDelayed) {
      Store<W>(dz_rows + i * W, dw);
      dz[K - 1] = Load<W>(dz_rows + (i - delay) * W);
    }
    of_bias += dw;
    Vec<T> du{};
#pragma GCC unroll 4
    for (int k = 0; k < K; ++k) {
      sum[k] += dw * u[K - 1 - k];
      du += tap[k] * dz[k];
    }
    if (c.dpre.rows != nullptr) c.dpre.Set(i, du * c.late_x.Row(i), streams);
    if (c.late_pre.rows != nullptr) du *= c.late_pre.Row(i);
    if (c.dx.rows != nullptr) c.dx.Set(i, du, streams);
#pragma GCC unroll 4
    for (int k = 0; k + 1 < K; ++k) u[k] = u[k + 1], dz[k] = dz[k + 1];
  }
#pragma GCC unroll 4
  for (int k = 0; k < K; ++k) {
    Store<W>(state.sums + k * W, sum[k]);
    if (k + 1 == K || kDelayed) continue;
    Store<W>(state.past_u + k * W, u[k]);
    Store<W>(state.past_dz + k * W, dz[k]);
  }
  Store<W>(state.sum_of_bias, of_bias);
}

}  // namespace convscan::CONVSCAN_ISA
