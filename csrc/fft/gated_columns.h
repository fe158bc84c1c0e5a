// Gates where channels are adjacent: factors lie along channels as the samples do, so that a tile of 16 time steps by
// up to 16 channels has its factors before it is transposed into rows, and its sums have bias, gate and activation after
// they were transposed back. Rows in between are of the compute type: no product is rounded to a half type.
#pragma once

#include "fft/rows.h"

namespace convscan::CONVSCAN_ISA {

// 16 times of 16 channels, or of fewer at the edges of an array.
template <class T>
struct Tile {
  static constexpr int kW = kLanes<T> < kChunk ? kLanes<T> : kChunk;
  alignas(64) T rows[kChunk][kChunk];

  // `times` rows of `columns` of an array with these strides; the others are as they were.
  template <class S>
  void Read(const S *from, int64_t time, int64_t channel, int64_t times, int64_t columns) {
    for (int64_t r = 0; r < times; ++r, from += time) {
      if (channel == 1 && columns == kChunk) {
        for (int j = 0; j < kChunk; j += kW) Store<kW>(&rows[r][j], Load<kW>(from + j));
      } else {
        for (int64_t j = 0; j < columns; ++j) rows[r][j] = LoadScalar(from + j * channel);
      }
    }
  }
  template <class S>
  void Write(S *to, int64_t time, int64_t channel, int64_t times, int64_t columns) const {
    for (int64_t r = 0; r < times; ++r, to += time) {
      if (channel == 1 && columns == kChunk) {
        for (int j = 0; j < kChunk; j += kW) Store<kW>(to + j, Load<kW>(&rows[r][j]));
      } else {
        for (int64_t j = 0; j < columns; ++j) StoreScalar(to + j * channel, rows[r][j]);
      }
    }
  }
  // Numbers n ... n + 15 of `columns` rows, `pitch` apart, become columns, the others zero; and back, where a row has room
  // for whole tiles.
  void FromRows(const T *from, int64_t pitch, int64_t columns) {
    if (columns == kChunk) return TransposeTile<T>(from, pitch, &rows[0][0], kChunk);
    for (int64_t i = 0; i < kChunk; ++i)
      for (int64_t j = 0; j < kChunk; ++j) rows[i][j] = j < columns ? from[j * pitch + i] : T{0};
  }
  void ToRows(T *to, int64_t pitch, int64_t columns) const {
    if (columns == kChunk) return TransposeTile<T>(&rows[0][0], kChunk, to, pitch);
    for (int64_t j = 0; j < columns; ++j)
      for (int64_t i = 0; i < kChunk; ++i) to[j * pitch + i] = rows[i][j];
  }
};

// Factors of an array of times and channels; null for none. Strides may be zero.
template <class S>
struct ColumnGate {
  using T = Compute<S>;
  static constexpr int kW = Tile<T>::kW;
  const S *factors = nullptr;
  int64_t time = 0, channel = 0;

  ColumnGate From(int64_t t, int64_t n) const {
    return {factors == nullptr ? nullptr : factors + t * time + n * channel, time, channel};
  }
  // z[r][n] *= the factor of time r and channel n.
  void Multiply(Tile<T> &z, int64_t times, int64_t columns) const {
    if (factors == nullptr) return;
    PrefetchTile<0>(factors, time);
    for (int64_t r = 0; r < times; ++r) {
      const S *const from = factors + r * time;
      T *const row = z.rows[r];
      if (channel == 1 && columns == kChunk) {
        for (int j = 0; j < kChunk; j += kW) Store<kW>(row + j, Load<kW>(row + j) * Load<kW>(from + j));
      } else {
        for (int64_t j = 0; j < columns; ++j) row[j] *= LoadScalar(from + j * channel);
      }
    }
  }
};

// What sums become: activation(gate (sum + bias)).
template <class S>
struct ColumnEnd {
  using T = Compute<S>;
  static constexpr int kW = Tile<T>::kW;
  ColumnGate<S> gate;
  const S *bias;  // null for none
  int64_t bias_stride;
  convscan_activation activation;

  ColumnEnd From(int64_t t, int64_t n) const {
    return {gate.From(t, n), bias == nullptr ? nullptr : bias + n * bias_stride, bias_stride, activation};
  }
  void Apply(Tile<T> &z, int64_t times, int64_t columns) const {
    for (int64_t j = 0; bias != nullptr && j < columns; ++j) {
      const T b = LoadScalar(bias + j * bias_stride);
      for (int64_t r = 0; r < times; ++r) z.rows[r][j] += b;
    }
    gate.Multiply(z, times, columns);
    if (activation == CONVSCAN_IDENTITY) return;
    for (int64_t r = 0; r < times; ++r)
      for (int j = 0; j < kChunk; j += kW)
        Store<kW>(&z.rows[r][j], Activate<kW, T>(Load<kW>(&z.rows[r][j]), activation));
  }
};

// RowsFromColumns with a gate. A row has room for whole tiles.
template <class S>
void RowsFromGatedColumns(const S *from, int64_t stride, const ColumnGate<S> &gate, int64_t count, int64_t rows,
                          Compute<S> *to, int64_t pitch) {
  using T = Compute<S>;
  for (int64_t n = 0; n < count; n += kChunk)
    for (int64_t r = 0; r < rows; r += kChunk) {
      const int64_t times = Min(kChunk, count - n), columns = Min(kChunk, rows - r);
      Tile<T> tile{};
      PrefetchTile<0>(from + n * stride + r, stride);
      tile.Read(from + n * stride + r, stride, 1, times, columns);
      gate.From(n, r).Multiply(tile, times, columns);
      tile.ToRows(to + r * pitch + n, pitch, columns);
    }
}

// And RowsToColumns with what sums become.
template <class S>
void RowsToGatedColumns(const Compute<S> *from, int64_t pitch, int64_t count, int64_t rows, const ColumnEnd<S> &end,
                        S *to, int64_t stride) {
  using T = Compute<S>;
  for (int64_t n = 0; n < count; n += kChunk)
    for (int64_t r = 0; r < rows; r += kChunk) {
      const int64_t times = Min(kChunk, count - n), columns = Min(kChunk, rows - r);
      Tile<T> tile;
      PrefetchTile<1>(to + n * stride + r, stride);
      tile.FromRows(from + r * pitch + n, pitch, columns);
      end.From(n, r).Apply(tile, times, columns);
      tile.Write(to + n * stride + r, stride, 1, times, columns);
    }
}

}  // namespace convscan::CONVSCAN_ISA
