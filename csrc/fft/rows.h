// How a transform reads and writes one row (the time axis of one channel) of an array in any memory order, and how the rows
// of adjacent channels are gathered from their columns and scattered back.
#pragma once

#include "conv/activation.h"
#include "core/vector.h"

namespace convscan::CONVSCAN_ISA {

// Tiles of columns are this high and wide.
inline constexpr int kChunk = 16;

// What a transform reads where there are only zeros: as many as its first step takes from one place.
template <class S>
alignas(64) inline constexpr S kZeros[32 * kLanes<Compute<S>>]{};

// A row's memory: sample n at elements[n stride], of `length` samples.
template <class S>
struct Row {
  S *elements;
  int64_t stride, length;

  // The same row from sample `start` on.
  Row From(int64_t start) const { return {elements + start * stride, stride, Max(length - start, 0)}; }
  // Whether samples n ... n + count - 1 are there, one after the other.
  CONVSCAN_INLINE bool HasRun(int64_t n, int64_t count) const { return stride == 1 && n + count <= length; }
  CONVSCAN_INLINE S *Element(int64_t n) const { return elements + n * stride; }
};

// Factors of the samples of a row, `stride` apart, which may be 0; null for none.
template <class S>
struct RowGate {
  using T = Compute<S>;
  static constexpr int kW = kLanes<T>;
  const S *factors = nullptr;
  int64_t stride = 0;

  RowGate From(int64_t start) const { return {factors == nullptr ? nullptr : factors + start * stride, stride}; }
  CONVSCAN_INLINE bool IsAdjacent() const { return factors != nullptr && stride == 1; }
  // Factors n ... n + W - 1, those from `length` on 1.
  Vec<T> Vector(int64_t n, int64_t length) const {
    if (stride == 1 && n + kW <= length) return Load<kW>(factors + n);
    Vec<T> v = Broadcast<T>(T{1});
    for (int l = 0; l < kW && n + l < length; ++l) v[l] = LoadScalar(factors + (n + l) * stride);
    return v;
  }
};

// Samples 0 <= n < length of a row, times its gate if it has one, then zeros, then, from 2M - history_length on, minus the
// samples before the row: modulo X^2M + 1 they come round with the sign changed.
template <class S>
struct Samples {
  using T = Compute<S>;
  using Stored = S;
  static constexpr int kW = kLanes<T>;
  static constexpr T scale = 1;
  Row<const S> row;
  RowGate<S> gate;
  int64_t length;
  const T *history;       // null for none; has had the gate
  int64_t history_start;  // 2M - history_length; 2M for none

  Samples(Row<const S> row, RowGate<S> gate, int64_t length, const T *history, int64_t history_length, int64_t points)
      : row(row),
        gate(gate),
        length(length),
        history(history),
        history_start(2 * points - (history == nullptr ? 0 : history_length)) {}

  // See Transform::FirstStep.
  CONVSCAN_INLINE const S *At(int64_t n, int64_t vectors) const {
    if (n >= length && n + vectors * kW <= history_start) return kZeros<S>;
    return gate.factors == nullptr && HasRun(n, vectors * kW) ? row.elements + n : nullptr;
  }
  CONVSCAN_INLINE void operator()(int64_t n, int64_t vectors, T *to) const {
    if (gate.IsAdjacent() && HasRun(n, vectors * kW)) {
      for (; vectors > 0; --vectors, n += kW, to += kW)
        Store<kW>(to, Load<kW>(row.elements + n) * Load<kW>(gate.factors + n));
    } else {
      for (; vectors > 0; --vectors, n += kW, to += kW) Store<kW>(to, Vector(n));
    }
  }
  CONVSCAN_INLINE bool HasRun(int64_t n, int64_t count) const { return n + count <= length && row.HasRun(n, count); }

  __attribute__((noinline)) Vec<T> Vector(int64_t n) const {
    if (HasRun(n, kW)) {
      const Vec<T> samples = Load<kW>(row.elements + n);
      return gate.factors == nullptr ? samples : samples * gate.Vector(n, length);
    }
    if (n >= history_start) return -Load<kW>(history + (n - history_start));
    Vec<T> v{};
    if (n >= length && n + kW <= history_start) return v;
    for (int l = 0; l < kW; ++l) {
      const int64_t i = n + l;
      if (i < length) {
        v[l] = Sample(i);
      } else if (i >= history_start) {
        v[l] = -history[i - history_start];
      }
    }
    return v;
  }

  bool UpperIsZero(int64_t points) const { return length <= points && history == nullptr; }

