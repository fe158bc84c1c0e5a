// Activations of a convolution's output, a vector at a time, exact over the whole range to a few units in the last place,
// which tests/native/exp.cpp measures: tails underflow gradually instead of cancelling, NaN stays NaN, and minus infinity
// gives the limit, -0.
#pragma once

#include "convscan.h"
#include "core/exp.h"

namespace convscan::CONVSCAN_ISA {

template <class T>
struct ActivationConstants;

template <>
struct ActivationConstants<float> {
  static constexpr uint32_t kHalf = 0xfffff000u;  // keeps the bits of t whose square is exact
  static constexpr float kGeluEnd = 14.5f;        // beyond it gelu of -t is zero
  static constexpr float kSiluEnd = 40;           // beyond it silu of t is t
  // (t + 4) exp(t^2/2) erfc(t / sqrt 2) / 2 in u = (t - 4) / (t + 4) for 0 <= t <= kGeluEnd, relative error 1.3e-8.
  static constexpr float kMills[] = {0x1.82b4bcp-1f,  -0x1.373e3ap-1f, 0x1.8c6d8ep-2f,  -0x1.7dffc6p-3f,
                                     0x1.eed98cp-5f,  -0x1.ed4daep-8f, -0x1.cdd786p-9f, 0x1.9b62dcp-10f,
                                     0x1.988772p-13f, -0x1.01ea14p-13f};
};

template <>
struct ActivationConstants<double> {
  static constexpr uint64_t kHalf = 0xfffffffff8000000u;
  static constexpr double kGeluEnd = 39, kSiluEnd = 80;
  // As above, relative error 4e-17.
  static constexpr double kMills[] = {
      0x1.82b4bb8c94dcep-1,   -0x1.373e3a893c287p-1,  0x1.8c6dbf2cfc2fdp-2,   -0x1.7dff2bff6889ap-3,
      0x1.eec4cc3e4560cp-5,   -0x1.ee2761034c407p-8,  -0x1.c81719cabcedep-9,  0x1.ab825f7e9996dp-10,
      0x1.17a4a6b9505f7p-13,  -0x1.e4a415fb8cca5p-13, -0x1.0011cb7c88079p-19, 0x1.26cf8dea72ab1p-15,
      0x1.7fdd9eeeb883fp-21,  -0x1.8d35cd874dc01p-18, -0x1.4f9d808db1d2fp-21, 0x1.11c074ae9e33fp-20,
      0x1.1b207d62865e8p-22,  -0x1.4b471811b0210p-23, -0x1.480d99ae63529p-24, 0x1.f4eaa9c85bbb0p-27,
      0x1.de6d02a26289cp-27,  0x1.3fb7ce475a168p-34,  -0x1.0959f1400a390p-30};
};

// Both functions take N vectors in turn, stage by stage: of one alone, the chain of operations is longer than what a
// processor looks ahead (silu on Zen 5 with AVX-512: 2.1 ns a vector with four of them, 2.65 with one).

// z / (1 + exp(-z)), within 3 ulp. With exp(-z) = m 2^n that is z / (2^-n + m) 2^-n, where only the last product rounds if
// the result is subnormal. Above kSiluEnd it is z, for which exp need not be known.
template <int W, class T, int N>
CONVSCAN_INLINE void Silu(Vec<T, W> (&z)[N]) {
  ScaledExp<W, T> e[N];
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) {
    z[i] = AtLeast<W, T>(z[i], -ExpConstants<T>::kEnd);
    e[i] = ExpInParts<W, T, true>(-AtMost<W, T>(z[i], ActivationConstants<T>::kSiluEnd), Vec<T, W>{});
  }
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) z[i] *= Reciprocal<W, T>(e[i].Scale(Broadcast<T, W>(1)) + e[i].mantissa);
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) z[i] = e[i].Scale(z[i]);
}

