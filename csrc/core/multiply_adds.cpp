// What the processor's arithmetic can do at most: multiply-adds and nothing else.
#include "core/kernels.h"
#include "core/parallel.h"
#include "core/vector.h"

namespace convscan::CONVSCAN_ISA {

int64_t MultiplyAdds(int64_t rounds, int threads) {
  // More than latency times units of any processor here (4 x 2, or 4 x 4 of narrow ones), and all in registers.
  constexpr int kSums = kVectorRegisters >= 32 ? 20 : 12;
  const int count = threads > 0 ? threads : ThreadCount();
  ParallelFor(count, count, [&](int64_t thread) {
    volatile float half = 0.5f;  // the compiler is not to know where the sums tend to
    const Vec<float> factor = Broadcast<float>(half), step = Broadcast<float>(half);
    Vec<float> sums[kSums];
#pragma GCC unroll 20
    for (int i = 0; i < kSums; ++i) sums[i] = Broadcast<float>(static_cast<float>(thread + i));
    for (int64_t round = 0; round < rounds; ++round)
#pragma GCC unroll 20
      for (int i = 0; i < kSums; ++i) sums[i] = sums[i] * factor + step;
#pragma GCC unroll 20
    for (int i = 1; i < kSums; ++i) sums[0] += sums[i];
    half = sums[0][0];
  });
  return 2 * rounds * kSums * kLanes<float> * count;
}

}  // namespace convscan::CONVSCAN_ISA
