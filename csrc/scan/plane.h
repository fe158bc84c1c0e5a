// One array of a recurrence as its kernels see it: a (time, channel) plane of any strides.
//
// The kernels work on rows: channels next to each other, one row a step. A plane that is stored so is used in place;
// any other passes through a small tile in the first-level cache, transposed in registers where time is contiguous.
#pragma once

#include "scan/element.h"

namespace convscan::CONVSCAN_ISA {

template <class Storage>
struct Rows {
  Storage *base;
  int64_t stride;  // in scalars
};

template <class Storage>
CONVSCAN_INLINE Rows<Storage> After(const Rows<Storage> &rows, int64_t count) {
  return {rows.base + count * rows.stride, rows.stride};
}

// Rows ahead of which kernels ask for memory: a row's end is often the end of a page, beyond which processors do not look.
inline constexpr int64_t kRowsAhead = 4;

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
  Order order = Order::channel;

  Plane() = default;
  // Strides count numbers, as in the C interface.
  Plane(const void *address, int64_t time_stride, int64_t channel_stride, int64_t channels)
      : base(static_cast<Storage *>(const_cast<void *>(address))),
        time(time_stride * Element::kParts),
        channel(channel_stride * Element::kParts),
        order(channel_stride == 1 || channels == 1            ? Order::channel
              : time_stride == 1 || time_stride == -1 ? Order::time
                                                      : Order::any) {}

  CONVSCAN_INLINE Storage *At(int64_t t, int64_t c) const { return base + t * time + c * channel; }
};

// A part of a plane: `steps` steps from t on, of `channels` channels from c on.
struct Tile {
  int64_t t, c, steps, channels;
};

// Bytes of a tile's copy in the type computed in. Five arrays of them fit the first-level cache.
inline constexpr int64_t kTileBytes = 4096;

template <class Element>
inline constexpr int64_t kTileNumbers = kTileBytes / static_cast<int64_t>(sizeof(typename Element::Part)) /
                                        Element::kParts;

// Tiles follow memory: where channels are contiguous a few rows of many channels (more rows of few), else half a cache
// line of channels for many steps. Eight rows of time by 128 steps take 1.0 ns per element, sixteen by 64 take 1.2: rows
// a power of two apart collide in the caches.
template <class Element>
struct TileShape {
  int64_t steps, channels;

  TileShape(Order order, int64_t all_channels) : steps(128), channels(kTileNumbers<Element> / steps) {
    if (order != Order::channel) return;
    channels = Max(1, Min(all_channels, kTileNumbers<Element> / 4));
    steps = kTileNumbers<Element> / channels;
  }
};

// Moves squares of N x N numbers between a plane whose time is contiguous and a tile's rows; returns the channel of
// the tile after the last one moved.
template <bool kToRows, int N, class Element>
CONVSCAN_INLINE int64_t MoveSquares(const Plane<Element> &plane, const Tile &tile, int64_t c, int64_t squares_end,
                                    typename Element::Storage *rows) {
  constexpr int kParts = Element::kParts;
  const bool forwards = plane.time > 0;
  // Rows are too many for the processor's own prefetcher to follow: ask for what the next tile needs.
  constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(typename Element::Storage)) / kParts;
  const int64_t ahead = tile.steps * plane.time;
  for (; c + N <= tile.channels; c += N) {
    for (int64_t t = 0; t < squares_end; t += N) {
      typename Element::Storage *memory = plane.At(tile.t + t + (forwards ? 0 : N - 1), tile.c + c);
      typename Element::Storage *row = rows + (t * tile.channels + c) * kParts;
      // Row n of the square is step n where time runs forwards through memory, else step N - 1 - n.
      const int64_t row_stride = (forwards ? tile.channels : -tile.channels) * kParts;
      if (!forwards) row += (N - 1) * tile.channels * kParts;
      if (t % kLine == 0) {
#pragma GCC unroll 16
        for (int n = 0; n < N; ++n) __builtin_prefetch(memory + n * plane.channel + ahead, kToRows ? 0 : 1);
      }
      Numbers<Element, N> v[N];
#pragma GCC unroll 16
      for (int n = 0; n < N; ++n)
        v[n] = LoadNumbers<Element, N>(kToRows ? memory + n * plane.channel : row + n * row_stride);
      TransposeNumbers<Element, N>(v);
#pragma GCC unroll 16
      for (int n = 0; n < N; ++n)
        StoreNumbers<Element, N>(kToRows ? row + n * row_stride : memory + n * plane.channel, v[n]);
    }
  }
  if constexpr (N > 2) {
    if (c < tile.channels) return MoveSquares<kToRows, N / 2>(plane, tile, c, squares_end, rows);
  }
  return c;
}

