// Products of small dense matrices that lie in the caches: the tiles that chunk-wise operators are made of.
//
//   c[i,j] = or += sum_k a[i,k] b[k,j],   0 <= i < rows, 0 <= j < columns, 0 <= k < depth
//
// Vectors run along j: b and c have consecutive columns. Of a, single numbers are broadcast, so that either of its axes
// may be the consecutive one: a transposed left factor costs nothing. A right factor stored as its transpose is turned
// first, by TransposeTile, which costs as much as one row of the product. A block of kMatmulRows x kMatmulVectors sums
// stays in registers over the whole depth, its order of summation depends on the depth alone.
#pragma once

#include "core/vector.h"

namespace convscan::CONVSCAN_ISA {

// Sums, the vectors of b and a broadcast number fill the registers: 12 chains of multiply-adds, of which a processor that
// starts two each cycle and takes four for one needs 8.
inline constexpr int kMatmulRows = kVectorRegisters >= 32 ? 12 : 6, kMatmulVectors = 2;

// A matrix to read: element (i, k) is at data[i * row + k * column].
template <class T>
struct Factor {
  const T *data;
  int64_t row, column;

  CONVSCAN_INLINE Factor From(int64_t i, int64_t k) const { return {data + i * row + k * column, row, column}; }
  CONVSCAN_INLINE Factor Transposed() const { return {data, column, row}; }
};

// A row-major matrix with consecutive columns.
template <class T>
CONVSCAN_INLINE Factor<T> RowMajor(const T *data, int64_t row) {
  return {data, row, 1};
}

template <int W, bool kWhole, class T>
CONVSCAN_INLINE Vec<T, W> LoadLanes(const T *p, int64_t lanes) {
  if constexpr (kWhole) return Load<W>(p);
  return LoadPart<W>(p, lanes);
}

template <int W, bool kWhole, class T>
CONVSCAN_INLINE void StoreLanes(T *p, Vec<T, W> v, int64_t lanes) {
  if constexpr (kWhole) return Store<W>(p, v);
  StorePart<W>(p, v, lanes);
}

// kRows x kVectors vectors of c; where not kWhole, only `lanes` of the one vector there is.
template <int kRows, int kVectors, bool kWhole, bool kAccumulate, class T>
CONVSCAN_INLINE void MultiplyBlock(int64_t depth, const Factor<T> &a, const T *b, int64_t b_row, T *c, int64_t c_row,
                                   int64_t lanes) {
  constexpr int W = kLanes<T>;
  Vec<T> sums[kRows][kVectors];
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v)
      sums[r][v] = kAccumulate ? LoadLanes<W, kWhole>(c + r * c_row + v * W, lanes) : Vec<T>{};
  const T *left = a.data;
  for (int64_t k = 0; k < depth; ++k, left += a.column, b += b_row) {
    Vec<T> right[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) right[v] = LoadLanes<W, kWhole>(b + v * W, lanes);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      const Vec<T> x = Broadcast<T>(left[r * a.row]);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sums[r][v] += x * right[v];
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) StoreLanes<W, kWhole>(c + r * c_row + v * W, sums[r][v], lanes);
}

struct Nothing {
  CONVSCAN_INLINE void operator()() const {}
};

// All columns of kRows rows of c.
template <int kRows, bool kAccumulate, class T, class Meanwhile>
void MultiplyRows(int64_t columns, int64_t depth, const Factor<T> &a, const T *b, int64_t b_row, T *c, int64_t c_row,
                  const Meanwhile &meanwhile) {
  constexpr int64_t W = kLanes<T>, kPanel = kMatmulVectors * W;
  int64_t j = 0;
  for (; j + kPanel <= columns; j += kPanel) {
    meanwhile();
    MultiplyBlock<kRows, kMatmulVectors, true, kAccumulate>(depth, a, b + j, b_row, c + j, c_row, W);
  }
  for (; j + W <= columns; j += W) MultiplyBlock<kRows, 1, true, kAccumulate>(depth, a, b + j, b_row, c + j, c_row, W);
  if (j < columns)
    MultiplyBlock<kRows, 1, false, kAccumulate>(depth, a, b + j, b_row, c + j, c_row, columns - j);
}

// How often Multiply calls `meanwhile`: once for each block of kMatmulRows rows or fewer and kMatmulVectors vectors.
template <class T>
int64_t MultiplyBlocks(int64_t rows, int64_t columns) {
  return CeilDiv(rows, kMatmulRows) * (columns / (kMatmulVectors * kLanes<T>));
}

// c = a b, or c += a b. The matrices must not overlap. Between its blocks, meanwhile() is called.
template <bool kAccumulate, class T, class Meanwhile = Nothing>
void Multiply(int64_t rows, int64_t columns, int64_t depth, Factor<T> a, const T *b, int64_t b_row, T *c,
              int64_t c_row, const Meanwhile &meanwhile = {}) {
  int64_t i = 0;
  const auto by = [&]<int kRows>() {
    for (; i + kRows <= rows; i += kRows)
      MultiplyRows<kRows, kAccumulate>(columns, depth, a.From(i, 0), b, b_row, c + i * c_row, c_row, meanwhile);
  };
  by.template operator()<kMatmulRows>();
  if constexpr (kMatmulRows > 8) by.template operator()<8>();
  by.template operator()<4>();
  by.template operator()<2>();
  by.template operator()<1>();
}

// to[j,i] = from[i,j]: both row-major, from with `rows` rows.
template <class T>
void TransposeTile(int64_t rows, int64_t columns, const T *from, int64_t from_row, T *to, int64_t to_row) {
  constexpr int64_t W = kLanes<T>;
  int64_t i = 0;
  for (; i + W <= rows; i += W) {
    int64_t j = 0;
    for (; j + W <= columns; j += W) {
      Vec<T> square[W];
#pragma GCC unroll 16
      for (int64_t r = 0; r < W; ++r) square[r] = Load<W>(from + (i + r) * from_row + j);
      Transpose<T>(square);
#pragma GCC unroll 16
      for (int64_t r = 0; r < W; ++r) Store<W>(to + (j + r) * to_row + i, square[r]);
    }
    for (; j < columns; ++j)
      for (int64_t r = 0; r < W; ++r) to[j * to_row + i + r] = from[(i + r) * from_row + j];
  }
  for (; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) to[j * to_row + i] = from[i * from_row + j];
}

// c = a b^T, or c += a b^T, with b (columns x depth) row-major; scratch has depth rows of scratch_row >= columns.
template <bool kAccumulate, class T>
void MultiplyTransposed(int64_t rows, int64_t columns, int64_t depth, Factor<T> a, const T *b, int64_t b_row, T *c,
                        int64_t c_row, T *scratch, int64_t scratch_row) {
  TransposeTile(columns, depth, b, b_row, scratch, scratch_row);
  Multiply<kAccumulate>(rows, columns, depth, a, scratch, scratch_row, c, c_row);
}

}  // namespace convscan::CONVSCAN_ISA
