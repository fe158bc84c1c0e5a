// One array of a recurrence as its kernels see it: a (time, channel) plane of any strides, read and written in tiles
// of N channels by R steps that hold a vector of channels per step.
#pragma once

#include "scan/element.h"

namespace convscan::CONVSCAN_ISA {

enum class Order {
  channel,  // neighbouring channels are neighbours in memory
  time,     // neighbouring steps are, forwards or backwards
  any
};

template <class Element>
struct Plane {
  using Storage = typename Element::Storage;

  Storage *base = nullptr;
  int64_t time = 0, channel = 0;  // strides, in scalars
  Order order = Order::any;

  Plane() = default;
  // Strides count numbers, as in the C interface.
  Plane(const void *address, int64_t time_stride, int64_t channel_stride)
      : base(static_cast<Storage *>(const_cast<void *>(address))),
        time(time_stride * Element::kParts),
        channel(channel_stride * Element::kParts),
        order(channel_stride == 1                     ? Order::channel
              : time_stride == 1 || time_stride == -1 ? Order::time
                                                      : Order::any) {}

  // Of `steps` neighbouring steps, the one that comes first in memory.
  CONVSCAN_INLINE int64_t Lowest(int steps) const { return time > 0 ? 0 : steps - 1; }
  CONVSCAN_INLINE Storage *At(int64_t t, int64_t c) const { return base + t * time + c * channel; }
};

template <int N, int R, class Element>
CONVSCAN_INLINE void LoadTile(const Plane<Element> &plane, int64_t t, int64_t c, Numbers<Element, N> (&v)[R]) {
  if (plane.order == Order::channel) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) v[r] = LoadNumbers<Element, N>(plane.At(t + r, c));
    return;
  }
  if constexpr (R % N == 0) {
    if (plane.order == Order::time) {
#pragma GCC unroll 16
      for (int first = 0; first < R; first += N) {
        Numbers<Element, N> w[N];
#pragma GCC unroll 16
        for (int n = 0; n < N; ++n) w[n] = LoadNumbers<Element, N>(plane.At(t + first + plane.Lowest(N), c + n));
        TransposeNumbers<Element, N>(w);
        if (plane.time > 0) {
#pragma GCC unroll 16
          for (int n = 0; n < N; ++n) v[first + n] = w[n];
        } else {
#pragma GCC unroll 16
          for (int n = 0; n < N; ++n) v[first + n] = w[N - 1 - n];
        }
      }
      return;
    }
  }
  for (int r = 0; r < R; ++r) v[r] = LoadStrided<Element, N>(plane.At(t + r, c), plane.channel);
}

template <int N, int R, class Element>
CONVSCAN_INLINE void StoreTile(const Plane<Element> &plane, int64_t t, int64_t c, Numbers<Element, N> (&v)[R]) {
  if (plane.order == Order::channel) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) StoreNumbers<Element, N>(plane.At(t + r, c), v[r]);
    return;
  }
  if constexpr (R % N == 0) {
    if (plane.order == Order::time) {
#pragma GCC unroll 16
      for (int first = 0; first < R; first += N) {
        Numbers<Element, N> w[N];
#pragma GCC unroll 16
        for (int n = 0; n < N; ++n) w[n] = plane.time > 0 ? v[first + n] : v[first + N - 1 - n];
        TransposeNumbers<Element, N>(w);
#pragma GCC unroll 16
        for (int n = 0; n < N; ++n) StoreNumbers<Element, N>(plane.At(t + first + plane.Lowest(N), c + n), w[n]);
      }
      return;
    }
  }
  for (int r = 0; r < R; ++r) StoreStrided<Element, N>(plane.At(t + r, c), plane.channel, v[r]);
}

// Steps of a tile of N channels: enough to use whole vectors along time.
template <int N>
inline constexpr int kTileSteps = N < 8 ? 8 : N;

}  // namespace convscan::CONVSCAN_ISA