  // The `count` samples that end at sample `end`, into memory of the compute type.
  void Copy(int64_t end, int64_t count, T *to) const {
    int64_t i = 0;
    if (gate.factors == nullptr && row.HasRun(end - count, count))
      for (; i + kW <= count; i += kW) Store<kW>(to + i, Load<kW>(row.elements + end - count + i));
    for (; i < count; ++i) to[i] = Sample(end - count + i);
  }

  T Sample(int64_t n) const {
    const T sample = LoadScalar(row.Element(n));
    return gate.factors == nullptr ? sample : sample * LoadScalar(gate.factors + n * gate.stride);
  }
};

// Taps of a filter, tap `origin` at sample 0: earlier ones come round from 2M with the sign changed. Times scale.
template <class S>
struct Taps {
  using T = Compute<S>;
  using Stored = S;
  static constexpr int kW = kLanes<T>;
  const S *h;
  int64_t stride, count, origin, period;  // period: 2M
  T scale;

  // As of Samples.
  CONVSCAN_INLINE const S *At(int64_t n, int64_t vectors) const {
    if (n + origin >= count && n + vectors * kW <= period - origin) return kZeros<S>;
    return stride == 1 && n + origin + vectors * kW <= count ? h + n + origin : nullptr;
  }
  CONVSCAN_INLINE void operator()(int64_t n, int64_t vectors, T *to) const {
    for (; vectors > 0; --vectors, n += kW, to += kW) Store<kW>(to, Vector(n));
  }

  __attribute__((noinline)) Vec<T> Vector(int64_t n) const {
    const int64_t first = n + origin;
    if (stride == 1 && first + kW <= count) return Load<kW>(h + first);
    Vec<T> v{};
    if (first >= count && n + kW <= period - origin) return v;
    for (int l = 0; l < kW; ++l) {
      const int64_t i = n + l;
      if (i + origin < count) {
        v[l] = LoadScalar(h + (i + origin) * stride);
      } else if (i >= period - origin) {
        v[l] = -LoadScalar(h + (i + origin - period) * stride);
      }
    }
    return v;
  }

  bool UpperIsZero(int64_t points) const { return origin == 0 && count <= points; }
};

// Writes samples 0 <= n < length of a row: activation(gate (sample + bias)); the bias is already in them.
template <class S>
struct Sink {
  using T = Compute<S>;
  using Stored = S;
  static constexpr int kW = kLanes<T>;
  static constexpr T scale = 1;
  Row<S> row;
  RowGate<S> gate;
  int64_t length;
  T bias;
  convscan_activation activation;
  bool streams;  // past the caches; the row then begins at a multiple of 64 bytes

  // See Transform::LastStep.
  CONVSCAN_INLINE S *At(int64_t n, int64_t vectors) const {
    const bool is_plain = activation == CONVSCAN_IDENTITY && gate.factors == nullptr;
    return is_plain && HasRun(n, vectors * kW) ? row.elements + n : nullptr;
  }
  CONVSCAN_INLINE void operator()(int64_t n, int64_t vectors, const T *from) const {
    if (activation == CONVSCAN_IDENTITY && gate.IsAdjacent() && HasRun(n, vectors * kW)) {
      for (; vectors > 0; --vectors, n += kW, from += kW)
        Store<kW>(row.elements + n, Load<kW>(from) * Load<kW>(gate.factors + n));
    } else {
      for (; vectors > 0; --vectors, n += kW, from += kW) Vector(n, Load<kW>(from));
    }
  }
  CONVSCAN_INLINE bool HasRun(int64_t n, int64_t count) const { return n + count <= length && row.HasRun(n, count); }

