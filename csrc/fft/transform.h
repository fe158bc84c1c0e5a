// Real linear convolution by one complex FFT of half its length.
//
// Everything happens modulo X^2M + 1 over the reals. Its roots come in conjugate pairs; evaluating a real polynomial
// x of 2M coefficients at one of each pair, zeta_k = exp(-2πi (k - 1/4) / M), is a complex DFT of M points:
//
//   X[k] = sum_{n<M} (x[n] + i x[n+M]) w^(n (k - 1/4)),   w = exp(-2πi / M),
//
// since zeta_k^M = i for every k. Products of X[k] are therefore negacyclic convolutions of 2M real samples, with no
// zero padding stored and no pass to untangle a real transform. Shifting k by 1/4 costs nothing: it only changes
// twiddle factors (and turns the first butterfly's inputs by multiples of π / 2R).
//
// M = W N, where W is the number of lanes: sample n = W j + l sits in lane l of element j. The transform of each lane
// over j is an ordinary one of N points in which an element is a whole vector, twiddle factors are scalars, and no
// step needs a shuffle: decimation in frequency, radices 8, 4, 2, 3 or 5 first, then 5, 3, 8, 4, 2, and W last. After
// that last step the W elements of a group are transposed in registers, turned by w^(l (k - 1/4)) and transformed
// over l. Nothing between the transforms needs the natural order, so the way back undoes the steps in reverse, block
// by block: a sub-block goes forwards, is multiplied by the filter's spectrum and comes back while it is in cache.
//
// An element (real vector, imaginary vector) fills one cache line or two, so power-of-two strides waste no line.
#pragma once

#include <math.h>

#include "core/tables.h"
#include "core/vector.h"
#include "fft/ahead.h"
#include "fft/butterfly.h"

namespace convscan::CONVSCAN_ISA {

// exp(-2πi numerator / denominator), from the first octant so that both parts are good to the last place of a double.
inline void UnitRoot(int64_t numerator, int64_t denominator, double &re, double &im) {
  int64_t n = numerator % denominator;
  if (n < 0) n += denominator;
  // The angle is n / denominator of a turn; 8 n / denominator counts octants.
  const int octant = static_cast<int>(8 * n / denominator);
  int64_t m = 8 * n - octant * denominator;  // within the octant, in units of 1 / (8 denominator)
  if (octant & 1) m = denominator - m;
  const double angle = 0.78539816339744830962 * static_cast<double>(m) / static_cast<double>(denominator);
  const double c = cos(angle), s = sin(angle);
  static const signed char kSwap[8] = {0, 1, 1, 0, 0, 1, 1, 0};
  static const signed char kCosineSign[8] = {1, 1, -1, -1, -1, -1, 1, 1};
  static const signed char kSineSign[8] = {1, 1, 1, 1, -1, -1, -1, -1};
  re = kCosineSign[octant] * (kSwap[octant] ? s : c);
  im = -kSineSign[octant] * (kSwap[octant] ? c : s);
}

// How a transform of M points is cut into steps.
template <class T>
struct Steps {
  static constexpr int kW = kLanes<T>;
  static constexpr int kMost = 24;
  int count = 0;  // without the last step of radix W
  int radix[kMost];
  int64_t elements = 0;  // N

  // False when the length is not W² r (2,3,4,5,8)*, r in {2,3,4,5,8}.
  bool Cut(int64_t points) {
    constexpr int64_t kUnit = int64_t{kW} * kW;
    if (points < 2 * kUnit || points % kUnit != 0) return false;
    elements = points / kW;
    int64_t rest = points / kUnit;
    int twos = 0, threes = 0, fives = 0;
    for (; rest % 2 == 0; rest /= 2) ++twos;
    for (; rest % 3 == 0; rest /= 3) ++threes;
    for (; rest % 5 == 0; rest /= 5) ++fives;
    if (rest != 1) return false;
    count = 0;
    if (twos == 3) {
      radix[count++] = 8;
      twos -= 3;
    } else if (twos >= 2) {
      radix[count++] = 4;
      twos -= 2;
    } else if (twos >= 1) {
      radix[count++] = 2;
      twos -= 1;
    } else if (threes >= 1) {
      radix[count++] = 3;
      threes -= 1;
    } else {
      radix[count++] = 5;
      fives -= 1;
    }
    for (; fives > 0; --fives) radix[count++] = 5;
    for (; threes > 0; --threes) radix[count++] = 3;
    for (; twos >= 5 || twos == 3; twos -= 3) radix[count++] = 8;
    for (; twos >= 2; twos -= 2) radix[count++] = 4;
    if (twos == 1) radix[count++] = 2;
    return count <= kMost;
  }

