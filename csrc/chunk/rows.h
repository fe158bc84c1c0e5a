// Rows of arrays with axes (batch, time, head, channel), and what is done to rows of a tile.
#pragma once

#include "convscan.h"
#include "core/exp.h"
#include "core/vector.h"

namespace convscan::CONVSCAN_ISA {

// The steps of one head from time t on, stored as S.
template <class S>
class Rows {
 public:
  Rows(const void *array, const convscan_head_strides &strides, int64_t batch, int64_t t, int64_t head)
      : base_(const_cast<S *>(static_cast<const S *>(array)) + batch * strides.batch + t * strides.time +
              head * strides.head),
        time_(strides.time),
        channel_(strides.channel) {}

  Rows From(int64_t channel) const {
    Rows rows = *this;
    rows.base_ += channel * channel_;
    return rows;
  }

  const S *Data() const { return base_; }
  int64_t Step() const { return time_; }
  bool IsDense() const { return channel_ == 1; }

  Compute<S> At(int64_t t, int64_t channel) const { return LoadScalar(base_ + t * time_ + channel * channel_); }
  void Set(int64_t t, int64_t channel, Compute<S> value) const {
    StoreScalar(base_ + t * time_ + channel * channel_, value);
  }

  // to[t][c] = scale * this, and zero behind the last channel.
  void LoadInto(int64_t steps, int64_t channels, Compute<S> scale, Compute<S> *to, int64_t to_row) const {
    for (int64_t t = 0; t < steps; ++t, to += to_row) {
      int64_t c = 0;
      if (channel_ == 1)
        for (; c + W <= channels; c += W) Store<W>(to + c, Load<W>(base_ + t * time_ + c) * scale);
      for (; c < channels; ++c) to[c] = At(t, c) * scale;
      for (; c < to_row; ++c) to[c] = 0;
    }
  }

  void StoreFrom(int64_t steps, int64_t channels, const Compute<S> *from, int64_t from_row) const {
    for (int64_t t = 0; t < steps; ++t, from += from_row) {
      int64_t c = 0;
      if (channel_ == 1)
        for (; c + W <= channels; c += W) Store<W>(base_ + t * time_ + c, Load<W>(from + c));
      for (; c < channels; ++c) Set(t, c, from[c]);
    }
  }

 private:
  static constexpr int W = kLanes<Compute<S>>;
  S *base_;
  int64_t time_, channel_;
};

// Numbers too small to be normal as zero: they add nothing, and some processors take a hundred cycles for each.
template <class T, int W = kLanes<T>>
CONVSCAN_INLINE Vec<T, W> Flush(Vec<T, W> x) {
  constexpr T kSmallest = sizeof(T) == 4 ? T(0x1p-126) : T(0x1p-1022);
  return x < kSmallest ? Vec<T, W>{} : x;
}
template <class T>
CONVSCAN_INLINE T FlushNumber(T x) {
  return Flush<T, 1>(Vec<T, 1>{x})[0];
}

// x = exp(x) for whole vectors, zero wherever the result would not be normal.
template <class T>
void ExpInPlace(int64_t count, T *x) {
  constexpr int W = kLanes<T>;
  for (int64_t i = 0; i < count; i += W) Store<W>(x + i, Flush<T>(Exp<W, T>(Load<W>(x + i))));
}

// to = factor * from, whole vectors.
template <class T>
CONVSCAN_INLINE void ScaleRow(int64_t count, T factor, const T *from, T *to) {
  constexpr int W = kLanes<T>;
  for (int64_t i = 0; i < count; i += W) Store<W>(to + i, Load<W>(from + i) * factor);
}

// sum of x y, whole vectors.
template <class T>
CONVSCAN_INLINE T Dot(int64_t count, const T *x, const T *y) {
  constexpr int W = kLanes<T>;
  Vec<T> sums{};
  for (int64_t i = 0; i < count; i += W) sums += Load<W>(x + i) * Load<W>(y + i);
  T total = 0;
  for (int lane = 0; lane < W; ++lane) total += sums[lane];
  return total;
}

}  // namespace convscan::CONVSCAN_ISA
