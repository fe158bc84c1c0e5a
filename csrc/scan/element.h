// Arithmetic on vectors of real or complex numbers, so that every recurrence is written once over both.
#pragma once

#include "convscan.h"
#include "core/vector.h"
#include "scan/lanes.h"

namespace convscan::CONVSCAN_ISA {

// A number as it is stored (Storage) and computed (Part); a complex one is two neighbouring parts.
template <class S>
struct Real {
  using Storage = S;
  using Part = Compute<S>;
  static constexpr int kParts = 1;
  static constexpr bool kConjugates = false;
};
// With kConjugate, coefficients are the conjugates of what is stored.
template <class S, bool kConjugate = false>
struct Complex {
  using Storage = S;
  using Part = S;
  static constexpr int kParts = 2;
  static constexpr bool kConjugates = kConjugate;
};

// Numbers per vector register: at least one.
template <class Element>
inline constexpr int kNumbers = kLanes<typename Element::Part> / Element::kParts;

// W scalars: a vector, and a plain scalar where there is one (compilers keep vectors of one in memory).
template <class Part, int W>
struct ScalarsType {
  using Type = Vec<Part, W>;
};
template <class Part>
struct ScalarsType<Part, 1> {
  using Type = Part;
};

// N numbers.
template <class Element, int N>
using Numbers = typename ScalarsType<typename Element::Part, N * Element::kParts>::Type;

template <class V, int... I>
CONVSCAN_INLINE V RealParts(V v, Indices<I...>) {
  return __builtin_shufflevector(v, v, (I & ~1)...);
}
template <bool kConjugate = false, class V, int... I>
CONVSCAN_INLINE V ImaginaryParts(V v, Indices<I...>) {  // with the sign they have in i * (p + iq) = -q + ip
  using Part = decltype(v[0] + v[0]);
  using Bits = Vec<Unsigned<Part>, sizeof...(I)>;
  const Bits signs = Bits{((I & 1) != kConjugate ? 0 : Unsigned<Part>(1) << (8 * sizeof(Part) - 1))...};
  return BitCast<V>(BitCast<Bits>(__builtin_shufflevector(v, v, (I | 1)...)) ^ signs);
}
template <class V, int... I>
CONVSCAN_INLINE V SwapParts(V v, Indices<I...>) {
  return __builtin_shufflevector(v, v, (I ^ 1)...);
}

// a b + c, of a coefficient or a product of some
template <class Element, int N>
CONVSCAN_INLINE Numbers<Element, N> MultiplyAdd(Numbers<Element, N> a, Numbers<Element, N> b, Numbers<Element, N> c) {
  if constexpr (Element::kParts == 1) {
    return a * b + c;
  } else {
    constexpr MakeIndices<2 * N> kAll{};
    return ImaginaryParts<Element::kConjugates>(a, kAll) * SwapParts(b, kAll) + (RealParts(a, kAll) * b + c);
  }
}

// a b, of coefficients
template <class Element, int N>
CONVSCAN_INLINE Numbers<Element, N> Multiply(Numbers<Element, N> a, Numbers<Element, N> b) {
  if constexpr (Element::kParts == 1) {
    return a * b;
  } else {
    constexpr MakeIndices<2 * N> kAll{};
    return ImaginaryParts(a, kAll) * SwapParts(b, kAll) + RealParts(a, kAll) * b;
  }
}

// conj(a) b
template <class Element, int N>
CONVSCAN_INLINE Numbers<Element, N> ConjugateMultiply(Numbers<Element, N> a, Numbers<Element, N> b) {
  if constexpr (Element::kParts == 1) {
    return a * b;
  } else {
    constexpr MakeIndices<2 * N> kAll{};
    return ImaginaryParts<true>(a, kAll) * SwapParts(b, kAll) + RealParts(a, kAll) * b;
  }
}

template <class Element, int N, class Storage>
CONVSCAN_INLINE Numbers<Element, N> LoadNumbers(const Storage *p) {
  if constexpr (N * Element::kParts == 1) {
    return LoadScalar(p);
  } else {
    return Load<N * Element::kParts>(p);
  }
}

template <class Element, int N, class Storage>
CONVSCAN_INLINE void StoreNumbers(Storage *p, Numbers<Element, N> v) {
  if constexpr (N * Element::kParts == 1) {
    StoreScalar(p, v);
  } else {
    Store<N * Element::kParts>(p, v);
  }
}

// The same past the caches, of p that is aligned to kAlignment bytes: 16, which every allocator gives, or a cache line.
// Processors put lines together from blocks of 16 bytes, if what is next to a vector soon follows.
inline constexpr int kBlockBytes = 16, kLineBytes = 64;

template <class Element, int N, int kAlignment = kBlockBytes, class Storage>
CONVSCAN_INLINE void StreamNumbers(Storage *p, Numbers<Element, N> v) {
  constexpr int kScalars = N * Element::kParts;
  if constexpr (sizeof(Storage) != sizeof(typename Element::Part) || sizeof(v) < kBlockBytes) {
    StoreNumbers<Element, N>(p, v);
  } else if constexpr (sizeof(v) <= kAlignment) {
    StoreStream<kScalars>(p, v);
  } else {
    constexpr int kIn = kBlockBytes / static_cast<int>(sizeof(Storage));
    const auto block = [&]<int kFirst, int... I>(Indices<kFirst>, Indices<I...>) CONVSCAN_INLINED {
      StoreStream<kIn>(p + kFirst, __builtin_shufflevector(v, v, (kFirst + I)...));
    };
    const auto all = [&]<int... B>(Indices<B...>) CONVSCAN_INLINED { (block(Indices<B * kIn>{}, MakeIndices<kIn>{}), ...); };
    all(MakeIndices<kScalars / kIn>{});
  }
}

// Either of the two.
template <class Element, int N, class Storage>
CONVSCAN_INLINE void StoreNumbers(Storage *p, Numbers<Element, N> v, bool streams) {
  if (streams) return StreamNumbers<Element, N>(p, v);
  StoreNumbers<Element, N>(p, v);
}

// Squares of R x R numbers next to each other in R vectors: number b R + c of row r and b R + r of row c change places.
template <class Element, int N, int R = N, int Distance = 1>
CONVSCAN_INLINE void TransposeNumbers(Numbers<Element, N> (&v)[R]) {
  if constexpr (Element::kParts == 1) {
    if constexpr (N > 1) TransposeSquares<typename Element::Part, N, R>(v);
  } else if constexpr (Distance < R) {
    Repeat<R>([&](int r) CONVSCAN_INLINED {
      if (!(r & Distance)) ExchangeLanes<2 * Distance>(v[r], v[r + Distance], MakeIndices<2 * N>{});
    });
    TransposeNumbers<Element, N, R, 2 * Distance>(v);
  }
}

// The element whose coefficients are the conjugates of another's.
template <class Element>
struct ConjugateOf {
  using Type = Element;
};
template <class S>
struct ConjugateOf<Complex<S>> {
  using Type = Complex<S, true>;
};

// function(Element{}) for the element a dtype names.
template <class Function>
CONVSCAN_INLINE auto WithElement(convscan_dtype dtype, const Function &function) {
  switch (dtype) {
#if !defined(CONVSCAN_FLOAT32_ONLY)
    case CONVSCAN_FLOAT64: return function(Real<double>{});
    case CONVSCAN_BFLOAT16: return function(Real<BFloat16>{});
    case CONVSCAN_FLOAT16: return function(Real<Float16>{});
    case CONVSCAN_COMPLEX64: return function(Complex<float>{});
    case CONVSCAN_COMPLEX128: return function(Complex<double>{});
#endif
    default: return function(Real<float>{});
  }
}
template <class Function>
CONVSCAN_INLINE auto WithElement(convscan_dtype dtype, bool conjugates, const Function &function) {
  return WithElement(dtype, [&](auto element) {
    using Element = decltype(element);
    return conjugates ? function(typename ConjugateOf<Element>::Type{}) : function(Element{});
  });
}

}  // namespace convscan::CONVSCAN_ISA