// Copies a tile of any plane into rows of tile.channels numbers, or back.
template <bool kToRows, class Element>
__attribute__((noinline)) void MoveTile(const Plane<Element> &plane, const Tile &tile,
                                        typename Element::Storage *rows) {
  constexpr int kN = kNumbers<Element>, kParts = Element::kParts;
  const auto move = [&](int64_t t, int64_t c) {
    typename Element::Storage *memory = plane.At(tile.t + t, tile.c + c);
    typename Element::Storage *row = rows + (t * tile.channels + c) * kParts;
    for (int i = 0; i < kParts; ++i) {
      if constexpr (kToRows) {
        row[i] = memory[i];
      } else {
        memory[i] = row[i];
      }
    }
  };
  int64_t squares_end = 0, c = 0;
  if constexpr (kN > 1) {
    if (plane.order == Order::time) {
      squares_end = tile.steps / kN * kN;
      c = MoveSquares<kToRows, kN>(plane, tile, 0, squares_end, rows);
    }
  }
  for (int64_t n = c; n < tile.channels; ++n)
    for (int64_t t = 0; t < squares_end; ++t) move(t, n);
  for (int64_t t = squares_end; t < tile.steps; ++t)
    for (int64_t n = 0; n < tile.channels; ++n) move(t, n);
}

// The rows of a tile to read, copied into `copy` unless the plane itself has them.
template <class Element>
CONVSCAN_INLINE Rows<const typename Element::Storage> RowsToRead(const Plane<Element> &plane, const Tile &tile,
                                                                 typename Element::Storage *copy) {
  if (plane.order == Order::channel) return {plane.At(tile.t, tile.c), plane.time};
  MoveTile<true>(plane, tile, copy);
  return {copy, tile.channels * Element::kParts};
}

// The rows of a tile to write; PutRows brings them home.
template <class Element>
CONVSCAN_INLINE Rows<typename Element::Storage> RowsToWrite(const Plane<Element> &plane, const Tile &tile,
                                                            typename Element::Storage *copy) {
  if (plane.order == Order::channel) return {plane.At(tile.t, tile.c), plane.time};
  return {copy, tile.channels * Element::kParts};
}
template <class Element>
CONVSCAN_INLINE void PutRows(const Plane<Element> &plane, const Tile &tile, typename Element::Storage *copy) {
  if (plane.order != Order::channel) MoveTile<false>(plane, tile, copy);
}

// Calls run(tile) for tiles that cover `channels` channels of `length` steps, each channel's in the order of time.
template <class Element, class Run>
CONVSCAN_INLINE void ForEachTile(Order order, int64_t length, int64_t channels, const Run &run) {
  const TileShape<Element> shape(order, channels);
  const bool by_rows = order == Order::channel;
  const int64_t outer_end = by_rows ? length : channels, inner_end = by_rows ? channels : length;
  const int64_t outer_step = by_rows ? shape.steps : shape.channels;
  const int64_t inner_step = by_rows ? shape.channels : shape.steps;
  for (int64_t outer = 0; outer < outer_end; outer += outer_step) {
    for (int64_t inner = 0; inner < inner_end; inner += inner_step) {
      const int64_t outer_size = Min(outer_step, outer_end - outer), inner_size = Min(inner_step, inner_end - inner);
      if (by_rows) {
        run(Tile{outer, inner, outer_size, inner_size});
      } else {
        run(Tile{inner, outer, inner_size, outer_size});
      }
    }
  }
}

}  // namespace convscan::CONVSCAN_ISA
