// Exponentials a vector at a time, and what is made of them, over the whole range of their type: gradual underflow,
// overflow to infinity, NaN for NaN. tests/native/exp.cpp states the errors and measures them.
#pragma once

#include "core/vector.h"

namespace convscan::CONVSCAN_ISA {

template <class T>
struct ExpConstants;

template <>
struct ExpConstants<float> {
  static constexpr int kMantissa = 23, kBias = 127;
  static constexpr float kRound = 0x1.8p23f;  // adding it leaves the nearest integer in the lowest bits
  static constexpr float kLog2e = 0x1.715476p0f, kLn2High = 0x1.63p-1f, kLn2Low = -0x1.bd0106p-13f;
  static constexpr float kEnd = 110;  // beyond it exp is infinite, or half of the least subnormal number and less
  // (exp(r) - 1 - r) / r^2 on [-0.39, 0.36], relative error 3e-7 (2e-8 of exp).
  static constexpr float kExp[] = {0x1.fffffep-2f, 0x1.5554b4p-3f, 0x1.555846p-5f, 0x1.123162p-7f, 0x1.695756p-10f};
  // (2^r - 1) / r on [-0.501, 0.501], error 9e-9 of 2^r.
  static constexpr float kExp2[] = {0x1.62e430p-1f, 0x1.ebfbe0p-3f,  0x1.c6af6ap-5f,
                                    0x1.3b2a52p-7f, 0x1.5f0a1cp-10f, 0x1.44149ap-13f};
  // atanh(s) / s in s^2 for 0 <= s <= 1/3, relative error 8e-9.
  static constexpr float kAtanh[] = {1, 0x1.5554e2p-2f, 0x1.99da14p-3f, 0x1.1e5cfcp-3f, 0x1.2055eep-3f};
  // sin(pi r / 2) / r and cos(pi r / 2) in r^2 for |r| <= 0.5005, relative errors 4e-8 and 1e-8.
  static constexpr float kSin[] = {0x1.921fb6p0f, -0x1.4abbbap-1f, 0x1.465eb6p-4f, -0x1.2d989ap-8f};
  static constexpr float kCos[] = {1, -0x1.3bd3ccp0f, 0x1.03c1dcp-2f, -0x1.55c56ap-6f, 0x1.d9bebep-11f};
};

template <>
struct ExpConstants<double> {
  static constexpr int kMantissa = 52, kBias = 1023;
  static constexpr double kRound = 0x1.8p52;
  static constexpr double kLog2e = 0x1.71547652b82fep0, kLn2High = 0x1.62e42feep-1, kLn2Low = 0x1.a39ef35793c76p-33;
  static constexpr double kEnd = 760;
  // As above, on [-0.348, 0.348], relative error 2.5e-16 (1.5e-17 of exp).
  static constexpr double kExp[] = {0x1.0000000000001p-1,  0x1.5555555555556p-3,  0x1.5555555553c9bp-5,
                                    0x1.1111111110976p-7,  0x1.6c16c178d97f0p-10, 0x1.a01a01a7f3e28p-13,
                                    0x1.a019b7e0bf438p-16, 0x1.71de0cf59163ep-19, 0x1.2892e93100ed3p-22,
                                    0x1.af3a5f7cc56e2p-26};
  // As above, error 2e-17.
  static constexpr double kExp2[] = {0x1.62e42fefa39efp-1,  0x1.ebfbdff82c58fp-3,  0x1.c6b08d704a0c6p-5,
                                     0x1.3b2ab6fba4e79p-7,  0x1.5d87fe78a3ef9p-10, 0x1.430912f86b79ap-13,
                                     0x1.ffcbfc6de821dp-17, 0x1.62c02242d24bcp-20, 0x1.b524eb29e2f30p-24,
                                     0x1.e4cf105a3a015p-28, 0x1.e9ed48b35dbf1p-32, 0x1.c4a37e478b25dp-36};
  // As above, relative error 3e-18.
  static constexpr double kAtanh[] = {1,
                                      0x1.5555555555527p-2,
                                      0x1.99999999a1c4fp-3,
                                      0x1.249249201beacp-3,
                                      0x1.c71c7445b2127p-4,
                                      0x1.745caf74cbe5ep-4,
                                      0x1.3b1e2bc8a12dep-4,
                                      0x1.106443d797a85p-4,
                                      0x1.f00852a5c69fap-5,
                                      0x1.54f8c703ce149p-5,
                                      0x1.5d1081172f887p-4};
  // As above, relative errors 5e-17 and 3e-17.
  static constexpr double kSin[] = {0x1.921fb54442d18p0,   -0x1.4abbce625be41p-1, 0x1.466bc6775879ep-4,
                                    -0x1.32d2cce2defb3p-8, 0x1.50782fd2e3aa2p-13, -0x1.e3006aab5c1d9p-19,
                                    0x1.e3f0f70c02b80p-25};
  static constexpr double kCos[] = {1,
                                    -0x1.3bd3cc9be45dep0,
                                    0x1.03c1f081b5aacp-2,
                                    -0x1.55d3c7e3c907fp-6,
                                    0x1.e1f506834a0b7p-11,
                                    -0x1.a6d1ec6f916ecp-16,
                                    0x1.f9cc39a253f11p-22,
                                    -0x1.b2627050ff065p-28};
};

template <int W, class T, int N>
CONVSCAN_INLINE Vec<T, W> Horner(Vec<T, W> x, const T (&c)[N]) {
  Vec<T, W> p = Broadcast<T, W>(c[N - 1]);
#pragma GCC unroll 32
  for (int i = N - 2; i >= 0; --i) p = p * x + c[i];
  return p;
}

// exp(a - rest) as a mantissa and a power of two. The power may be smaller than any number, and even the result subnormal:
// multiply whatever else belongs to the result into the mantissa first, and only Scale rounds.
template <int W, class T>
struct ScaledExp {
  // AVX-512 scales by a whole exponent in one instruction; others by two normal numbers, halves of it.
  static constexpr bool kHasScale =
#if defined(__AVX512F__)
      sizeof(Vec<T, W>) == 64;
#else
      false;
#endif
  Vec<T, W> mantissa, first, second;  // with the instruction, `first` is the exponent