  __attribute__((noinline)) void Vector(int64_t n, Vec<T> v) const {
    if (gate.factors != nullptr) v *= gate.Vector(n, length);
    v = Activate<kW, T>(v, activation);
    if (HasRun(n, kW)) return Store<kW>(row.elements + n, v);
    for (int l = 0; l < kW && n + l < length; ++l) StoreScalar(row.Element(n + l), v[l]);
  }
};

// A 16 x 16 tile, rows and columns exchanged; `from` and `to` may be the same memory.
template <class S>
void TransposeTile(const S *from, int64_t from_stride, S *to, int64_t to_stride) {
  using Bits = Unsigned<S>;
  constexpr int kW = kVectorBytes / static_cast<int>(sizeof(Bits)) < kChunk
                         ? kVectorBytes / static_cast<int>(sizeof(Bits))
                         : kChunk;
  const Bits *source = reinterpret_cast<const Bits *>(from);
  Bits *target = reinterpret_cast<Bits *>(to);
  // Whole lines in, whole lines out: with rows 4 KiB apart all 16 fall into one set of the first-level cache.
  alignas(64) Bits lines[kChunk][kChunk];
  for (int r = 0; r < kChunk; ++r)
#pragma GCC unroll 16
    for (int j = 0; j < kChunk; j += kW) Store<kW>(&lines[r][j], Load<kW>(source + r * from_stride + j));
  for (int i = 0; i < kChunk; i += kW) {
    Vec<Bits, kW> v[kChunk / kW][kW];
#pragma GCC unroll 16
    for (int j = 0; j < kChunk; j += kW) {
#pragma GCC unroll 16
      for (int r = 0; r < kW; ++r) v[j / kW][r] = Load<kW>(&lines[j + r][i]);
      Transpose<Bits, kW>(v[j / kW]);
    }
#pragma GCC unroll 16
    for (int r = 0; r < kW; ++r)
#pragma GCC unroll 16
      for (int j = 0; j < kChunk; j += kW) Store<kW>(target + (i + r) * to_stride + j, v[j / kW][r]);
  }
}

// The same past the caches: every row of `to` is a whole number of lines.
template <class S>
void StreamTile(const S *from, int64_t from_stride, S *to, int64_t to_stride) {
  using Bits = Unsigned<S>;
  constexpr int kW = kVectorBytes / static_cast<int>(sizeof(Bits)) < kChunk
                         ? kVectorBytes / static_cast<int>(sizeof(Bits))
                         : kChunk;
  alignas(64) Bits lines[kChunk][kChunk];
  TransposeTile(reinterpret_cast<const Bits *>(from), from_stride, &lines[0][0], kChunk);
  for (int r = 0; r < kChunk; ++r)
#pragma GCC unroll 16
    for (int j = 0; j < kChunk; j += kW)
      StoreStream<kW>(reinterpret_cast<Bits *>(to) + r * to_stride + j, Load<kW>(&lines[r][j]));
}

// Columns lie a stride apart, where no hardware prefetcher follows: tiles ahead are asked for.
template <int kWrite, class S>
CONVSCAN_INLINE void PrefetchTile(const S *columns, int64_t stride) {
  for (int r = 0; r < kChunk; ++r) __builtin_prefetch(columns + (2 * kChunk + r) * stride, kWrite);
}

// `rows` rows, `pitch` apart, of `count` samples become the columns of `to`, whose rows lie `stride` apart; past the caches
// if `streams`, where lines are whole.
template <class T>
void RowsToColumns(const T *from, int64_t pitch, int64_t count, int64_t rows, T *to, int64_t stride, bool streams) {
  const int64_t whole = rows / kChunk * kChunk;
  int64_t n = 0;
  for (; n + kChunk <= count; n += kChunk) {
    for (int64_t r = 0; r < whole; r += kChunk) {
      if (streams) {
        StreamTile(from + r * pitch + n, pitch, to + n * stride + r, stride);
      } else {
        PrefetchTile<1>(to + n * stride + r, stride);
        TransposeTile(from + r * pitch + n, pitch, to + n * stride + r, stride);
      }
    }
    for (int64_t i = n; whole < rows && i < n + kChunk; ++i)
      for (int64_t r = whole; r < rows; ++r) to[i * stride + r] = from[r * pitch + i];
  }
  for (; n < count; ++n)
    for (int64_t r = 0; r < rows; ++r) to[n * stride + r] = from[r * pitch + n];
}

// And back.
template <class T>
void RowsFromColumns(const T *from, int64_t stride, int64_t count, int64_t rows, T *to, int64_t pitch) {
  const int64_t whole = rows / kChunk * kChunk;
  int64_t n = 0;
  for (; n + kChunk <= count; n += kChunk) {
    for (int64_t r = 0; r < whole; r += kChunk) {
      PrefetchTile<0>(from + n * stride + r, stride);
      TransposeTile(from + n * stride + r, stride, to + r * pitch + n, pitch);
    }
    for (int64_t i = n; whole < rows && i < n + kChunk; ++i)
      for (int64_t r = whole; r < rows; ++r) to[r * pitch + i] = from[i * stride + r];
  }
  for (; n < count; ++n)
    for (int64_t r = 0; r < rows; ++r) to[r * pitch + n] = from[n * stride + r];
}

}  // namespace convscan::CONVSCAN_ISA