  // The lowest of the frequencies k of a group. Its digits, most significant first, are the outputs its steps chose:
  // k = p1 + r1 p2 + r1 r2 p3 + ...
  int64_t GroupFrequency(int64_t group) const {
    int64_t k = 0, weight = 1, rest = group, below = elements / kW;
    for (int s = 0; s < count; ++s) {
      below /= radix[s];
      k += weight * (rest / below);
      rest %= below;
      weight *= radix[s];
    }
    return k;
  }
};

// Twiddle factors of a transform of M points. About 2 M / W complex numbers for the steps and M / W, or M, for the lanes.
template <class T>
struct Twiddles {
  static constexpr int kW = kLanes<T>, kLargestFirst = 8;
  Steps<T> steps;
  int64_t step_offset[Steps<T>::kMost];  // into scalars, in complex numbers
  int64_t lane_offset;                   // into scalars, likewise
  bool is_whole;                         // whether lanes are for each element and include fine
  ComplexVec<T> fine[kW];                   // exp(-2πi l p / W²) in lane l of fine[p]
  // exp(iπ q / 2R), R the first radix: what the quarter shift makes of the inputs of the first step.
  T turn_re[kLargestFirst], turn_im[kLargestFirst];
  // Followed by the scalars: interleaved complex numbers per step, then, per group or per element, W real and W imaginary
  // parts.

  T *Scalars() { return reinterpret_cast<T *>(this + 1); }
  const T *Scalars() const { return reinterpret_cast<const T *>(this + 1); }

  // Of short transforms, the products of the turns of a group and those of its elements are kept, 8 M bytes of them in
  // float32 (measured with 1 MiB of second-level cache: 1.10 of the speed for M = 1024, 1.05 for 32768, 0.98 for 65536).
  static constexpr int64_t kWholeBytes = int64_t{128} << 10;
  static bool IsWhole(const Steps<T> &steps) {
    return steps.elements * 2 * kW * static_cast<int64_t>(sizeof(T)) <= kWholeBytes;
  }

  static int64_t Bytes(const Steps<T> &steps) {
    int64_t numbers = steps.elements * (IsWhole(steps) ? kW : 1);  // lanes
    int64_t block = steps.elements;
    for (int s = 0; s < steps.count; ++s) {
      const int64_t m = block / steps.radix[s];
      numbers += m * (s == 0 ? steps.radix[s] : steps.radix[s] - 1);
      block = m;
    }
    return static_cast<int64_t>(sizeof(Twiddles)) + numbers * 2 * static_cast<int64_t>(sizeof(T));
  }

  static void Fill(void *table, int64_t points) {
    Twiddles &t = *static_cast<Twiddles *>(table);
    t.steps = Steps<T>{};
    t.steps.Cut(points);
    T *scalars = t.Scalars();
    int64_t offset = 0;
    int64_t block = t.steps.elements;
    double re, im;
    const auto put = [&](int64_t numerator, int64_t denominator) {
      UnitRoot(numerator, denominator, re, im);
      scalars[2 * offset] = static_cast<T>(re);
      scalars[2 * offset + 1] = static_cast<T>(im);
      ++offset;
    };
    for (int s = 0; s < t.steps.count; ++s) {
      const int r = t.steps.radix[s];
      const int64_t m = block / r;
      t.step_offset[s] = offset;
      for (int64_t j = 0; j < m; ++j) {
        if (s == 0) {
          for (int p = 0; p < r; ++p) put(j * (4 * p - 1), 4 * block);  // frequencies shifted by a quarter
        } else {
          for (int p = 1; p < r; ++p) put(j * p, block);
        }
      }
      block = m;
    }
    t.lane_offset = offset;
    t.is_whole = IsWhole(t.steps);
    const int64_t groups = t.steps.elements / kW;
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t k = t.steps.GroupFrequency(g);
      const int rows = t.is_whole ? kW : 1;
      for (int p = 0; p < rows; ++p) {
        T *lanes = scalars + 2 * (t.lane_offset + (g * rows + p) * kW);
        for (int l = 0; l < kW; ++l) {
          UnitRoot(l * (4 * (k + groups * p) - 1), 4 * points, re, im);
          lanes[l] = static_cast<T>(re);
          lanes[kW + l] = static_cast<T>(im);
        }
      }
    }
    for (int q = 0; q < t.steps.radix[0]; ++q) {
      UnitRoot(-q, 4 * t.steps.radix[0], re, im);
      t.turn_re[q] = static_cast<T>(re);
      t.turn_im[q] = static_cast<T>(im);
    }
    for (int p = 0; p < kW; ++p)
      for (int l = 0; l < kW; ++l) {
        UnitRoot(l * p, kW * kW, re, im);
        t.fine[p].re[l] = static_cast<T>(re);
        t.fine[p].im[l] = static_cast<T>(im);
      }
  }
};

// Which numbers of a spectrum are not zero, in its own order: for each group of W x W a bit for each of its vectors, and
// how many groups before it have any.
template <class T>
struct Pattern {
  static constexpr int kW = kLanes<T>;
  int64_t groups;
  int32_t *before;    // [groups + 1]
  uint16_t *vectors;  // [groups]

