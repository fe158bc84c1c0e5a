// Vectors of any width, written once and compiled once per instruction set.
//
// Every kernel lives in namespace convscan::CONVSCAN_ISA, and the build defines CONVSCAN_ISA and the compiler flags
// per instruction set. Nothing here, and nothing in a kernel, may use inline code of the standard library: the linker
// keeps one copy of an inline function, perhaps the one built for a newer processor than the one it then runs on.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifndef CONVSCAN_ISA
#error "kernels are compiled once per instruction set: define CONVSCAN_ISA"
#endif

#if defined(__F16C__) || defined(__SSE2__)
#include <immintrin.h>
#endif

#define CONVSCAN_INLINE inline __attribute__((always_inline))

namespace convscan::CONVSCAN_ISA {

#ifndef CONVSCAN_VECTOR_BYTES
#if defined(__AVX512F__)
#define CONVSCAN_VECTOR_BYTES 64
#elif defined(__AVX__)
#define CONVSCAN_VECTOR_BYTES 32
#else
#define CONVSCAN_VECTOR_BYTES 16
#endif
#endif
inline constexpr int kVectorBytes = CONVSCAN_VECTOR_BYTES;
// Architectural vector registers: 32 on AVX-512 and AArch64, 16 on older x86. Tiles are sized by it.
#ifndef CONVSCAN_VECTOR_REGISTERS
#if defined(__AVX512F__) || defined(__aarch64__)
#define CONVSCAN_VECTOR_REGISTERS 32
#else
#define CONVSCAN_VECTOR_REGISTERS 16
#endif
#endif
inline constexpr int kVectorRegisters = CONVSCAN_VECTOR_REGISTERS;

template <class T>
inline constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

template <class T, int W>
struct VectorType {
  typedef T Type __attribute__((vector_size(sizeof(T) * W)));
  typedef T Unaligned __attribute__((vector_size(sizeof(T) * W), aligned(alignof(T)), may_alias));
};
template <class T, int W = kLanes<T>>
using Vec = typename VectorType<T, W>::Type;

// Storage of half types; arithmetic is float32.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};
// float32 in memory, float64 in arithmetic.
struct WideFloat32 {
  float value;
};

// The type a stored type is computed in.
template <class S>
struct ComputeOf {
  using Type = S;
};
template <>
struct ComputeOf<BFloat16> {
  using Type = float;
};
template <>
struct ComputeOf<Float16> {
  using Type = float;
};
template <>
struct ComputeOf<WideFloat32> {
  using Type = double;
};
template <class S>
using Compute = typename ComputeOf<S>::Type;

// The unsigned integer as large as T.
template <int kBytes>
struct UnsignedOfSize {
  using Type = uint32_t;
};
template <>
struct UnsignedOfSize<2> {
  using Type = uint16_t;
};
template <>
struct UnsignedOfSize<8> {
  using Type = uint64_t;
};
template <class T>
using Unsigned = typename UnsignedOfSize<static_cast<int>(sizeof(T))>::Type;

template <class A, class B>
inline constexpr bool kSame = false;
template <class A>
inline constexpr bool kSame<A, A> = true;

template <class To, class From>
CONVSCAN_INLINE To BitCast(From v) {
  static_assert(sizeof(To) == sizeof(From));
  return __builtin_bit_cast(To, v);
}

// ---- half conversions, vectorised over W by integer arithmetic (F16C where the target has it) ----

template <int W>
CONVSCAN_INLINE Vec<float, W> FromBFloat16(Vec<uint16_t, W> v) {
  return BitCast<Vec<float, W>>(__builtin_convertvector(v, Vec<uint32_t, W>) << 16);
}

// Round to nearest even; NaN stays NaN (quiet).
template <int W>
CONVSCAN_INLINE Vec<uint16_t, W> ToBFloat16(Vec<float, W> v) {
  using U = Vec<uint32_t, W>;
  const U u = BitCast<U>(v);
  const U rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const U is_nan = BitCast<U>(v != v);
  return __builtin_convertvector((rounded & ~is_nan) | (((u >> 16) | 0x40u) & is_nan), Vec<uint16_t, W>);
}

template <int W>
CONVSCAN_INLINE Vec<float, W> FromFloat16(Vec<uint16_t, W> v) {
#if defined(__F16C__)
  if constexpr (W == 8) return (Vec<float, W>)_mm256_cvtph_ps((__m128i)v);
#endif
#if defined(__AVX512F__)
  if constexpr (W == 16) return (Vec<float, W>)_mm512_cvtph_ps((__m256i)v);
#endif
  using U = Vec<uint32_t, W>;
  using F = Vec<float, W>;
  const U h = __builtin_convertvector(v, U);
  const U sign = (h & 0x8000u) << 16;
  const U magnitude = (h & 0x7fffu) << 13;
  // Scaling by 2^112 re-biases the exponent and renormalises subnormals exactly; infinities and NaN need their own.
  const F scaled = BitCast<F>(magnitude) * 0x1p112f;
  const U special = BitCast<U>(magnitude >= 0x7c00u << 13);
  const U bits = (BitCast<U>(scaled) & ~special) | ((magnitude | 0x7f800000u) & special);
  return BitCast<F>(bits | sign);
}

template <int W>
CONVSCAN_INLINE Vec<uint16_t, W> ToFloat16(Vec<float, W> v) {
#if defined(__F16C__)
  if constexpr (W == 8) return (Vec<uint16_t, W>)_mm256_cvtps_ph((__m256)v, 0);
#endif
#if defined(__AVX512F__)
  if constexpr (W == 16) return (Vec<uint16_t, W>)_mm512_cvtps_ph((__m512)v, 0);
#endif
  using U = Vec<uint32_t, W>;
  using F = Vec<float, W>;
  const U u = BitCast<U>(v);
  const U sign = (u >> 16) & 0x8000u;
  const U magnitude = u & 0x7fffffffu;
  // Normal results: add half of the last kept place (ties to even) and re-bias. Subnormal ones: let the adder round.
  const U normal = (magnitude + 0xc8000fffu + ((magnitude >> 13) & 1u)) >> 13;
  const U subnormal = BitCast<U>(BitCast<F>(magnitude) + 0.5f) - 0x3f000000u;
  const U is_subnormal = BitCast<U>(magnitude < 0x38800000u);
  const U overflows = BitCast<U>(magnitude >= 0x477ff000u);
  const U is_nan = BitCast<U>(magnitude > 0x7f800000u);
  U result = (normal & ~is_subnormal) | (subnormal & is_subnormal);
  result = (result & ~overflows) | (0x7c00u & overflows);
  result = (result & ~is_nan) | (0x7e00u & is_nan);
  return __builtin_convertvector(result | sign, Vec<uint16_t, W>);
}

// ---- loads and stores: W consecutive elements of storage type S as a vector of its compute type ----

template <int W, class S>
CONVSCAN_INLINE Vec<Compute<S>, W> Load(const S *p) {
  if constexpr (kSame<S, BFloat16>) {
    return FromBFloat16<W>(*reinterpret_cast<const typename VectorType<uint16_t, W>::Unaligned *>(p));
  } else if constexpr (kSame<S, Float16>) {
    return FromFloat16<W>(*reinterpret_cast<const typename VectorType<uint16_t, W>::Unaligned *>(p));
  } else if constexpr (kSame<S, WideFloat32>) {
    const Vec<float, W> narrow = *reinterpret_cast<const typename VectorType<float, W>::Unaligned *>(p);
    return __builtin_convertvector(narrow, Vec<double, W>);
  } else {
    return *reinterpret_cast<const typename VectorType<S, W>::Unaligned *>(p);
  }
}

template <int W, class S>
CONVSCAN_INLINE void Store(S *p, Vec<Compute<S>, W> v) {
  if constexpr (kSame<S, BFloat16>) {
    *reinterpret_cast<typename VectorType<uint16_t, W>::Unaligned *>(p) = ToBFloat16<W>(v);
  } else if constexpr (kSame<S, Float16>) {
    *reinterpret_cast<typename VectorType<uint16_t, W>::Unaligned *>(p) = ToFloat16<W>(v);
  } else if constexpr (kSame<S, WideFloat32>) {
    *reinterpret_cast<typename VectorType<float, W>::Unaligned *>(p) = __builtin_convertvector(v, Vec<float, W>);
  } else {
    *reinterpret_cast<typename VectorType<S, W>::Unaligned *>(p) = v;
  }
}

// The first `count` of W numbers, at most W; zeros beyond, where nothing is read.
template <int W, class T>
CONVSCAN_INLINE Vec<T, W> LoadPart(const T *p, int64_t count) {
#if defined(__AVX512F__)
  if constexpr (kSame<T, float> && W == 16)
    return (Vec<T, W>)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), p);
  if constexpr (kSame<T, double> && W == 8)
    return (Vec<T, W>)_mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << count) - 1), p);
