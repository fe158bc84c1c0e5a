// Gates where channels are adjacent: factors lie along channels as the samples do, so that a tile of 16 time steps by
// 16 channels has its factors before it is transposed into rows, and its sums have bias, gate and activation after they
// were transposed back. Rows in between are of the compute type: no product is rounded to a half type.
#pragma once

#include "fft/rows.h"

namespace convscan::CONVSCAN_ISA {

// Factors of an array of times and channels; null for none. Strides may be zero.
template <class S>
struct ColumnGate {
  using T = Compute<S>;
  static constexpr int kW = kLanes<T> < kChunk ? kLanes<T> : kChunk;
  const S *factors = nullptr;
  int64_t time = 0, channel = 0;

  ColumnGate From(int64_t t, int64_t n) const {
    return {factors == nullptr ? nullptr : factors + t * time + n * channel, time, channel};
  }
  // z[r][n] *= the factor of time r and channel n, for `count` times.
  void Multiply(int64_t count, T (*z)[kChunk]) const {
    if (factors == nullptr) return;
    for (int64_t r = 0; r < count; ++r) {
      const S *const from = factors + r * time;
      if (channel == 1) {
        for (int j = 0; j < kChunk; j += kW) Store<kW>(&z[r][j], Load<kW>(&z[r][j]) * Load<kW>(from + j));
      } else {
        for (int j = 0; j < kChunk; ++j) z[r][j] *= LoadScalar(from + j * channel);
      }
    }
  }
};

// What sums become: activation(gate (sum + bias)).
template <class S>
struct ColumnEnd {
  using T = Compute<S>;
  static constexpr int kW = ColumnGate<S>::kW;
  ColumnGate<S> gate;
  const S *bias;  // null for none
  int64_t bias_stride;
  convscan_activation activation;

  ColumnEnd From(int64_t t, int64_t n) const {
    return {gate.From(t, n), bias == nullptr ? nullptr : bias + n * bias_stride, bias_stride, activation};
  }
  // `count` times of 16 channels to `to`, whose rows lie `stride` apart.
  void Write(int64_t count, T (*z)[kChunk], S *to, int64_t stride) const {
    for (int j = 0; bias != nullptr && j < kChunk; ++j) {
      const T b = LoadScalar(bias + j * bias_stride);
      for (int64_t r = 0; r < count; ++r) z[r][j] += b;
    }
    gate.Multiply(count, z);
    for (int64_t r = 0; r < count; ++r)
      for (int j = 0; j < kChunk; j += kW)
        Store<kW>(to + r * stride + j, Activate<kW, T>(Load<kW>(&z[r][j]), activation));
  }
};

// `count` time steps of 16 channels, as numbers of the compute type, times their gate.
template <class S>
void ReadGated(const S *from, int64_t stride, const ColumnGate<S> &gate, int64_t count,
               Compute<S> (*lines)[kChunk]) {
  constexpr int kW = ColumnGate<S>::kW;
  for (int64_t r = 0; r < count; ++r)
    for (int j = 0; j < kChunk; j += kW) Store<kW>(&lines[r][j], Load<kW>(from + r * stride + j));
  gate.Multiply(count, lines);
}

// RowsFromColumns with a gate. A row has room for whole tiles.
template <class S>
void RowsFromGatedColumns(const S *from, int64_t stride, const ColumnGate<S> &gate, int64_t count, int64_t rows,
                          Compute<S> *to, int64_t pitch) {
  for (int64_t n = 0; n < count; n += kChunk)
    for (int64_t r = 0; r < rows; r += kChunk) {
      alignas(64) Compute<S> lines[kChunk][kChunk] = {};
      PrefetchTile<0>(from + n * stride + r, stride);
      ReadGated(from + n * stride + r, stride, gate.From(n, r), Min(kChunk, count - n), lines);
      TransposeTile<Compute<S>>(&lines[0][0], kChunk, to + r * pitch + n, pitch);
    }
}

// And RowsToColumns with what sums become.
template <class S>
void RowsToGatedColumns(const Compute<S> *from, int64_t pitch, int64_t count, int64_t rows, const ColumnEnd<S> &end,
                        S *to, int64_t stride) {
  for (int64_t n = 0; n < count; n += kChunk)
    for (int64_t r = 0; r < rows; r += kChunk) {
      alignas(64) Compute<S> lines[kChunk][kChunk];
      PrefetchTile<1>(to + n * stride + r, stride);
      TransposeTile<Compute<S>>(from + r * pitch + n, pitch, &lines[0][0], kChunk);
      end.From(n, r).Write(Min(kChunk, count - n), lines, to + n * stride + r, stride);
    }
}

// TransposeTiles with a gate, of 16 channels over `count` time steps; those left over by whole tiles stay columns.
template <class S>
void TileGatedColumns(const S *from, int64_t from_stride, const ColumnGate<S> &gate, int64_t count, S *to,
                      int64_t to_stride) {
  static_assert(kSame<S, Compute<S>>);
  for (int64_t n = 0; n < count; n += kChunk) {
    alignas(64) S lines[kChunk][kChunk];
    const int64_t times = Min(kChunk, count - n);
    S *const at = to + n * to_stride;
    ReadGated(from + n * from_stride, from_stride, gate.From(n, 0), times, lines);
    if (times == kChunk) {
      TransposeTile<S>(&lines[0][0], kChunk, at, to_stride);
    } else {
      ColumnEnd<S>{{}, nullptr, 0, CONVSCAN_IDENTITY}.Write(times, lines, at, to_stride);
    }
  }
}

// And back, with what sums become.
template <class S>
void UntileGatedColumns(S *data, int64_t stride, const ColumnEnd<S> &end, int64_t count) {
  static_assert(kSame<S, Compute<S>>);
  for (int64_t n = 0; n < count; n += kChunk) {
    alignas(64) S lines[kChunk][kChunk];
    const int64_t times = Min(kChunk, count - n);
    S *const at = data + n * stride;
    if (times == kChunk) {
      TransposeTile<S>(at, stride, &lines[0][0], kChunk);
    } else {
      ReadGated(at, stride, ColumnGate<S>{}, times, lines);
    }
    end.From(n, 0).Write(times, lines, at, stride);
  }
}

}  // namespace convscan::CONVSCAN_ISA