  Pattern(void *memory, int64_t points)
      : groups(points / (kW * kW)),
        before(static_cast<int32_t *>(memory)),
        vectors(reinterpret_cast<uint16_t *>(before + groups + 1)) {}
  static int64_t Bytes(int64_t points) {
    const int64_t groups = points / (kW * kW);
    return 4 * (groups + 1) + 2 * groups;
  }
  bool IsEmpty(int64_t first, int64_t count) const { return before[first + count] == before[first]; }
};

// One of `count` parts of a pass over the data of a transform: parts are independent of one another, passes are not.
struct Share {
  int64_t index = 0, count = 1;
  int64_t Begin(int64_t of) const { return of * index / count; }
  int64_t End(int64_t of) const { return of * (index + 1) / count; }
};

// Transforms of one length; holds its twiddle factors while it lives. Data is an array of N elements.
template <class T>
class Transform {
 public:
  static constexpr int kW = kLanes<T>;
  using C = ComplexVec<T>;
  using V = Vec<T>;

  // Not valid (see below) when the length is unsupported or memory is exhausted.
  explicit Transform(int64_t points) : points_(points) {
    static const char kKind = 0;
    Steps<T> steps;
    if (!steps.Cut(points)) return;
    table_ = static_cast<const Twiddles<T> *>(AcquireTable(
        {&kKind, points}, static_cast<size_t>(Twiddles<T>::Bytes(steps)), &Twiddles<T>::Fill));
  }
  ~Transform() {
    if (table_ != nullptr) ReleaseTable(table_);
  }
  Transform(const Transform &) = delete;
  Transform &operator=(const Transform &) = delete;

  bool IsValid() const { return table_ != nullptr; }
  int64_t Points() const { return points_; }
  int64_t Elements() const { return points_ / kW; }
  int64_t Bytes() const { return points_ * 2 * static_cast<int64_t>(sizeof(T)); }
  // Into how many shares what lies between the first step and the last one can be cut.
  int64_t Blocks() const { return table_->steps.radix[0]; }

  // data := the transform of 2M samples, except the last steps inside groups of W, which the functions below do.
  // source.At(n, vectors) is where the samples n ... n + W vectors - 1 lie one after the other; where that is null,
  // source(n, vectors, to) writes them to `to`. They count source.scale times. upper_is_zero says that samples M and above
  // are all zero; they are then not asked for.
  template <class Source>
  void FirstStep(const Source &source, bool upper_is_zero, C *data, Share share = {}) const {
    using S = typename Source::Stored;
    const int halves = upper_is_zero ? 1 : 2;
    ForFirstElements(share, [&](int64_t begin, int64_t vectors, int64_t m, int radix) {
      const S *at[2][kLargestFirst];
      bool is_direct = true;
      for (int half = 0; half < halves; ++half)
        for (int q = 0; q < radix; ++q) {
          at[half][q] = source.At(kW * (begin + m * q) + half * points_, vectors);
          is_direct = is_direct && at[half][q] != nullptr;
        }
      if (is_direct) return FirstStepFrom(at, source.scale, upper_is_zero, data, begin, vectors);
      alignas(64) T copies[2][kLargestFirst][kTogether * kW];
      const T *from[2][kLargestFirst];
      for (int half = 0; half < halves; ++half)
        for (int q = 0; q < radix; ++q) {
          from[half][q] = copies[half][q];
          if constexpr (kSame<S, T>) {
            if (at[half][q] != nullptr) {
              from[half][q] = at[half][q];
              continue;
            }
          }
          source(kW * (begin + m * q) + half * points_, vectors, copies[half][q]);
        }
      FirstStepFrom(from, source.scale, upper_is_zero, data, begin, vectors);
    });
  }

  // The way back: samples n ... n + W vectors - 1, of those below `limit`, limit <= 2M, times sink.scale, plus sink.bias, go
  // to sink.At(n, vectors), past the caches if sink.streams, or, where that is null, to sink(n, vectors, from); the last
  // vector may then reach beyond the limit.
  template <class Sink>
  void LastStep(const C *data, int64_t limit, const Sink &sink, Share share = {}) const {
    using S = typename Sink::Stored;
    const int halves = limit <= points_ ? 1 : 2;
    ForFirstElements(share, [&](int64_t begin, int64_t vectors, int64_t m, int radix) {
      S *at[2][kLargestFirst];
      bool is_direct = true;
      const auto first = [&](int half, int q) { return kW * (begin + m * q) + half * points_; };
      for (int half = 0; half < halves; ++half)
        for (int q = 0; q < radix; ++q) {
          at[half][q] = first(half, q) + vectors * kW <= limit ? sink.At(first(half, q), vectors) : nullptr;
          is_direct = is_direct && at[half][q] != nullptr;
        }
      if (is_direct) return LastStepTo(at, sink, halves, ~0u, data, begin, vectors);
      alignas(64) T copies[2][kLargestFirst][kTogether * kW];
      T *to[2][kLargestFirst];
      unsigned direct = 0;
      for (int half = 0; half < halves; ++half)
        for (int q = 0; q < radix; ++q) {
          to[half][q] = copies[half][q];
          if constexpr (kSame<S, T>) {
            if (at[half][q] != nullptr) {
              to[half][q] = at[half][q];
              direct |= 1u << (2 * q + half);
            }
          }
        }
      LastStepTo(to, sink, halves, direct, data, begin, vectors);
      for (int half = 0; half < halves; ++half)
        for (int q = 0; q < radix; ++q) {
          const int64_t n = first(half, q);
          if (to[half][q] == copies[half][q] && n < limit) sink(n, Min(vectors, CeilDiv(limit - n, kW)), copies[half][q]);
        }
    });
  }