#endif
  T part[W] = {};
  for (int64_t i = 0; i < count; ++i) part[i] = p[i];
  return Load<W>(part);
}

// The first `count` of W numbers, at most W; nothing is written beyond.
template <int W, class T>
CONVSCAN_INLINE void StorePart(T *p, Vec<T, W> v, int64_t count) {
#if defined(__AVX512F__)
  if constexpr (kSame<T, float> && W == 16)
    return _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1), (__m512)v);
  if constexpr (kSame<T, double> && W == 8)
    return _mm512_mask_storeu_pd(p, static_cast<__mmask8>((1u << count) - 1), (__m512d)v);
#endif
  T part[W];
  Store<W>(part, v);
  for (int64_t i = 0; i < count; ++i) p[i] = part[i];
}

template <class S>
CONVSCAN_INLINE Compute<S> LoadScalar(const S *p) {
  if constexpr (!kSame<S, Compute<S>>) {
    return Load<1>(p)[0];
  } else {
    return *p;
  }
}

template <class S>
CONVSCAN_INLINE void StoreScalar(S *p, Compute<S> v) {
  if constexpr (!kSame<S, Compute<S>>) {
    Store<1>(p, Vec<Compute<S>, 1>{v});
  } else {
    *p = v;
  }
}


template <int... I>
struct Indices {};
template <int N, int... I>
struct MakeIndicesImpl : MakeIndicesImpl<N - 1, N - 1, I...> {};
template <int... I>
struct MakeIndicesImpl<0, I...> {
  using Type = Indices<I...>;
};
template <int N>
using MakeIndices = typename MakeIndicesImpl<N>::Type;

