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

// sum[i] += sum_k h[k] x[i - k] for begin <= k < end, over rows of W lanes, taps in ascending order.
template <int N, class T>
CONVSCAN_INLINE void AccumulateTaps(Vec<T> (&sum)[N], const T *x, const T *h, int64_t begin, int64_t end) {
  constexpr int W = kLanes<T>;
  int64_t k = begin;
  for (; k + kTapsAtOnce <= end; k += kTapsAtOnce) {
    Vec<T> tap[kTapsAtOnce];
#pragma GCC unroll 4
    for (int q = 0; q < kTapsAtOnce; ++q) tap[q] = Load<W>(h + (k + q) * W);
    const T *const newest = x - k * W;
#pragma GCC unroll 32
    for (int j = 1 - kTapsAtOnce; j < N; ++j) {
      const Vec<T> sample = Load<W>(newest + j * W);
#pragma GCC unroll 4
      for (int q = 0; q < kTapsAtOnce; ++q)
        if (j + q >= 0 && j + q < N) sum[j + q] += tap[q] * sample;
    }
    EndOfStep();
  }
  for (; k < end; ++k) {
    const Vec<T> tap = Load<W>(h + k * W);
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) sum[i] += tap * Load<W>(x + (i - k) * W);
  }
}

}  // namespace convscan::CONVSCAN_ISA
