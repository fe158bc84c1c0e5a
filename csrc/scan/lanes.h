// What scans do with the lanes of vectors: squares of them transposed, loops over them written out.
#pragma once

#include "core/vector.h"

#define CONVSCAN_INLINED __attribute__((always_inline))  // of a lambda

namespace convscan::CONVSCAN_ISA {

// function(0), ..., function(N - 1), written out: loops are unrolled too late for arrays of vectors to become registers.
template <int N, class Function>
CONVSCAN_INLINE void Repeat(const Function &function) {
  [&]<int... I>(Indices<I...>) CONVSCAN_INLINED { (function(I), ...); }(MakeIndices<N>{});
}

// Even lanes of both, and odd lanes.
template <class V, int... I>
CONVSCAN_INLINE void SeparateLanes(V &a, V &b, Indices<I...>) {
  constexpr int kW = sizeof...(I);
  const V even = __builtin_shufflevector(a, b, (2 * I % (2 * kW))...);
  const V odd = __builtin_shufflevector(a, b, (2 * I % (2 * kW) + 1)...);
  a = even;
  b = odd;
}

// Of rows whose indices differ in one bit alone the lower exchanges lanes with the other: bits from R / 2 down to Last.
template <int Last, int R, int Distance = R / 2, class V, class Lanes>
CONVSCAN_INLINE void ExchangeRows(V (&v)[R], Lanes lanes) {
  Repeat<R>([&](int r) CONVSCAN_INLINED {
    if (!(r & Distance)) ExchangeLanes<Distance>(v[r], v[r + Distance], lanes);
  });
  if constexpr (Last < Distance) ExchangeRows<Last, R, Distance / 2>(v, lanes);
}

// Squares of R x R next to each other in R vectors of W lanes, v[r][b R + c] becomes v[c][b R + r]; one square where R is W.
template <class T, int W = kLanes<T>, int R = W>
CONVSCAN_INLINE void TransposeSquares(Vec<T, W> (&v)[R]) {
  constexpr MakeIndices<W> kAll{};
  constexpr bool kUnpacks = sizeof(T) == 4 && R >= 4;  // four elements in 128 bits
  if constexpr (kUnpacks) {
    Repeat<R / 4>([&](int quarter) CONVSCAN_INLINED {
      const int r = 4 * quarter;
#if defined(__aarch64__)  // of other ways Clang makes more instructions, or interleaving stores
      SeparateLanes(v[r], v[r + 1], kAll);      // a0 a2 b0 b2 | a1 a3 b1 b3
      SeparateLanes(v[r + 2], v[r + 3], kAll);  // c0 c2 d0 d2 | c1 c3 d1 d3
      SeparateLanes(v[r], v[r + 2], kAll);      // a0 b0 c0 d0 | a2 b2 c2 d2
      SeparateLanes(v[r + 1], v[r + 3], kAll);  // a1 b1 c1 d1 | a3 b3 c3 d3
#else
      UnpackLanes<4>(v[r], v[r + 1], kAll);      // a0 b0 a1 b1 | a2 b2 a3 b3
      UnpackLanes<4>(v[r + 2], v[r + 3], kAll);  // c0 d0 c1 d1 | c2 d2 c3 d3
      UnpackPairs(v[r], v[r + 2], kAll);         // a0 b0 c0 d0 | a1 b1 c1 d1
      UnpackPairs(v[r + 1], v[r + 3], kAll);     // a2 b2 c2 d2 | a3 b3 c3 d3
      const Vec<T, W> second = v[r + 2];
      v[r + 2] = v[r + 1];
      v[r + 1] = second;
#endif
    });
  }
  constexpr int kFirst = kUnpacks ? 4 : 1;
  if constexpr (kFirst < R) ExchangeRows<kFirst>(v, kAll);
}

// Whether the top bit of any lane of unsigned integers is set.
template <class T, int W>
CONVSCAN_INLINE bool AnyTopBit(Vec<T, W> v) {
  static_assert(T(-1) > T(0));
  [[maybe_unused]] constexpr int kBytes = sizeof(v);
#if defined(__AVX512DQ__)
  if constexpr (kBytes == 64)
    return sizeof(T) == 4 ? _mm512_movepi32_mask((__m512i)v) != 0 : _mm512_movepi64_mask((__m512i)v) != 0;
#endif
#if defined(__AVX__)
  if constexpr (kBytes == 32)
    return sizeof(T) == 4 ? _mm256_movemask_ps((__m256)v) != 0 : _mm256_movemask_pd((__m256d)v) != 0;
#endif
#if defined(__SSE2__)
  if constexpr (kBytes == 16)
    return sizeof(T) == 4 ? _mm_movemask_ps((__m128)v) != 0 : _mm_movemask_pd((__m128d)v) != 0;
#endif
  if constexpr (W == 1) {
    return v[0] >> (8 * sizeof(T) - 1) != 0;
  } else {
    Vec<T, W / 2> halves[2];
    __builtin_memcpy(halves, &v, sizeof(v));
    return AnyTopBit<T, W / 2>(halves[0] | halves[1]);
  }
}

}  // namespace convscan::CONVSCAN_ISA