template <class T, int W = kLanes<T>>
CONVSCAN_INLINE Vec<T, W> Broadcast(T v) {
  // A list of lanes, which compiles to one broadcasting load; adding to a zero vector would cost an addition.
  return [v]<int... I>(Indices<I...>) { return Vec<T, W>{((void)I, v)...}; }(MakeIndices<W>{});
}

// a b + c, rounded once where the processor can. GCC contracts the plain expression; Clang does not where it has use for
// the product, too.
template <class V>
CONVSCAN_INLINE V MultiplyAdd(V a, V b, V c) {
#if defined(__clang__) && (defined(__FMA__) || defined(__aarch64__))
  return __builtin_elementwise_fma(a, b, c);
#else
  return a * b + c;
#endif
}

// c - a b, likewise. Of the difference of two products Clang negates one and adds the other for Arm, which is one instruction
// too many.
template <class V>
CONVSCAN_INLINE V SubtractProduct(V c, V a, V b) {
#if defined(__clang__) && (defined(__FMA__) || defined(__aarch64__))
  return __builtin_elementwise_fma(-a, b, c);
#else
  return c - a * b;
#endif
}

// Outputs above this are stored past the caches: they would not stay there, and their lines need not be read first.
inline constexpr int64_t kStreamBytes = int64_t{8} << 20;

// Store past the caches, for outputs too large to be read again soon. p must be aligned to the vector.
// A line written only in part costs more than an ordinary store: fill 64 bytes in a row.
template <int W, class T>
CONVSCAN_INLINE void StoreStream(T *p, Vec<T, W> v) {
#if defined(__AVX512F__)
  if constexpr (sizeof(v) == 64) return (void)_mm512_stream_si512((__m512i *)(void *)p, (__m512i)v);
#endif
#if defined(__AVX__)
  if constexpr (sizeof(v) == 32) return (void)_mm256_stream_si256((__m256i *)(void *)p, (__m256i)v);
#endif
#if defined(__SSE2__)
  if constexpr (sizeof(v) == 16) return (void)_mm_stream_si128((__m128i *)(void *)p, (__m128i)v);
#endif
  Store<W>(p, v);
}

// Orders streamed stores before whatever signals another thread; once at the end of a task.
CONVSCAN_INLINE void StreamFence() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// ---- transposes in registers ----

// One exchange step: lanes whose bit Distance differs from their row's are swapped between rows a and b.
template <int Distance, class V, int... I>
CONVSCAN_INLINE void ExchangeLanes(V &a, V &b, Indices<I...>) {
  constexpr int kW = sizeof...(I);
  const V low = __builtin_shufflevector(a, b, ((I & Distance) ? I - Distance + kW : I)...);
  const V high = __builtin_shufflevector(a, b, ((I & Distance) ? I + kW : I + Distance)...);
  a = low;
  b = high;
}

// Interleave steps inside each 128-bit block, which x86 does in one instruction each.
template <int Block, class V, int... I>
CONVSCAN_INLINE void UnpackLanes(V &a, V &b, Indices<I...>) {
  constexpr int kW = sizeof...(I);
  const V low = __builtin_shufflevector(a, b, ((I & ~(Block - 1)) + (I & (Block - 1)) / 2 + (I & 1) * kW)...);
  const V high =
      __builtin_shufflevector(a, b, ((I & ~(Block - 1)) + Block / 2 + (I & (Block - 1)) / 2 + (I & 1) * kW)...);
  a = low;
  b = high;
}
template <class V, int... I>
CONVSCAN_INLINE void UnpackPairs(V &a, V &b, Indices<I...>) {
  constexpr int kW = sizeof...(I);
  const V low = __builtin_shufflevector(a, b, ((I & ~3) + (I & 1) + ((I & 2) ? kW : 0))...);
  const V high = __builtin_shufflevector(a, b, ((I & ~3) + 2 + (I & 1) + ((I & 2) ? kW : 0))...);
  a = low;
  b = high;
}

