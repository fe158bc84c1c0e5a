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
    return {SubtractProduct(a.re * b.re, a.im, b.im), a.re * b.im + a.im * b.re};
  }
  CONVSCAN_INLINE ComplexVec Scaled(T s) const { return {re * s, im * s}; }
};

// a * conj(b)
template <class T, int W>
CONVSCAN_INLINE ComplexVec<T, W> MultiplyConjugate(ComplexVec<T, W> a, ComplexVec<T, W> b) {
  return {a.re * b.re + a.im * b.im, SubtractProduct(a.im * b.re, a.re, b.im)};
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

template <class T>
inline constexpr T kHalfRoot = static_cast<T>(0.70710678118654752440);

// Times √2 exp(-iπ/4) forwards, √2 exp(+iπ/4) on the way back: the factor of √½ goes into the sum that follows.
template <bool kInverse, class T, int W>
CONVSCAN_INLINE ComplexVec<T, W> DiagonalTurn(ComplexVec<T, W> a) {
  if constexpr (kInverse) {
    return {a.re - a.im, a.re + a.im};
  } else {
    return {a.re + a.im, a.im - a.re};
  }
}

// Times exp(-iπ/4) forwards, exp(+iπ/4) on the way back.
template <bool kInverse, class T, int W>
CONVSCAN_INLINE ComplexVec<T, W> EighthTurn(ComplexVec<T, W> a) {
  return DiagonalTurn<kInverse>(a).Scaled(kHalfRoot<T>);
}

// Times 1 - i t forwards, 1 + i t on the way back; and times t - i, or t + i.
template <bool kInverse, class T, int W>
CONVSCAN_INLINE ComplexVec<T, W> Slanted(ComplexVec<T, W> a, T t) {
  if constexpr (kInverse) {
    return {a.re - a.im * t, a.im + a.re * t};
  } else {
    return {a.re + a.im * t, a.im - a.re * t};
  }
}
template <bool kInverse, class T, int W>
CONVSCAN_INLINE ComplexVec<T, W> Steep(ComplexVec<T, W> a, T t) {
  if constexpr (kInverse) {
    return {a.re * t - a.im, a.im * t + a.re};
  } else {
    return {a.re * t + a.im, a.im * t - a.re};
  }
}

// a + b s
template <class T, int W>
CONVSCAN_INLINE ComplexVec<T, W> AddScaled(ComplexVec<T, W> a, ComplexVec<T, W> b, T s) {
  return {a.re + b.re * s, a.im + b.im * s};
}

template <bool kInverse, class T, int W>
CONVSCAN_INLINE void Dft4(ComplexVec<T, W> &a, ComplexVec<T, W> &b, ComplexVec<T, W> &c, ComplexVec<T, W> &d) {
  const ComplexVec<T, W> s = a + c, t = a - c, u = b + d, v = QuarterTurn<kInverse>(b - d);
  a = s + u;
  b = t + v;
  c = s - u;
  d = t - v;
}

// The second half of a transform of 4 points: from the sum and the difference of the even ones, and the odd ones, which
// are yet to be multiplied by `scale`.
template <bool kInverse, class T, int W>
CONVSCAN_INLINE void Dft4Sums(ComplexVec<T, W> sum, ComplexVec<T, W> difference, ComplexVec<T, W> b, ComplexVec<T, W> d,
                              T scale, ComplexVec<T, W> *to) {
  const ComplexVec<T, W> u = b + d, v = QuarterTurn<kInverse>(b - d);
  to[0] = AddScaled(sum, u, scale);
  to[1] = AddScaled(difference, v, scale);
  to[2] = AddScaled(sum, u, -scale);
  to[3] = AddScaled(difference, v, -scale);
}

// A transform of a, c √½, and b and d times `scale`.
template <bool kInverse, class T, int W>
CONVSCAN_INLINE void Dft4Scaled(ComplexVec<T, W> a, ComplexVec<T, W> b, ComplexVec<T, W> c, ComplexVec<T, W> d, T scale,
                                ComplexVec<T, W> *to) {
  Dft4Sums<kInverse>(AddScaled(a, c, kHalfRoot<T>), AddScaled(a, c, -kHalfRoot<T>), b, d, scale, to);
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
    const C a = v[1], b = v[3], c = v[5], d = v[7], e0 = v[0], e1 = v[2], e2 = v[4], e3 = v[6];
    const C turned_b = DiagonalTurn<kInverse>(b), turned_c = QuarterTurn<kInverse>(c),
            turned_d = QuarterTurn<kInverse>(DiagonalTurn<kInverse>(d));
    v[0] = e0 + a;
    v[1] = AddScaled(e1, turned_b, kHalfRoot<T>);
    v[2] = e2 + turned_c;
    v[3] = AddScaled(e3, turned_d, kHalfRoot<T>);
    v[4] = e0 - a;
    v[5] = AddScaled(e1, turned_b, -kHalfRoot<T>);
    v[6] = e2 - turned_c;
    v[7] = AddScaled(e3, turned_d, -kHalfRoot<T>);
  } else {
    static_assert(R == 16);
    // 4 x 4: columns, then rows with twiddles exp(-2πi p q / 16) on what they read.
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) Dft4<kInverse>(v[q], v[q + 4], v[q + 8], v[q + 12]);
    Dft4<kInverse>(v[0], v[1], v[2], v[3]);
    // w = exp(-iπ/8) = cos(π/8) (1 - i tan(π/8)); w³ = cos(π/8) (tan(π/8) - i).
    constexpr T kCosine = static_cast<T>(0.92387953251128675613), kTangent = static_cast<T>(0.41421356237309504880);
    Dft4Scaled<kInverse>(v[4], Slanted<kInverse>(v[5], kTangent), DiagonalTurn<kInverse>(v[6]),
                         Steep<kInverse>(v[7], kTangent), kCosine, &v[4]);
    const C third = QuarterTurn<kInverse>(v[10]);
    Dft4Sums<kInverse>(v[8] + third, v[8] - third, DiagonalTurn<kInverse>(v[9]),
                       QuarterTurn<kInverse>(DiagonalTurn<kInverse>(v[11])), kHalfRoot<T>, &v[8]);
    const C slanted = Slanted<kInverse>(v[15], kTangent);
    Dft4Scaled<kInverse>(v[12], Steep<kInverse>(v[13], kTangent), QuarterTurn<kInverse>(DiagonalTurn<kInverse>(v[14])),
                         C{-slanted.re, -slanted.im}, kCosine, &v[12]);
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
