// Powers of many complex numbers side by side, in double precision for every type of problem.
#pragma once

#include "convscan.h"
#include "core/vector.h"

namespace convscan::CONVSCAN_ISA {

// Terms of a sum that a task holds at a time: its tables then stay in the second-level cache.
inline constexpr int64_t kTerms = 64;

// One complex number per term.
struct Terms {
  static constexpr int kTogether = 8;
  double re[kTerms], im[kTerms];
  int64_t size;  // those in use, a multiple of kTogether

  static int64_t SizeFor(int64_t count) { return CeilDiv(count, kTogether) * kTogether; }
  explicit Terms(int64_t count) : size(SizeFor(count)) {}

  void Fill(double value) {
    for (int64_t i = 0; i < size; ++i) {
      re[i] = value;
      im[i] = 0;
    }
  }
  // `count` numbers of an array of interleaved parts; zeros behind them.
  template <class T>
  void Gather(const T *numbers, int64_t stride, int64_t count) {
    for (int64_t i = 0; i < size; ++i) {
      re[i] = i < count ? numbers[2 * i * stride] : 0;
      im[i] = i < count ? numbers[2 * i * stride + 1] : 0;
    }
  }
  void Gather(convscan_dtype dtype, const void *numbers, int64_t offset, int64_t stride, int64_t count) {
    if (dtype == CONVSCAN_COMPLEX64) return Gather(static_cast<const float *>(numbers) + 2 * offset, stride, count);
    Gather(static_cast<const double *>(numbers) + 2 * offset, stride, count);
  }
  void Multiply(const Terms &by) {
    for (int64_t i = 0; i < size; i += kTogether) {
      const Vec<double, kTogether> a = Load<kTogether>(re + i), b = Load<kTogether>(im + i);
      const Vec<double, kTogether> c = Load<kTogether>(by.re + i), d = Load<kTogether>(by.im + i);
      Store<kTogether>(re + i, a * c - b * d);
      Store<kTogether>(im + i, a * d + b * c);
    }
  }
  // This times base^exponent. Squaring reaches any start of a tile in some twenty products; 0 to the power 0 is 1.
  void MultiplyPower(Terms base, int64_t exponent) {
    for (; exponent > 0; exponent >>= 1) {
      if (exponent & 1) Multiply(base);
      base.Multiply(base);
    }
  }
};

// l (l-1) ... (l-order+1): what the order-th derivative of a^l has before it.
CONVSCAN_INLINE double FallingFactorial(int64_t l, int order) {
  double product = 1;
  for (int i = 0; i < order; ++i) product *= static_cast<double>(l - i);
  return product;
}

}  // namespace convscan::CONVSCAN_ISA
