// How a transform reads and writes one row (the time axis of one channel) of an array in any memory order.
//
// A row is either contiguous, or chunked: 16 samples together, then a jump (see TransposeTiles), or anything else,
// which is read element by element.
#pragma once

#include "conv/activation.h"
#include "core/vector.h"

namespace convscan::CONVSCAN_ISA {

inline constexpr int kChunk = 16;

// A row's memory. Samples below fast_length lie in chunks: sample n at chunks[(n / 16) chunk_stride + n % 16];
// all others, and all samples where fast_length is 0, at elements[n stride].
template <class S>
struct Row {
  S *chunks;
  int64_t chunk_stride;
  int64_t fast_length;
  S *elements;
  int64_t stride;

  static Row Strided(S *elements, int64_t stride, int64_t length) {
    return {elements, kChunk, stride == 1 ? length : 0, elements, stride};
  }
  // The same row from sample `start` on, a multiple of 16.
  Row From(int64_t start) const {
    return {chunks + start / kChunk * chunk_stride, chunk_stride, Max(fast_length - start, 0),
            elements + start * stride, stride};
  }
  // visit(address) for samples n, n + kW, ... of `vectors` vectors below fast_length; n is a multiple of kW.
  template <int kWrite, int kW, class Visit>
  CONVSCAN_INLINE void ForVectors(int64_t n, int64_t vectors, const Visit &visit) const {
    if (chunk_stride == kChunk) {
      for (S *at = chunks + n; vectors > 0; --vectors, at += kW) visit(at);
      return;
    }
    // Chunks lie too far apart for the hardware to prefetch them: 1.4 ns an element so, 0.3 with, for 16384 x 256.
    constexpr int kAhead = 6;
    for (; vectors > 0; --vectors, n += kW) {
      S *const at = At(n);
      __builtin_prefetch(at + kAhead * chunk_stride, kWrite);
      visit(at);
    }
  }
  CONVSCAN_INLINE S *At(int64_t n) const { return chunks + (n / kChunk) * chunk_stride + n % kChunk; }
  CONVSCAN_INLINE S *Element(int64_t n) const { return n < fast_length ? At(n) : elements + n * stride; }
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
    const bool is_plain = row.chunk_stride == kChunk && gate.factors == nullptr;
    return is_plain && n + vectors * kW <= Min(length, row.fast_length) ? row.chunks + n : nullptr;
  }
  CONVSCAN_INLINE void operator()(int64_t n, int64_t vectors, T *to) const {
    const bool is_inside = n + vectors * kW <= Min(length, row.fast_length);
    if (is_inside && gate.factors == nullptr) {
      row.template ForVectors<0, kW>(n, vectors, [&](const S *from) {
        Store<kW>(to, Load<kW>(from));
        to += kW;
      });
    } else if (is_inside && gate.IsAdjacent()) {
      const S *factor = gate.factors + n;
      row.template ForVectors<0, kW>(n, vectors, [&](const S *from) {
        Store<kW>(to, Load<kW>(from) * Load<kW>(factor));
        factor += kW;
        to += kW;
      });
    } else {
      for (; vectors > 0; --vectors, n += kW, to += kW) Store<kW>(to, Vector(n));
    }
  }

  __attribute__((noinline)) Vec<T> Vector(int64_t n) const {
    const bool is_inside = n + kW <= Min(length, row.fast_length);
    if (is_inside && gate.factors == nullptr) return Load<kW>(row.At(n));
    if (is_inside) return Load<kW>(row.At(n)) * gate.Vector(n, length);
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
    if (row.chunk_stride == kChunk && end <= row.fast_length && gate.factors == nullptr)
      for (; i + kW <= count; i += kW) Store<kW>(to + i, Load<kW>(row.chunks + end - count + i));
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
    const bool is_plain = activation == CONVSCAN_IDENTITY && gate.factors == nullptr && row.chunk_stride == kChunk;
    return is_plain && n + vectors * kW <= Min(length, row.fast_length) ? row.chunks + n : nullptr;
  }
  CONVSCAN_INLINE void operator()(int64_t n, int64_t vectors, const T *from) const {
    const bool is_plain = activation == CONVSCAN_IDENTITY && n + vectors * kW <= Min(length, row.fast_length);
    if (is_plain && gate.factors == nullptr) {
      row.template ForVectors<1, kW>(n, vectors, [&](S *to) {
        Store<kW>(to, Load<kW>(from));
        from += kW;
      });
    } else if (is_plain && gate.IsAdjacent()) {
      const S *factor = gate.factors + n;
      row.template ForVectors<1, kW>(n, vectors, [&](S *to) {
        Store<kW>(to, Load<kW>(from) * Load<kW>(factor));
        factor += kW;
        from += kW;
      });
    } else {
      for (; vectors > 0; --vectors, n += kW, from += kW) Vector(n, Load<kW>(from));
    }
  }

