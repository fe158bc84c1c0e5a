// Discrete Fourier transforms of 2, 3, 4, 5, 8 and 16 points, in registers.
#pragma once

#include "core/vector.h"

namespace convscan::CONVSCAN_ISA {

// W complex numbers, real and imaginary parts apart.
template <class T, int W = kLanes<T>>
struct ComplexVec {
  Vec<T, W> re, im;

  CONVSCAN_INLINE friend ComplexVec operator+(ComplexVec a, ComplexVec b) { return {a.re + b.re, a.im + b.im}; }
  CONVSCAN_INLINE friend ComplexVec operator-(ComplexVec a, ComplexVec b) { return {a.re - b.re, a.im - b.im}; }
  CONVSCAN_INLINE friend ComplexVec operator*(ComplexVec a, ComplexVec b) {
    return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
  }
  CONVSCAN_INLINE ComplexVec Scaled(T s) const { return {re * s, im * s}; }
};

// a * conj(b)
template <class T, int W>
CONVSCAN_INLINE ComplexVec<T, W> MultiplyConjugate(ComplexVec<T, W> a, ComplexVec<T, W> b) {
  return {a.re * b.re + a.im * b.im, a.im * b.re - a.re * b.im};
}

// Times w forwards, times conj(w) on the way back.
template <bool kInverse, class T, int W>
CONVSCAN_INLINE ComplexVec<T, W> Twiddle(ComplexVec<T, W> a, ComplexVec<T, W> w) {
  if constexpr (kInverse) {
    return MultiplyConjugate(a, w);
  } else {
    return a * w;
  }
}

// Times exp(-iπ/2) forwards, exp(+iπ/2) on the way back.
template <bool kInverse, class T, int W>
CONVSCAN_INLINE ComplexVec<T, W> QuarterTurn(ComplexVec<T, W> a) {
  if constexpr (kInverse) {
    return {-a.im, a.re};
  } else {
    return {a.im, -a.re};
  }
}

// Times exp(-iπ/4) forwards, exp(+iπ/4) on the way back.
template <bool kInverse, class T, int W>
CONVSCAN_INLINE ComplexVec<T, W> EighthTurn(ComplexVec<T, W> a) {
  constexpr T kHalfRoot = static_cast<T>(0.70710678118654752440);
  if constexpr (kInverse) {
    return {(a.re - a.im) * kHalfRoot, (a.re + a.im) * kHalfRoot};
  } else {
    return {(a.re + a.im) * kHalfRoot, (a.im - a.re) * kHalfRoot};
  }
}

template <bool kInverse, class T, int W>
CONVSCAN_INLINE void Dft4(ComplexVec<T, W> &a, ComplexVec<T, W> &b, ComplexVec<T, W> &c, ComplexVec<T, W> &d) {
  const ComplexVec<T, W> s = a + c, t = a - c, u = b + d, v = QuarterTurn<kInverse>(b - d);
  a = s + u;
  b = t + v;
  c = s - u;
  d = t - v;
}

// v[p] becomes the sum over q of v[q] exp(-2πi p q / R), or exp(+...) when kInverse. Not scaled.
template <bool kInverse, int R, class T, int W>
CONVSCAN_INLINE void Dft(ComplexVec<T, W> (&v)[R]) {
  using C = ComplexVec<T, W>;
  if constexpr (R == 2) {
    const C a = v[0], b = v[1];
    v[0] = a + b;
    v[1] = a - b;
  } else if constexpr (R == 3) {
    constexpr T kSine = static_cast<T>(0.86602540378443864676);
    const C sum = v[1] + v[2], difference = QuarterTurn<kInverse>((v[1] - v[2]).Scaled(kSine));
    const C centre = v[0] - sum.Scaled(static_cast<T>(0.5));
    v[0] = v[0] + sum;
    v[1] = centre + difference;
    v[2] = centre - difference;
  } else if constexpr (R == 4) {
    Dft4<kInverse>(v[0], v[1], v[2], v[3]);
  } else if constexpr (R == 5) {
    constexpr T kCosine1 = static_cast<T>(0.30901699437494742410), kCosine2 = static_cast<T>(-0.80901699437494742410);
    constexpr T kSine1 = static_cast<T>(0.95105651629515357212), kSine2 = static_cast<T>(0.58778525229247312917);
    const C a = v[1] + v[4], b = v[2] + v[3], c = v[1] - v[4], d = v[2] - v[3];
    const C e = v[0] + a.Scaled(kCosine1) + b.Scaled(kCosine2), f = v[0] + a.Scaled(kCosine2) + b.Scaled(kCosine1);
    const C g = QuarterTurn<kInverse>(c.Scaled(kSine1) + d.Scaled(kSine2));
    const C h = QuarterTurn<kInverse>(c.Scaled(kSine2) - d.Scaled(kSine1));
    v[0] = v[0] + a + b;
    v[1] = e + g;
    v[2] = f + h;
    v[3] = f - h;
    v[4] = e - g;
  } else if constexpr (R == 8) {
    Dft4<kInverse>(v[0], v[2], v[4], v[6]);
    Dft4<kInverse>(v[1], v[3], v[5], v[7]);
    const C a = v[1], b = EighthTurn<kInverse>(v[3]), c = QuarterTurn<kInverse>(v[5]),
            d = QuarterTurn<kInverse>(EighthTurn<kInverse>(v[7]));
    const C e0 = v[0], e1 = v[2], e2 = v[4], e3 = v[6];
    v[0] = e0 + a;
    v[1] = e1 + b;
    v[2] = e2 + c;
    v[3] = e3 + d;
    v[4] = e0 - a;
    v[5] = e1 - b;
    v[6] = e2 - c;
    v[7] = e3 - d;
  } else {
    static_assert(R == 16);
    // 4 x 4: columns, twiddles exp(-2πi p q / 16), rows.
    constexpr T kCosine = static_cast<T>(0.92387953251128675613), kSine = static_cast<T>(0.38268343236508977173);
    const C w1{C{}.re + kCosine, C{}.re - kSine}, w3{C{}.re + kSine, C{}.re - kCosine};
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) Dft4<kInverse>(v[q], v[q + 4], v[q + 8], v[q + 12]);
    v[5] = Twiddle<kInverse>(v[5], w1);
    v[6] = EighthTurn<kInverse>(v[6]);
    v[7] = Twiddle<kInverse>(v[7], w3);
    v[9] = EighthTurn<kInverse>(v[9]);
    v[10] = QuarterTurn<kInverse>(v[10]);
    v[11] = QuarterTurn<kInverse>(EighthTurn<kInverse>(v[11]));
    v[13] = Twiddle<kInverse>(v[13], w3);
    v[14] = QuarterTurn<kInverse>(EighthTurn<kInverse>(v[14]));
    v[15] = Twiddle<kInverse>(v[15], C{-w1.re, -w1.im});
#pragma GCC unroll 4
    for (int p = 0; p < 4; ++p) Dft4<kInverse>(v[4 * p], v[4 * p + 1], v[4 * p + 2], v[4 * p + 3]);
    // v[4 p + s] holds point p + 4 s.
#pragma GCC unroll 4
    for (int p = 0; p < 4; ++p)
#pragma GCC unroll 4
      for (int s = p + 1; s < 4; ++s) {
        const C swapped = v[4 * p + s];
        v[4 * p + s] = v[4 * s + p];
        v[4 * s + p] = swapped;
      }
  }
}

}  // namespace convscan::CONVSCAN_ISA
