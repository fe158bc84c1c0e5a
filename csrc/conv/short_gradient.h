// All gradients of W adjacent channels with a filter of a few taps, one step of time after the other: what lies between
// inputs and gradients, the last samples and the last dz, stays in registers. In the words of direct_gradient.cpp.
#pragma once

#include "conv/activation.h"
#include "conv/signal.h"
#include "core/vector.h"

namespace convscan::CONVSCAN_ISA {

// More taps than this leave no registers for the samples, dz, taps and sums of 32.
inline constexpr int kMostFusedTaps = 4;

// An array of a vector of channels: the first row of a tile, null for none, and how far the next row is.
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

// `past_u` and `past_dz` are the K - 1 rows before the tile, then before the next; `sums` K + 1 rows of the taps and bias.
template <class S, int K, class Slope>
void GradientsOfColumn(const GradientColumns<S> &c, int64_t count, int64_t ahead, const Compute<S> *h, const Compute<S> *bias,
                       Compute<S> *past_u, Compute<S> *past_dz, Compute<S> *sums, Compute<S> *sum_of_bias, bool streams,
                       const Slope &slope) {
  using T = Compute<S>;
  constexpr int W = kLanes<T>;
  Vec<T> u[K], dz[K], tap[K], sum[K], of_bias = Load<W>(sum_of_bias);
  const Vec<T> shift = Load<W>(bias);
#pragma GCC unroll 4
  for (int k = 0; k < K; ++k) {
    tap[k] = Load<W>(h + k * W);
    sum[k] = Load<W>(sums + k * W);
    if (k + 1 == K) break;
    u[k] = Load<W>(past_u + k * W);
    dz[k] = Load<W>(past_dz + k * W);
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
    Store<W>(sums + k * W, sum[k]);
    if (k + 1 == K) break;
    Store<W>(past_u + k * W, u[k]);
    Store<W>(past_dz + k * W, dz[k]);
  }
  Store<W>(sum_of_bias, of_bias);
}

}  // namespace convscan::CONVSCAN_ISA
