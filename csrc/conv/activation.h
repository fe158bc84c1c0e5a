// Activations of a convolution's output, a vector at a time, to a few units in the last place over the whole range:
// tails underflow gradually instead of cancelling, NaN stays NaN, and minus infinity gives the limit, -0.
#pragma once

#include "convscan.h"
#include "core/vector.h"

namespace convscan::CONVSCAN_ISA {

template <class T>
struct ActivationConstants;

template <>
struct ActivationConstants<float> {
  using Bits = uint32_t;
  static constexpr int kMantissa = 23, kBias = 127;
  static constexpr float kRound = 0x1.8p23f;  // adding it leaves the nearest integer in the lowest bits
  static constexpr float kLog2e = 0x1.715476p0f, kLn2High = 0x1.63p-1f, kLn2Low = -0x1.bd0106p-13f;
  static constexpr Bits kHalf = 0xfffff000u;  // keeps the bits of t whose square is exact
  // Beyond these arguments silu and gelu of -t are zero.
  static constexpr float kSiluEnd = 110, kGeluEnd = 14.5f;
  // (exp(r) - 1 - r) / r^2 on [-0.39, 0.36], relative error 3e-7 (2e-8 of exp).
  static constexpr float kExp[] = {0x1.fffffep-2f, 0x1.5554b4p-3f, 0x1.555846p-5f, 0x1.123162p-7f, 0x1.695756p-10f};
  // (t + 4) exp(t^2/2) erfc(t / sqrt 2) / 2 in u = (t - 4) / (t + 4) for 0 <= t <= kGeluEnd, relative error 1.3e-8.
  static constexpr float kMills[] = {0x1.82b4bcp-1f,  -0x1.373e3ap-1f, 0x1.8c6d8ep-2f,  -0x1.7dffc6p-3f,
                                     0x1.eed98cp-5f,  -0x1.ed4daep-8f, -0x1.cdd786p-9f, 0x1.9b62dcp-10f,
                                     0x1.988772p-13f, -0x1.01ea14p-13f};
};

template <>
struct ActivationConstants<double> {
  using Bits = uint64_t;
  static constexpr int kMantissa = 52, kBias = 1023;
  static constexpr double kRound = 0x1.8p52;
  static constexpr double kLog2e = 0x1.71547652b82fep0, kLn2High = 0x1.62e42feep-1, kLn2Low = 0x1.a39ef35793c76p-33;
  static constexpr Bits kHalf = 0xfffffffff8000000u;
  static constexpr double kSiluEnd = 760, kGeluEnd = 39;
  // As above, on [-0.348, 0.348], relative error 2.5e-16 (1.5e-17 of exp).
  static constexpr double kExp[] = {0x1.0000000000001p-1,  0x1.5555555555556p-3,  0x1.5555555553c9bp-5,
                                    0x1.1111111110976p-7,  0x1.6c16c178d97f0p-10, 0x1.a01a01a7f3e28p-13,
                                    0x1.a019b7e0bf438p-16, 0x1.71de0cf59163ep-19, 0x1.2892e93100ed3p-22,
                                    0x1.af3a5f7cc56e2p-26};
  // As above, relative error 4e-17.
  static constexpr double kMills[] = {
      0x1.82b4bb8c94dcep-1,   -0x1.373e3a893c287p-1,  0x1.8c6dbf2cfc2fdp-2,   -0x1.7dff2bff6889ap-3,
      0x1.eec4cc3e4560cp-5,   -0x1.ee2761034c407p-8,  -0x1.c81719cabcedep-9,  0x1.ab825f7e9996dp-10,
      0x1.17a4a6b9505f7p-13,  -0x1.e4a415fb8cca5p-13, -0x1.0011cb7c88079p-19, 0x1.26cf8dea72ab1p-15,
      0x1.7fdd9eeeb883fp-21,  -0x1.8d35cd874dc01p-18, -0x1.4f9d808db1d2fp-21, 0x1.11c074ae9e33fp-20,
      0x1.1b207d62865e8p-22,  -0x1.4b471811b0210p-23, -0x1.480d99ae63529p-24, 0x1.f4eaa9c85bbb0p-27,
      0x1.de6d02a26289cp-27,  0x1.3fb7ce475a168p-34,  -0x1.0959f1400a390p-30};
};

template <int W, class T, int N>
CONVSCAN_INLINE Vec<T, W> Horner(Vec<T, W> x, const T (&c)[N]) {
  Vec<T, W> p = Broadcast<T, W>(c[N - 1]);
#pragma GCC unroll 32
  for (int i = N - 2; i >= 0; --i) p = p * x + c[i];
  return p;
}

// exp(a - rest) as mantissa * first * second with powers of two that are normal numbers even where the product is
// not: multiply whatever else belongs to the result into the mantissa first and only the last product rounds.
template <int W, class T>
struct ScaledExp {
  Vec<T, W> mantissa, first, second;
};

// For -kSiluEnd <= a <= 0 and 0 <= rest <= 0.04. The rest is for an exact square a, whose rounding exp would magnify.
template <int W, class T>
CONVSCAN_INLINE ScaledExp<W, T> ExpOfNegative(Vec<T, W> a, Vec<T, W> rest) {
  using C = ActivationConstants<T>;
  using U = Vec<typename C::Bits, W>;
  const Vec<T, W> shifted = a * C::kLog2e + C::kRound;
  const Vec<T, W> n = shifted - C::kRound;
  const Vec<T, W> r = ((a - n * C::kLn2High) - n * C::kLn2Low) - rest;
  const U exponent = BitCast<U>(shifted) - BitCast<U>(Broadcast<T, W>(C::kRound)) + typename C::Bits{2 * C::kBias};
  const U half = exponent >> 1;
  return {(r * r) * Horner<W, T>(r, C::kExp) + r + 1, BitCast<Vec<T, W>>(half << C::kMantissa),
          BitCast<Vec<T, W>>((exponent - half) << C::kMantissa)};
}

// min(|z|, end), NaN for NaN.
template <int W, class T>
CONVSCAN_INLINE Vec<T, W> ClampedMagnitude(Vec<T, W> z, T end) {
  const Vec<T, W> magnitude = z < 0 ? -z : z;
  return magnitude > end ? Broadcast<T, W>(end) : magnitude;
}

// z / (1 + exp(-z)); for negative z, z exp(z) / (1 + exp(z)).
template <int W, class T>
CONVSCAN_INLINE Vec<T, W> Silu(Vec<T, W> z) {
  const Vec<T, W> t = ClampedMagnitude<W, T>(z, ActivationConstants<T>::kSiluEnd);
  const ScaledExp<W, T> e = ExpOfNegative<W, T>(-t, Vec<T, W>{});
  const Vec<T, W> divisor = 1 + e.mantissa * e.first * e.second;
  const Vec<T, W> numerator = z < 0 ? -t * e.mantissa : z;
  const Vec<T, W> quotient = numerator / divisor;
  return z < 0 ? quotient * e.first * e.second : quotient;
}

// z Phi(z), Phi(-t) = exp(-t^2/2) * the scaled Mills ratio, a polynomial in (t - 4) / (t + 4) over t + 4
// (Shepherd and Laframboise 1981, Chebyshev approximation of (1 + 2x) exp(x^2) erfc x).
template <int W, class T>
CONVSCAN_INLINE Vec<T, W> Gelu(Vec<T, W> z) {
  using C = ActivationConstants<T>;
  using U = Vec<typename C::Bits, W>;
  const Vec<T, W> t = ClampedMagnitude<W, T>(z, C::kGeluEnd);
  const Vec<T, W> t_high = BitCast<Vec<T, W>>(BitCast<U>(t) & C::kHalf);
  const ScaledExp<W, T> e =
      ExpOfNegative<W, T>(t_high * t_high * T(-0.5), (t - t_high) * (t + t_high) * T(0.5));
  const Vec<T, W> inverse = 1 / (t + 4);
  const Vec<T, W> tail = Horner<W, T>((t - 4) * inverse, C::kMills) * inverse * e.mantissa;
  const Vec<T, W> negative = -t * tail * e.first * e.second;
  const Vec<T, W> positive = z * (1 - tail * e.first * e.second);
  return z < 0 ? negative : positive;
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
