// The inner product of the direct kernels: several outputs times several taps in registers.
#pragma once

#include "core/vector.h"

namespace convscan::CONVSCAN_ISA {

// Outputs per register tile. Each loaded sample meets kTapsAtOnce taps, so N + 2 kTapsAtOnce - 1 loads feed
// N kTapsAtOnce multiply-adds: 15 for 32 on 16 registers, where two of each run per cycle.
template <class T>
inline constexpr int kOutputsAtOnce = kVectorRegisters == 32 ? 16 : 8;
inline constexpr int kTapsAtOnce = 4;

// Between steps of a register tile: the compiler may not carry loaded samples over to the next step, for which there
// are no registers (GCC does, and spills: 62 of 102 GFLOP/s on a Zen 3 core, 89 with the barrier).
CONVSCAN_INLINE void EndOfStep() { asm volatile("" ::: "memory"); }

// sum[i] += sum_k h[k] x[i - k] for Q taps from k on, over rows of W lanes that are kStep apart.
template <int Q, int kStep, int N, class T>
CONVSCAN_INLINE void AccumulateSome(Vec<T> (&sum)[N], const T *x, const T *h, int64_t k) {
  constexpr int W = kLanes<T>;
  Vec<T> tap[Q];
#pragma GCC unroll 4
  for (int q = 0; q < Q; ++q) tap[q] = Load<W>(h + (k + q) * kStep);
  const T *const newest = x - k * kStep;
#pragma GCC unroll 32
  for (int j = 1 - Q; j < N; ++j) {
    const Vec<T> sample = Load<W>(newest + j * kStep);
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q)
      if (j + q >= 0 && j + q < N) sum[j + q] += tap[q] * sample;
  }
}

// The same for begin <= k < end, in an order that does not depend on N.
template <int N, class T, int kStep = kLanes<T>>
CONVSCAN_INLINE void AccumulateTaps(Vec<T> (&sum)[N], const T *x, const T *h, int64_t begin, int64_t end) {
  int64_t k = begin;
  for (; k + kTapsAtOnce <= end; k += kTapsAtOnce) {
    AccumulateSome<kTapsAtOnce, kStep>(sum, x, h, k);
    EndOfStep();
  }
  if (end - k >= 2) {
    AccumulateSome<2, kStep>(sum, x, h, k);
    k += 2;
  }
  if (k < end) AccumulateSome<1, kStep>(sum, x, h, k);
}

// sum[i] += sum_t dz[t] x[t - i], 0 <= t < count, over rows of W lanes.
template <int N, class T>
CONVSCAN_INLINE void CorrelateTaps(Vec<T> (&sum)[N], const T *x, const T *dz, int64_t count) {
  constexpr int W = kLanes<T>;
  int64_t t = 0;
  for (; t + kTapsAtOnce <= count; t += kTapsAtOnce) {
    Vec<T> factor[kTapsAtOnce];
#pragma GCC unroll 4
    for (int q = 0; q < kTapsAtOnce; ++q) factor[q] = Load<W>(dz + (t + q) * W);
#pragma GCC unroll 32
    for (int j = 1 - N; j < kTapsAtOnce; ++j) {
      const Vec<T> sample = Load<W>(x + (t + j) * W);
#pragma GCC unroll 4
      for (int q = 0; q < kTapsAtOnce; ++q)
        if (q - j >= 0 && q - j < N) sum[q - j] += factor[q] * sample;
    }
    EndOfStep();
  }
  for (; t < count; ++t) {
    const Vec<T> factor = Load<W>(dz + t * W);
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) sum[i] += factor * Load<W>(x + (t - i) * W);
  }
}

}  // namespace convscan::CONVSCAN_ISA
