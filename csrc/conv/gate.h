// A gate: an array of factors of a convolution's samples or sums, multiplied into them where they lie packed (see
// conv/signal.h), so that no product is ever stored as an array. Any stride may be zero: a gate that broadcasts is
// read as it is.
#pragma once

#include "convscan.h"
#include "core/vector.h"

namespace convscan::CONVSCAN_ISA {

// One lane of a packed tile: row 0 of the tile is time `start` of this sequence.
struct Lane {
  int64_t batch, channel, start;
};

// Where vector c of W adjacent channels stands in a packed row: U of them side by side, then `plane` elements for each.
template <int U, int W>
CONVSCAN_INLINE int64_t ColumnAt(int64_t c, int64_t plane) {
  return U == 1 ? c * plane : c / U * U * plane + c % U * W;
}

template <class S>
struct Gate {
  using T = Compute<S>;
  static constexpr int W = kLanes<T>;

  const S *factors = nullptr;  // null for none
  convscan_strides strides{};
  int64_t length = 0, channels = 0;

  const S *At(int64_t b, int64_t t, int64_t n) const {
    return factors + b * strides.batch + t * strides.time + n * strides.channel;
  }

  // W factors `stride` apart.
  static CONVSCAN_INLINE Vec<T> LoadApart(const S *from, int64_t stride) {
    if (stride == 1) return Load<W>(from);
    Vec<T> v{};
    for (int l = 0; l < W; ++l) v[l] = LoadScalar(from + l * stride);
    return v;
  }

  // z[i] *= gate[b, t + i, n], 0 <= i < count; what lies outside of time stays as it is.
  void MultiplyRow(int64_t b, int64_t n, int64_t t, int64_t count, T *z) const {
    if (factors == nullptr) return;
    int64_t i = Max(0, -t);
    const int64_t end = Min(count, length - t);
    const S *const from = At(b, t, n);
    for (; i + W <= end; i += W) Store<W>(z + i, Load<W>(z + i) * LoadApart(from + i * strides.time, strides.time));
    for (; i < end; ++i) z[i] *= LoadScalar(from + i * strides.time);
  }

  // z[i row + c plane + lane] *= gate[b, t + i, n + c W + lane]; lanes beyond the last channel stay as they are.
  template <int U = 1>
  void MultiplyColumns(int64_t b, int64_t n, int64_t columns, int64_t t, int64_t count, T *z, int64_t row,
                       int64_t plane) const {
    if (factors == nullptr) return;
    const int64_t width = Min(columns * W, channels - n), end = Min(count, length - t);
    for (int64_t i = Max(0, -t); i < end; ++i) {
      const S *const from = At(b, t + i, n);
      T *const to = z + i * row;
      int64_t c = 0;
      for (; (c + 1) * W <= width; ++c) {
        T *const at = to + ColumnAt<U, W>(c, plane);
        Store<W>(at, Load<W>(at) * LoadApart(from + c * W * strides.channel, strides.channel));
      }
      for (int64_t m = c * W; m < width; ++m)
        to[ColumnAt<U, W>(c, plane) + m - c * W] *= LoadScalar(from + m * strides.channel);
    }
  }

  // z[i][lane] *= gate at time start + t + i of each lane.
  void MultiplyLanes(const Lane (&lanes)[W], int64_t t, int64_t count, T *z) const {
    if (factors == nullptr) return;
    int64_t low = 0, high = count;
    const S *from[W];
    for (int l = 0; l < W; ++l) {
      from[l] = At(lanes[l].batch, lanes[l].start + t, lanes[l].channel);
      low = Max(low, -lanes[l].start - t);
      high = Min(high, length - lanes[l].start - t);
    }
    low = Min(low, count);
    high = Max(high, low);
    MultiplyEdge(lanes, t, 0, low, z);
    int64_t i = low;
    if (strides.time == 1) {
      for (; i + W <= high; i += W) {
        Vec<T> v[W];
#pragma GCC unroll 16
        for (int l = 0; l < W; ++l) v[l] = Load<W>(from[l] + i);
        Transpose<T>(v);
#pragma GCC unroll 16
        for (int l = 0; l < W; ++l) Store<W>(z + (i + l) * W, Load<W>(z + (i + l) * W) * v[l]);
      }
    }
    for (; i < high; ++i)
      for (int l = 0; l < W; ++l) z[i * W + l] *= LoadScalar(from[l] + i * strides.time);
    MultiplyEdge(lanes, t, high, count, z);
  }

 private:
  void MultiplyEdge(const Lane (&lanes)[W], int64_t t, int64_t begin, int64_t end, T *z) const {
    for (int64_t i = begin; i < end; ++i)
      for (int l = 0; l < W; ++l) {
        const int64_t time = lanes[l].start + t + i;
        if (time >= 0 && time < length) z[i * W + l] *= LoadScalar(At(lanes[l].batch, time, lanes[l].channel));
      }
  }
};

}  // namespace convscan::CONVSCAN_ISA