  // After FirstStep: data becomes the spectrum, in the order the other functions expect of it.
  void Spectrum(C *data, const Ahead &ahead = {}, Share share = {}) const {
    ForBlocks([&](int64_t from, int64_t elements) {
      SpectrumOfBlock(data + from, elements, 1, from / kW, ahead);
    }, share);
  }

  // After FirstStep: data becomes, before LastStep, the product with a spectrum (scaled by 1 / M beforehand), or with its
  // conjugate. The spectrum may be stored in another type than it is computed in. `ahead` is asked for with the groups.
  template <bool kConjugate = false, class Stored>
  void MultiplyBySpectrum(C *data, const Stored *spectrum, const Ahead &ahead = {}, Share share = {}) const {
    ForBlocks([&](int64_t from, int64_t elements) {
      MultiplyBlock<kConjugate>(data + from, elements, 1, from / kW, spectrum, ahead);
    }, share);
  }

  // After FirstStep of both: data becomes, before LastStep, their product, and filter its spectrum.
  void MultiplyByFilter(C *data, C *filter, const Ahead &ahead = {}, Share share = {}) const {
    ForBlocks([&](int64_t from, int64_t elements) {
      MultiplyTogether(data + from, filter + from, elements, 1, from / kW, filter, ahead);
    }, share);
  }

  // The same with a spectrum of which a pattern says where it is not zero. Blocks that meet only zeros are left out.
  template <bool kConjugate = false, class Stored>
  void MultiplyBySparse(C *data, const Stored *spectrum, const Pattern<T> &pattern) const {
    ForBlocks([&](int64_t from, int64_t elements) {
      DescendSparse(data + from, elements, 1, from / kW, pattern, [&](C *group, int64_t g) {
        C v[kW];
        GroupForwardUntilLast(group, g, v);
        const unsigned kept = pattern.vectors[g];
        const Stored *const s = spectrum + 2 * kW * kW * g;
        const auto product = [&](int i) {
          const C number = LoadNumber(s + 2 * kW * i);
          v[i] = kConjugate ? MultiplyConjugate(v[i], number) : v[i] * number;
        };
        if constexpr (kW == 8) {
          // Frequencies below an eighth of the sampling rate: the first and the last of eight outputs.
          if ((kept & 0x7e) == 0) {
            DftEnds(v);
            product(0);
            product(7);
            DftFromEnds(v);
            return GroupBackAfterFirst(v, g, group);
          }
        }
        Dft<false, kW>(v);
#pragma GCC unroll 16
        for (int i = 0; i < kW; ++i) {
          if (kept >> i & 1) {
            product(i);
          } else {
            v[i] = C{};
          }
        }
        GroupBack(v, g, group);
      });
    });
  }