  CONVSCAN_INLINE Vec<T, W> Scale(Vec<T, W> x) const {
#if defined(__AVX512F__)
    if constexpr (kHasScale && sizeof(T) == 4) return (Vec<T, W>)_mm512_scalef_ps((__m512)x, (__m512)first);
    if constexpr (kHasScale && sizeof(T) == 8) return (Vec<T, W>)_mm512_scalef_pd((__m512d)x, (__m512d)first);
#endif
    return x * first * second;
  }
};

// For |a| <= kEnd and 0 <= rest <= 0.04. The rest is for an exact square a, whose rounding exp would magnify. The power that
// Scale multiplies by is that of exp, or with kInverts its reciprocal.
template <int W, class T, bool kInverts = false>
CONVSCAN_INLINE ScaledExp<W, T> ExpInParts(Vec<T, W> a, Vec<T, W> rest) {
  using C = ExpConstants<T>;
  using U = Vec<Unsigned<T>, W>;
  const Vec<T, W> shifted = a * C::kLog2e + C::kRound;
  const Vec<T, W> n = shifted - C::kRound;
  const Vec<T, W> r = ((a - n * C::kLn2High) - n * C::kLn2Low) - rest;
  const Vec<T, W> mantissa = (r * r) * Horner<W, T>(r, C::kExp) + r + 1;
  if constexpr (ScaledExp<W, T>::kHasScale) {
    const Vec<T, W> power = kInverts ? C::kRound - shifted : n;
    return {mantissa, power, power};
  }
  const U zero = BitCast<U>(Broadcast<T, W>(C::kRound)), integer = BitCast<U>(shifted);
  const U exponent = (kInverts ? zero - integer : integer - zero) + Unsigned<T>{2 * C::kBias};
  const U half = exponent >> 1;
  return {mantissa, BitCast<Vec<T, W>>(half << C::kMantissa), BitCast<Vec<T, W>>((exponent - half) << C::kMantissa)};
}

// min(x, end) and max(x, end), NaN for NaN.
template <int W, class T>
CONVSCAN_INLINE Vec<T, W> AtMost(Vec<T, W> x, T end) {
#if defined(__AVX512F__)  // an extreme is its second operand where one is NaN
  if constexpr (kSame<T, float> && W == 16) return (Vec<T, W>)_mm512_min_ps((__m512)Broadcast<T, W>(end), (__m512)x);
#endif
  return x > end ? Broadcast<T, W>(end) : x;
}
template <int W, class T>
CONVSCAN_INLINE Vec<T, W> AtLeast(Vec<T, W> x, T end) {
#if defined(__AVX512F__)
  if constexpr (kSame<T, float> && W == 16) return (Vec<T, W>)_mm512_max_ps((__m512)Broadcast<T, W>(end), (__m512)x);
#endif
  return x < end ? Broadcast<T, W>(end) : x;
}

// min(|x|, end), NaN for NaN.
template <int W, class T>
CONVSCAN_INLINE Vec<T, W> ClampedMagnitude(Vec<T, W> x, T end) {
  using U = Vec<Unsigned<T>, W>;
  constexpr int kSign = static_cast<int>(sizeof(T)) * 8 - 1;
  return AtMost<W, T>(BitCast<Vec<T, W>>(BitCast<U>(x) & ~(Unsigned<T>{1} << kSign)), end);
}

// 1 / x within 1 ulp for 0.5 <= x <= 2^120, NaN for NaN. AVX-512 refines an estimate of 14 bits, which takes a third of the
// time of its division.
template <int W, class T>
CONVSCAN_INLINE Vec<T, W> Reciprocal(Vec<T, W> x) {
#if defined(__AVX512F__)
  if constexpr (kSame<T, float> && W == 16) {
    const Vec<T, W> estimate = (Vec<T, W>)_mm512_rcp14_ps((__m512)x);
    return estimate * (1 - x * estimate) + estimate;
  }
#endif
  return 1 / x;
}

// exp(x), within 1.5 ulp.
template <int W, class T>
CONVSCAN_INLINE Vec<T, W> Exp(Vec<T, W> x) {
  constexpr T kEnd = ExpConstants<T>::kEnd;
  const ScaledExp<W, T> e = ExpInParts<W, T>(AtLeast<W, T>(AtMost<W, T>(x, kEnd), -kEnd), Vec<T, W>{});
  return e.Scale(e.mantissa);
}

// A number as the unevaluated sum of two.
template <int W, class T>
struct Split {
  Vec<T, W> high, low;
};

// 2^(x rate), for gates: 0 instead of the numbers below 2^(1/2 - kBias), of which most are subnormal, and infinite from
// 2^(kBias + 1/2) on. Within 1 ulp between, for a fused multiply-add does not round the product; a processor without it
// rounds it once, as exp(x * rate) does.
template <int W, class T>
CONVSCAN_INLINE Vec<T, W> Exp2OfProduct(Vec<T, W> x, const Split<W, T> &rate) {
  using C = ExpConstants<T>;
  using U = Vec<Unsigned<T>, W>;
  constexpr T kRound = C::kRound + C::kBias;  // leaves the biased exponent in the lowest bits
  const Vec<T, W> shifted = x * rate.high + kRound;
  const Vec<T, W> n = shifted - kRound;
  const Vec<T, W> r = x * rate.low + MultiplyAdd(x, rate.high, -n);
  const Vec<T, W> power = r * Horner<W, T>(r, C::kExp2) + 1;
  const Vec<T, W> scaled = power * BitCast<Vec<T, W>>(BitCast<U>(shifted) << C::kMantissa);
  const Vec<T, W> capped = shifted >= kRound + C::kBias + 1 ? Broadcast<T, W>(__builtin_inf()) : scaled;
  return shifted <= kRound - C::kBias ? Vec<T, W>{} : capped;
}

// cos and sin of x rate quarter turns, absolute error 2^-22 (2^-51) where the product is below 2^(kMantissa - 1) quarter
// turns; 1 and 0 beyond, where neighbouring x are more than a turn apart.
template <int W, class T>
CONVSCAN_INLINE void CosSinOfProduct(Vec<T, W> x, const Split<W, T> &rate, Vec<T, W> &cosine, Vec<T, W> &sine) {
  using C = ExpConstants<T>;
  using U = Vec<Unsigned<T>, W>;
  const Vec<T, W> shifted = x * rate.high + C::kRound;  // the quadrant in its lowest bits
  const Vec<T, W> n = shifted - C::kRound;
  const Vec<T, W> rest = x * rate.low + MultiplyAdd(x, rate.high, -n);
  const Vec<T, W> r = rest * rest <= 1 ? rest : Vec<T, W>{};
  const Vec<T, W> s = r * Horner<W, T>(r * r, C::kSin), c = Horner<W, T>(r * r, C::kCos);
  const U quadrant = BitCast<U>(shifted);
  constexpr int kSign = static_cast<int>(sizeof(T)) * 8 - 1;
  const Vec<T, W> first = (quadrant & 1) != 0 ? s : c, second = (quadrant & 1) != 0 ? c : s;
  cosine = BitCast<Vec<T, W>>(BitCast<U>(first) ^ (((quadrant + 1) & 2) << (kSign - 1)));
  sine = BitCast<Vec<T, W>>(BitCast<U>(second) ^ ((quadrant & 2) << (kSign - 1)));
}

// log(1 + t) for 0 <= t <= 1, within 4 ulp: 2 atanh(t / (2 + t)).
template <int W, class T>
CONVSCAN_INLINE Vec<T, W> Log1pOfUnit(Vec<T, W> t) {
  const Vec<T, W> inverse = 1 / (t + 2);
  const Vec<T, W> s = t * inverse;
  return t * (2 * inverse * Horner<W, T>(s * s, ExpConstants<T>::kAtanh));
}

// log(1 + exp(x)), within 4 ulp, tails included.
template <int W, class T>
CONVSCAN_INLINE Vec<T, W> Softplus(Vec<T, W> x) {
  const Vec<T, W> magnitude = x < 0 ? -x : x;
  const Vec<T, W> positive = x < 0 ? Vec<T, W>{} : x;
  return positive + Log1pOfUnit<W, T>(Exp<W, T>(-magnitude));
}

// 1 / (1 + exp(-x)), within 3 ulp, tails included.
template <int W, class T>
CONVSCAN_INLINE Vec<T, W> Sigmoid(Vec<T, W> x) {
  const Vec<T, W> magnitude = x < 0 ? -x : x;
  const Vec<T, W> e = Exp<W, T>(-magnitude);
  return (x < 0 ? e : Broadcast<T, W>(1)) / (1 + e);
}

}  // namespace convscan::CONVSCAN_ISA