// z Phi(z), within 6 ulp. Phi(-t) = exp(-t^2/2) * the scaled Mills ratio, a polynomial in (t - 4) / (t + 4) over t + 4
// (Shepherd and Laframboise 1981, Chebyshev approximation of (1 + 2x) exp(x^2) erfc x).
template <int W, class T, int N>
CONVSCAN_INLINE void Gelu(Vec<T, W> (&z)[N]) {
  using C = ActivationConstants<T>;
  using U = Vec<Unsigned<T>, W>;
  Vec<T, W> t[N], tail[N];
  ScaledExp<W, T> e[N];
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) {
    t[i] = ClampedMagnitude<W, T>(z[i], C::kGeluEnd);
    const Vec<T, W> high = BitCast<Vec<T, W>>(BitCast<U>(t[i]) & C::kHalf);
    e[i] = ExpInParts<W, T>(high * high * T(-0.5), (t[i] - high) * (t[i] + high) * T(0.5));
  }
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) {
    const Vec<T, W> inverse = Reciprocal<W, T>(t[i] + 4);
    tail[i] = Horner<W, T>((t[i] - 4) * inverse, C::kMills) * inverse * e[i].mantissa;
  }
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) {
    const Vec<T, W> negative = e[i].Scale(-t[i] * tail[i]);
    const Vec<T, W> positive = z[i] * (1 - e[i].Scale(tail[i]));
    z[i] = z[i] < 0 ? negative : positive;
  }
}

template <int W, class T>
CONVSCAN_INLINE Vec<T, W> Silu(Vec<T, W> z) {
  Vec<T, W> one[] = {z};
  Silu<W, T>(one);
  return one[0];
}
template <int W, class T>
CONVSCAN_INLINE Vec<T, W> Gelu(Vec<T, W> z) {
  Vec<T, W> one[] = {z};
  Gelu<W, T>(one);
  return one[0];
}

// The derivative of silu, s (1 + z (1 - s)) with s = 1 / (1 + exp(-z)).
template <int W, class T>
CONVSCAN_INLINE Vec<T, W> SiluSlope(Vec<T, W> z) {
  const Vec<T, W> t = ClampedMagnitude<W, T>(z, ExpConstants<T>::kEnd);
  const ScaledExp<W, T> e = ExpInParts<W, T>(-t, Vec<T, W>{});
  const Vec<T, W> tail = e.Scale(e.mantissa), inverse = 1 / (1 + tail), lower = tail * inverse;
  const Vec<T, W> s = z < 0 ? lower : inverse, rest = z < 0 ? inverse : lower;
  return s + z * s * rest;
}

// The derivative of gelu, Phi(z) + z phi(z).
template <int W, class T>
CONVSCAN_INLINE Vec<T, W> GeluSlope(Vec<T, W> z) {
  using C = ActivationConstants<T>;
  using U = Vec<Unsigned<T>, W>;
  constexpr T kDensity = static_cast<T>(0.39894228040143267794);
  const Vec<T, W> t = ClampedMagnitude<W, T>(z, C::kGeluEnd);
  const Vec<T, W> t_high = BitCast<Vec<T, W>>(BitCast<U>(t) & C::kHalf);
  const ScaledExp<W, T> e = ExpInParts<W, T>(t_high * t_high * T(-0.5), (t - t_high) * (t + t_high) * T(0.5));
  const Vec<T, W> bell = e.Scale(e.mantissa), inverse = 1 / (t + 4);
  const Vec<T, W> tail = Horner<W, T>((t - 4) * inverse, C::kMills) * inverse * bell;
  return (z < 0 ? tail : 1 - tail) + z * (kDensity * bell);
}

// activation'(z)
template <int W, class T>
CONVSCAN_INLINE Vec<T, W> ActivationSlope(Vec<T, W> z, convscan_activation activation) {
  switch (activation) {
    case CONVSCAN_IDENTITY: return Broadcast<T, W>(T{1});
    case CONVSCAN_SILU: return SiluSlope<W, T>(z);
    case CONVSCAN_GELU: return GeluSlope<W, T>(z);
  }
  return Broadcast<T, W>(T{1});
}

template <int W, class T>
CONVSCAN_INLINE Vec<T, W> Activate(Vec<T, W> z, convscan_activation activation) {
  switch (activation) {
    case CONVSCAN_IDENTITY: return z;
    case CONVSCAN_SILU: return Silu<W, T>(z);
    case CONVSCAN_GELU: return Gelu<W, T>(z);
  }
  return z;
}

}  // namespace convscan::CONVSCAN_ISA