  __attribute__((noinline)) void Vector(int64_t n, Vec<T> v) const {
    if (gate.factors != nullptr) v *= gate.Vector(n, length);
    v = Activate<kW, T>(v, activation);
    if (n + kW <= Min(length, row.fast_length)) return Store<kW>(row.At(n), v);
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

// Columns lie a stride apart, where no hardware prefetcher follows: tiles ahead are asked for.
template <int kWrite, class S>
CONVSCAN_INLINE void PrefetchTile(const S *columns, int64_t stride) {
  for (int r = 0; r < kChunk; ++r) __builtin_prefetch(columns + (2 * kChunk + r) * stride, kWrite);
}

// Time steps x channels become channels x time steps inside each tile: row 16 i + c of `to` then holds samples
// 16 i ... 16 i + 15 of channel c, one chunk. `from` and `to` are 16 channels wide; they may be the same memory, so an
// output array is its own scratch. `tiles` is the number of tiles along time. Undoes itself.
template <class S>
void TransposeTiles(const S *from, int64_t from_stride, S *to, int64_t to_stride, int64_t tiles) {
  for (int64_t tile = 0; tile < tiles; ++tile, from += kChunk * from_stride, to += kChunk * to_stride) {
    PrefetchTile<0>(from, from_stride);
    PrefetchTile<1>(to, to_stride);
    TransposeTile(from, from_stride, to, to_stride);
  }
}

// `rows` rows (a multiple of 16), `pitch` apart, of `count` samples become the columns of `to`, whose rows lie `stride`
// apart.
template <class T>
void RowsToColumns(const T *from, int64_t pitch, int64_t count, int64_t rows, T *to, int64_t stride) {
  int64_t n = 0;
  for (; n + kChunk <= count; n += kChunk)
    for (int64_t r = 0; r < rows; r += kChunk) {
      PrefetchTile<1>(to + n * stride + r, stride);
      TransposeTile(from + r * pitch + n, pitch, to + n * stride + r, stride);
    }
  for (; n < count; ++n)
    for (int64_t r = 0; r < rows; ++r) to[n * stride + r] = from[r * pitch + n];
}

// And back.
template <class T>
void RowsFromColumns(const T *from, int64_t stride, int64_t count, int64_t rows, T *to, int64_t pitch) {
  int64_t n = 0;
  for (; n + kChunk <= count; n += kChunk)
    for (int64_t r = 0; r < rows; r += kChunk) {
      PrefetchTile<0>(from + n * stride + r, stride);
      TransposeTile(from + n * stride + r, stride, to + r * pitch + n, pitch);
    }
  for (; n < count; ++n)
    for (int64_t r = 0; r < rows; ++r) to[r * pitch + n] = from[n * stride + r];
}

// kColumns neighbouring columns of an array with `count` rows become contiguous rows of `to`, row r at to + r count.
// Reading one column at a time would fetch every cache line once per column.
template <int kColumns, class S>
void CopyColumns(const S *from, int64_t stride, int64_t count, S *to) {
  using Bits = Unsigned<S>;
  const Bits *source = reinterpret_cast<const Bits *>(from);
  Bits *target = reinterpret_cast<Bits *>(to);
  int64_t n = 0;
  for (; n + kColumns <= count; n += kColumns) {
    Vec<Bits, kColumns> v[kColumns];
#pragma GCC unroll 16
    for (int r = 0; r < kColumns; ++r) v[r] = Load<kColumns>(source + (n + r) * stride);
    Transpose<Bits, kColumns>(v);
#pragma GCC unroll 16
    for (int r = 0; r < kColumns; ++r) Store<kColumns>(target + r * count + n, v[r]);
  }
  for (; n < count; ++n)
    for (int r = 0; r < kColumns; ++r) target[r * count + n] = source[n * stride + r];
}

}  // namespace convscan::CONVSCAN_ISA
