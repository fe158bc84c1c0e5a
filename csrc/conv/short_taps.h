// What short filters over channels and along time have in common.
#pragma once

#include "conv/register_tile.h"
#include "conv/signal.h"

namespace convscan::CONVSCAN_ISA {

// Up to so many taps each number of them is code of its own; the challenge has filters of 4 and of 32.
#if defined(CONVSCAN_RUNNER)
inline constexpr int kShortTaps = 4;
#else
inline constexpr int kShortTaps = 16;
#endif

// With more, which are read again and again, the rows of time that a group of channels takes at once, behind its past (Zen 5,
// two threads, 8192 x 1024, K = 32: 2.2 ms; with 32 and 128 rows 2.4 and 2.5).
inline constexpr int kManyRows = 64;

// Steps of a piece of time at least: the past of each is packed anew.
inline int64_t LeastPiece(const convscan_conv &p) {
  return p.taps <= kShortTaps ? 16 * p.taps : Max(4 * kManyRows, 2 * p.taps);
}

}  // namespace convscan::CONVSCAN_ISA