  // Sets what keep drops to zero in a spectrum, and the pattern, if there is one, to what is left. keep has a flag for
  // each frequency (k + 1/2) / 2M in ascending order.
  void Drop(const uint8_t *keep, C *spectrum, Pattern<T> *pattern) const {
    const int64_t groups = Elements() / kW;
    if (pattern != nullptr) pattern->before[0] = 0;
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t lowest = table_->steps.GroupFrequency(g);
      unsigned kept = 0;
      for (int q = 0; q < kW; ++q)
        for (int p = 0; p < kW; ++p) {
          const int64_t k = lowest + groups * (p + kW * q);
          // Of the frequencies (k - 1/4) / M, those in the upper half stand for their conjugates.
          const int64_t ascending = k == 0 ? 0 : 2 * k - 1 < points_ ? 2 * k - 1 : 2 * (points_ - k);
          if (keep[ascending] != 0) {
            kept |= 1u << q;
          } else {
            C &number = spectrum[g * kW + q];
            number.re[p] = number.im[p] = T{0};
          }
        }
      if (pattern != nullptr) {
        pattern->vectors[g] = static_cast<uint16_t>(kept);
        pattern->before[g + 1] = pattern->before[g] + (kept != 0);
      }
    }
  }

  // data becomes, before LastStep, the product of two spectra in the same order, one of them scaled by 1 / M.
  template <class Stored>
  void BackFromProduct(const C *a, const Stored *spectrum, C *data) const {
    ForBlocks([&](int64_t from, int64_t elements) {
      Descend(data + from, elements, 1, from / kW, [&](C *group, int64_t g) {
        C v[kW];
        const Stored *s = spectrum + 2 * kW * kW * g;
#pragma GCC unroll 16
        for (int i = 0; i < kW; ++i, s += 2 * kW) v[i] = a[g * kW + i] * LoadNumber(s);
        GroupBack(v, g, group);
      }, Back{});
    });
  }

  // After FirstStep: sum += transform of data times conj(other), or = where it `is_first`, when sum may be other itself; and
  // data becomes, before LastStep, the product with conj(spectrum). `other` and `sum` are in spectral order.
  template <class Stored>
  void CorrelateAndMultiply(C *data, const Stored *spectrum, const C *other, C *sum, bool is_first,
                            const Ahead &ahead = {}) const {
    ForBlocks([&](int64_t from, int64_t elements) {
      Descend(data + from, elements, 1, from / kW, [&](C *group, int64_t g) {
        ahead(g, Elements() / kW);
        C v[kW];
        GroupForward(group, g, v);
        AddCorrelation(v, other + g * kW, sum + g * kW, is_first);
        const Stored *s = spectrum + 2 * kW * kW * g;
#pragma GCC unroll 16
        for (int i = 0; i < kW; ++i, s += 2 * kW) v[i] = MultiplyConjugate(v[i], LoadNumber(s));
        GroupBack(v, g, group);
      }, RoundTrip{});
    });
  }

  // The sum alone.
  void AccumulateCorrelation(C *data, const C *other, C *sum, bool is_first, const Ahead &ahead = {}) const {
    ForBlocks([&](int64_t from, int64_t elements) {
      Descend(data + from, elements, 1, from / kW, [&](C *group, int64_t g) {
        ahead(g, Elements() / kW);
        C v[kW];
        GroupForward(group, g, v);
        AddCorrelation(v, other + g * kW, sum + g * kW, is_first);
      }, Forward{});
    });
  }

  // Spectral order to what LastStep expects. The caller scales by 1 / M.
  void BackFromSpectrum(C *data) const {
    ForBlocks([&](int64_t from, int64_t elements) {
      Descend(data + from, elements, 1, from / kW, [&](C *group, int64_t g) {
        C v[kW];
#pragma GCC unroll 16
        for (int i = 0; i < kW; ++i) v[i] = group[i];
        GroupBack(v, g, group);
      }, Back{});
    });
  }

 private:
  struct Forward {
    static constexpr bool kForward = true, kBack = false;
  };
  struct Back {
    static constexpr bool kForward = false, kBack = true;
  };
  struct RoundTrip {
    static constexpr bool kForward = true, kBack = true;
  };

  static CONVSCAN_INLINE void AddCorrelation(const C (&v)[kW], const C *other, C *sum, bool is_first) {
    if (is_first) {
#pragma GCC unroll 16
      for (int i = 0; i < kW; ++i) sum[i] = MultiplyConjugate(v[i], other[i]);
    } else {
#pragma GCC unroll 16
      for (int i = 0; i < kW; ++i) sum[i] = sum[i] + MultiplyConjugate(v[i], other[i]);
    }
  }

  // A number of a spectrum in whatever type it is stored.
  template <class Stored>
  static CONVSCAN_INLINE C LoadNumber(const Stored *at) {
    return {__builtin_convertvector(Load<kW>(at), V), __builtin_convertvector(Load<kW>(at + kW), V)};
  }

  static CONVSCAN_INLINE C Scalar(const T *number) {
    return {Broadcast<T>(number[0]), Broadcast<T>(number[1])};
  }

  const T *StepTwiddles(int step) const { return table_->Scalars() + 2 * table_->step_offset[step]; }

  static constexpr int kLargestFirst = Twiddles<T>::kLargestFirst;
  // Elements that the first and the last step take together, from one place of memory for each of their inputs.
  static constexpr int64_t kTogether = 32;
  // Blocks of a signal and its filter descend together until they are no larger than this, half of a second-level cache
  // (one after the other, 2^20 points took 3.3 ms on two threads instead of 2.8).
  static constexpr int64_t kTogetherBytes = int64_t{512} << 10;

  // The first step takes elements j + m q, q = 0 ... radix - 1, together: a few j at a time.
  template <class Part>
  void ForFirstElements(Share share, const Part &part) const {
    const int radix = table_->steps.radix[0];
    const int64_t m = Elements() / radix, parts = CeilDiv(m, kTogether);
    for (int64_t i = share.Begin(parts); i < share.End(parts); ++i)
      part(i * kTogether, Min(kTogether, m - i * kTogether), m, radix);
  }

  template <class S>
  void FirstStepFrom(const S *const (&at)[2][kLargestFirst], T scale, bool upper_is_zero, C *data, int64_t begin,
                     int64_t count) const {
    WithRadix(table_->steps.radix[0], [&](auto radix) {
      constexpr int R = decltype(radix)::kValue;
      if (upper_is_zero) return FirstStepOf<R, false>(at, scale, data + begin, begin, count);
      FirstStepOf<R, true>(at, scale, data + begin, begin, count);
    });
  }
  // `direct`: which of the places are the output itself, of half h and input q bit 2 q + h.
  template <class S, class Sink>
  void LastStepTo(S *const (&at)[2][kLargestFirst], const Sink &sink, int halves, unsigned direct, const C *data,
                  int64_t begin, int64_t count) const {
    WithRadix(table_->steps.radix[0], [&](auto radix) {
      constexpr int R = decltype(radix)::kValue;
      if constexpr (kSame<S, T>) {
        if (sink.streams && halves == 2)
          return LastStepOf<R, true, true>(at, sink.scale, sink.bias, data + begin, begin, count, direct);
        if (sink.streams)
          return LastStepOf<R, false, true>(at, sink.scale, sink.bias, data + begin, begin, count, direct);
      }
      if (halves == 2) return LastStepOf<R, true, false>(at, sink.scale, sink.bias, data + begin, begin, count, 0);
      LastStepOf<R, false, false>(at, sink.scale, sink.bias, data + begin, begin, count, 0);
    });
  }

  // Past the caches, unless it is read again at once.
  template <bool kStreams, class S>
  static CONVSCAN_INLINE void StoreOutput(S *to, V v, unsigned direct, int place) {
    if constexpr (kStreams) {
      if ((direct >> place & 1) != 0) return StoreStream<kW>(to, v);
    }
    Store<kW>(to, v);
  }

  template <int R, bool kUpper, class S>
  __attribute__((noinline)) void FirstStepOf(const S *const (&at)[2][kLargestFirst], T scale, C *data, int64_t begin,
                                             int64_t count) const {
    T turn_re[R], turn_im[R];
    for (int q = 0; q < R; ++q) {
      turn_re[q] = table_->turn_re[q] * scale;
      turn_im[q] = table_->turn_im[q] * scale;
    }
    const int64_t m = Elements() / R;
    const T *twiddle = StepTwiddles(0) + 2 * R * begin;
    for (int64_t j = 0; j < count; ++j, ++data, twiddle += 2 * R) {
      C v[R];
#pragma GCC unroll 8
      for (int q = 0; q < R; ++q) {
        const V low = Load<kW>(at[0][q] + kW * j);
        if constexpr (kUpper) {
          const V high = Load<kW>(at[1][q] + kW * j);
          v[q] = {low * turn_re[q] - high * turn_im[q], low * turn_im[q] + high * turn_re[q]};
        } else {
          v[q] = {low * turn_re[q], low * turn_im[q]};
        }
      }
      Dft<false, R>(v);
#pragma GCC unroll 8
      for (int p = 0; p < R; ++p) data[m * p] = v[p] * Scalar(twiddle + 2 * p);
    }
  }

  template <int R, bool kUpper, bool kStreams, class S>
  __attribute__((noinline)) void LastStepOf(S *const (&at)[2][kLargestFirst], T scale, T bias, const C *data,
                                            int64_t begin, int64_t count, unsigned direct) const {
    T turn_re[R], turn_im[R];
    for (int q = 0; q < R; ++q) {
      turn_re[q] = table_->turn_re[q] * scale;
      turn_im[q] = table_->turn_im[q] * scale;
    }
    const int64_t m = Elements() / R;
    const T *twiddle = StepTwiddles(0) + 2 * R * begin;
    for (int64_t j = 0; j < count; ++j, ++data, twiddle += 2 * R) {
      C v[R];
#pragma GCC unroll 8
      for (int p = 0; p < R; ++p) v[p] = MultiplyConjugate(data[m * p], Scalar(twiddle + 2 * p));
      Dft<true, R>(v);
#pragma GCC unroll 8
      for (int q = 0; q < R; ++q) {
        const V low = v[q].re * turn_re[q] + v[q].im * turn_im[q] + bias;
        StoreOutput<kStreams>(at[0][q] + kW * j, low, direct, 2 * q);
        if constexpr (kUpper) {
          const V high = v[q].im * turn_re[q] - v[q].re * turn_im[q] + bias;
          StoreOutput<kStreams>(at[1][q] + kW * j, high, direct, 2 * q + 1);
        }
      }
    }
  }

  template <class Block>
  void ForBlocks(const Block &block, Share share = {}) const {
    const int64_t elements = Elements() / Blocks();
    for (int64_t i = share.Begin(Blocks()); i < share.End(Blocks()); ++i) block(i * elements, elements);
  }

  template <bool kConjugate, class Stored>
  void MultiplyBlock(C *block, int64_t elements, int step, int64_t first_group, const Stored *spectrum,
                     const Ahead &ahead) const {
    Descend(block, elements, step, first_group, [&](C *group, int64_t g) {
      ahead(g, Elements() / kW);
      C v[kW];
      GroupForward(group, g, v);
      const Stored *s = spectrum + 2 * kW * kW * g;
#pragma GCC unroll 16
      for (int i = 0; i < kW; ++i, s += 2 * kW) {
        const C number = LoadNumber(s);
        v[i] = kConjugate ? MultiplyConjugate(v[i], number) : v[i] * number;
      }
      GroupBack(v, g, group);
    }, RoundTrip{});
  }

  // After the first step of both: block becomes the product with filter, and filter its spectrum, sub-block by sub-block
  // where they are large. `spectrum` is that of all blocks.
  void MultiplyTogether(C *block, C *filter, int64_t elements, int step, int64_t first_group, const C *spectrum,
                        const Ahead &ahead) const {
    if (elements * static_cast<int64_t>(sizeof(C)) <= kTogetherBytes) {
      SpectrumOfBlock(filter, elements, step, first_group, {});
      return MultiplyBlock<false>(block, elements, step, first_group, reinterpret_cast<const T *>(spectrum), ahead);
    }
    Step<false>(filter, elements, step);
    Step<false>(block, elements, step);
    const int64_t m = elements / table_->steps.radix[step];
    for (int64_t from = 0; from < elements; from += m)
      MultiplyTogether(block + from, filter + from, m, step + 1, first_group + from / kW, spectrum, ahead);
    Step<true>(block, elements, step);
  }

  void SpectrumOfBlock(C *block, int64_t elements, int step, int64_t first_group, const Ahead &ahead) const {
    Descend(block, elements, step, first_group, [&](C *group, int64_t g) {
      ahead(g, Elements() / kW);
      C v[kW];
      GroupForward(group, g, v);
#pragma GCC unroll 16
      for (int i = 0; i < kW; ++i) group[i] = v[i];
    }, Forward{});
  }

  // One block of `elements`: its step forwards, its sub-blocks one after the other, its step back.
  template <class Group, class Direction>
  void Descend(C *block, int64_t elements, int step, int64_t first_group, const Group &group,
               Direction direction) const {
    if (elements == kW) return group(block, first_group);
    const int radix = table_->steps.radix[step];
    if constexpr (Direction::kForward) Step<false>(block, elements, step);
    const int64_t m = elements / radix;
    for (int64_t from = 0; from < elements; from += m)
      Descend(block + from, m, step + 1, first_group + from / kW, group, direction);
    if constexpr (Direction::kBack) Step<true>(block, elements, step);
  }

  template <class Group>
  void DescendSparse(C *block, int64_t elements, int step, int64_t first_group, const Pattern<T> &pattern,
                     const Group &group) const {
    if (pattern.IsEmpty(first_group, elements / kW)) {
      for (int64_t i = 0; i < elements; ++i) block[i] = C{};
      return;
    }
    if (elements == kW) return group(block, first_group);
    const int radix = table_->steps.radix[step];
    Step<false>(block, elements, step);
    const int64_t m = elements / radix;
    for (int64_t from = 0; from < elements; from += m)
      DescendSparse(block + from, m, step + 1, first_group + from / kW, pattern, group);
    Step<true>(block, elements, step);
  }

  template <int R>
  struct Radix {
    static constexpr int kValue = R;
  };
  template <class Function>
  static CONVSCAN_INLINE void WithRadix(int radix, const Function &function) {
    switch (radix) {
      case 2: return function(Radix<2>{});
      case 3: return function(Radix<3>{});
      case 4: return function(Radix<4>{});
      case 5: return function(Radix<5>{});
      default: return function(Radix<8>{});
    }
  }

  template <bool kInverse>
  void Step(C *block, int64_t elements, int step) const {
    WithRadix(table_->steps.radix[step], [&](auto radix) {
      StepOf<kInverse, decltype(radix)::kValue>(block, elements, StepTwiddles(step));
    });
  }

  template <bool kInverse, int R>
  static __attribute__((noinline)) void StepOf(C *block, int64_t elements, const T *twiddle) {
    const int64_t m = elements / R;
    for (int64_t j = 0; j < m; ++j, ++block, twiddle += 2 * (R - 1)) {
      C v[R];
#pragma GCC unroll 8
      for (int q = 0; q < R; ++q) v[q] = block[m * q];
      if constexpr (kInverse) {
#pragma GCC unroll 8
        for (int p = 1; p < R; ++p) v[p] = MultiplyConjugate(v[p], Scalar(twiddle + 2 * p - 2));
      }
      Dft<kInverse, R>(v);
      if constexpr (!kInverse) {
#pragma GCC unroll 8
        for (int p = 1; p < R; ++p) v[p] = v[p] * Scalar(twiddle + 2 * p - 2);
      }
#pragma GCC unroll 8
      for (int q = 0; q < R; ++q) block[m * q] = v[q];
    }
  }

  // Turns the elements of a group by exp(-2πi l (k - 1/4) / M), or back; l is the lane, k the element's lowest frequency.
  template <bool kInverse>
  CONVSCAN_INLINE void TurnLanes(C (&v)[kW], int64_t g) const {
    const T *lanes = table_->Scalars() + 2 * table_->lane_offset;
    if (table_->is_whole) {
      lanes += 2 * g * kW * kW;
#pragma GCC unroll 16
      for (int i = 0; i < kW; ++i, lanes += 2 * kW) v[i] = Twiddle<kInverse>(v[i], C{Load<kW>(lanes), Load<kW>(lanes + kW)});
    } else {
      lanes += 2 * g * kW;
      const C group{Load<kW>(lanes), Load<kW>(lanes + kW)};
#pragma GCC unroll 16
      for (int i = 0; i < kW; ++i) v[i] = Twiddle<kInverse>(v[i], group * table_->fine[i]);
    }
  }

  static CONVSCAN_INLINE void TransposeGroup(C (&v)[kW]) {
    V part[kW];
#pragma GCC unroll 16
    for (int i = 0; i < kW; ++i) part[i] = v[i].re;
    Transpose<T>(part);
#pragma GCC unroll 16
    for (int i = 0; i < kW; ++i) {
      v[i].re = part[i];
      part[i] = v[i].im;
    }
    Transpose<T>(part);
#pragma GCC unroll 16
    for (int i = 0; i < kW; ++i) v[i].im = part[i];
  }

  // v[0] and v[7] of the transform of 8 points.
  static CONVSCAN_INLINE void DftEnds(C (&v)[8]) {
    const C d0 = v[0] - v[4], d1 = v[1] - v[5], d2 = v[2] - v[6], d3 = v[3] - v[7];
    v[0] = ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
    v[7] = (d0 + QuarterTurn<true>(d2)) + EighthTurn<true>(d1 + QuarterTurn<true>(d3));
  }

  // The way back where v[1] ... v[6] are zero.
  static CONVSCAN_INLINE void DftFromEnds(C (&v)[8]) {
    const C a = v[0], b = v[7], c = EighthTurn<false>(b), d = QuarterTurn<false>(b), e = QuarterTurn<false>(c);
    v[0] = a + b;
    v[1] = a + c;
    v[2] = a + d;
    v[3] = a + e;
    v[4] = a - b;
    v[5] = a - c;
    v[6] = a - d;
    v[7] = a - e;
  }

  CONVSCAN_INLINE void GroupForward(const C *group, int64_t g, C (&v)[kW]) const {
    GroupForwardUntilLast(group, g, v);
    Dft<false, kW>(v);
  }

  CONVSCAN_INLINE void GroupForwardUntilLast(const C *group, int64_t g, C (&v)[kW]) const {
#pragma GCC unroll 16
    for (int i = 0; i < kW; ++i) v[i] = group[i];
    Dft<false, kW>(v);
    TurnLanes<false>(v, g);
    TransposeGroup(v);
  }

  CONVSCAN_INLINE void GroupBack(C (&v)[kW], int64_t g, C *group) const {
    Dft<true, kW>(v);
    GroupBackAfterFirst(v, g, group);
  }

  CONVSCAN_INLINE void GroupBackAfterFirst(C (&v)[kW], int64_t g, C *group) const {
    TransposeGroup(v);
    TurnLanes<true>(v, g);
    Dft<true, kW>(v);
#pragma GCC unroll 16
    for (int i = 0; i < kW; ++i) group[i] = v[i];
  }

  int64_t points_;
  const Twiddles<T> *table_ = nullptr;
};

// The smallest-cost length of at least `points`; 0 when there is none below 2^40.
template <class T>
int64_t TransformLength(int64_t points) {
  constexpr int64_t kUnit = int64_t{kLanes<T>} * kLanes<T>;
  constexpr int64_t kLargest = int64_t{1} << 40;
  int64_t best = 0;
  const int64_t units = Max(2, CeilDiv(points, kUnit));
  for (int64_t fives = 1; fives <= 125; fives *= 5)
    for (int64_t threes = fives; threes <= 243 * fives; threes *= 3) {
      int64_t length = threes;
      while (length < units) length *= 2;
      if (length >= 2 && length * kUnit <= kLargest && (best == 0 || length < best)) best = length;
    }
  return best * kUnit;
}

}  // namespace convscan::CONVSCAN_ISA