// The blocks of a and b with even numbers, and those with odd ones, which x86 picks in one instruction each.
template <int Block, class V, int... I>
CONVSCAN_INLINE void HalveBlocks(V &a, V &b, Indices<I...>) {
  const V even = __builtin_shufflevector(a, b, (2 * (I / Block) * Block + I % Block)...);
  const V odd = __builtin_shufflevector(a, b, (2 * (I / Block) * Block + Block + I % Block)...);
  a = even;
  b = odd;
}

// v[r][c] becomes v[c][r]: a square of kLanes<T> vectors (or of W).
template <class T, int W = kLanes<T>>
CONVSCAN_INLINE void Transpose(Vec<T, W> (&v)[W]) {
  using Lanes = MakeIndices<W>;
  constexpr int kBlock = 16 / static_cast<int>(sizeof(T));  // elements per 128 bits: 4 or 2
  if constexpr (W == 1) {
    return;
  } else if constexpr (kBlock == 4 && W >= 4) {
#pragma GCC unroll 16
    for (int r = 0; r < W; r += 4) {
      UnpackLanes<4>(v[r], v[r + 1], Lanes{});      // a0 b0 a1 b1 | a2 b2 a3 b3
      UnpackLanes<4>(v[r + 2], v[r + 3], Lanes{});  // c0 d0 c1 d1 | c2 d2 c3 d3
      UnpackPairs(v[r], v[r + 2], Lanes{});         // a0 b0 c0 d0 | a1 b1 c1 d1
      UnpackPairs(v[r + 1], v[r + 3], Lanes{});     // a2 b2 c2 d2 | a3 b3 c3 d3
      const Vec<T, W> second = v[r + 2];
      v[r + 2] = v[r + 1];
      v[r + 1] = second;
    }
  } else {
#pragma GCC unroll 16
    for (int r = 0; r < W; r += 2) ExchangeLanes<1>(v[r], v[r + 1], Lanes{});
    if constexpr (kBlock == 4 && W >= 4) {
#pragma GCC unroll 16
      for (int r = 0; r < W; ++r)
        if (!(r & 2)) ExchangeLanes<2>(v[r], v[r + 2], Lanes{});
    }
  }
  // Blocks of 128 bits among rows kBlock apart.
  constexpr int kFirst = kBlock == 4 ? 4 : 2;
  if constexpr (W == 4 * kFirst) {
#pragma GCC unroll 16
    for (int r = 0; r < kFirst; ++r) {
      HalveBlocks<kFirst>(v[r], v[r + kFirst], Lanes{});                   // a0 a2 b0 b2 | a1 a3 b1 b3
      HalveBlocks<kFirst>(v[r + 2 * kFirst], v[r + 3 * kFirst], Lanes{});  // c0 c2 d0 d2 | c1 c3 d1 d3
      HalveBlocks<kFirst>(v[r], v[r + 2 * kFirst], Lanes{});               // a0 b0 c0 d0 | a2 b2 c2 d2
      HalveBlocks<kFirst>(v[r + kFirst], v[r + 3 * kFirst], Lanes{});      // a1 b1 c1 d1 | a3 b3 c3 d3
    }
    return;
  }
  if constexpr (W >= 2 * kFirst) {
#pragma GCC unroll 16
    for (int r = 0; r < W; ++r)
      if (!(r & kFirst)) ExchangeLanes<kFirst>(v[r], v[r + kFirst], Lanes{});
  }
  if constexpr (W >= 4 * kFirst) {
#pragma GCC unroll 16
    for (int r = 0; r < W; ++r)
      if (!(r & (2 * kFirst))) ExchangeLanes<2 * kFirst>(v[r], v[r + 2 * kFirst], Lanes{});
  }
  if constexpr (W >= 8 * kFirst) {  // sixteen half types
#pragma GCC unroll 16
    for (int r = 0; r < W; ++r)
      if (!(r & (4 * kFirst))) ExchangeLanes<4 * kFirst>(v[r], v[r + 4 * kFirst], Lanes{});
  }
}

CONVSCAN_INLINE int64_t Min(int64_t a, int64_t b) { return a < b ? a : b; }
CONVSCAN_INLINE int64_t Max(int64_t a, int64_t b) { return a > b ? a : b; }
CONVSCAN_INLINE int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace convscan::CONVSCAN_ISA
