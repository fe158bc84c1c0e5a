// What the kernel tests share: CHECK, a seeded generator, and arrays of any dtype and any strides.
//
// An array's memory is exactly as long as its elements need, so that AddressSanitizer sees a read past either end.
// Between the elements of a strided input lie NaNs, which spread into the result if a kernel uses them; between and
// around the elements of an output lies a pattern that must survive.
#pragma once

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmath>
#include <complex>
#include <string>
#include <vector>

#include "convscan.h"

namespace tests {

inline int failures = 0;
inline std::string context;  // the problem at hand, printed with a failure

inline bool Report(bool ok, const char *file, int line, const char *what) {
  if (ok) return true;
  if (++failures <= 40) fprintf(stderr, "%s:%d: %s [%s] %s\n", file, line, what, convscan_isa(), context.c_str());
  return false;
}
#define CHECK(condition) ::tests::Report((condition), __FILE__, __LINE__, #condition)

// SplitMix64: small, seeded, the same everywhere.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t Next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  int64_t Below(int64_t n) { return static_cast<int64_t>(Next() % static_cast<uint64_t>(n)); }
  template <class T, size_t N>
  T Pick(const T (&values)[N]) {
    return values[Below(N)];
  }
  // A multiple of 1/128 in [-1, 1): exact in every dtype.
  double Value() { return static_cast<double>(Below(256) - 128) / 128; }

 private:
  uint64_t state_;
};

using Complex = std::complex<double>;

inline bool IsComplex(convscan_dtype dtype) { return dtype == CONVSCAN_COMPLEX64 || dtype == CONVSCAN_COMPLEX128; }
inline bool IsHalf(convscan_dtype dtype) { return dtype == CONVSCAN_BFLOAT16 || dtype == CONVSCAN_FLOAT16; }
inline int64_t Bytes(convscan_dtype dtype) {
  static const int64_t kBytes[] = {4, 8, 2, 2, 8, 16, 4};
  return kBytes[dtype];
}
inline const char *Name(convscan_dtype dtype) {
  static const char *const kNames[] = {"float32", "float64", "bfloat16", "float16", "complex64", "complex128",
                                       "wide float32"};
  return kNames[dtype];
}
// Unit roundoff of the arithmetic and of the storage.
inline double ComputeRoundoff(convscan_dtype dtype) {
  const bool is_double =
      dtype == CONVSCAN_FLOAT64 || dtype == CONVSCAN_COMPLEX128 || dtype == CONVSCAN_WIDE_FLOAT32;
  return is_double ? 0x1p-53 : 0x1p-24;
}
inline double StorageRoundoff(convscan_dtype dtype) {
  if (dtype == CONVSCAN_WIDE_FLOAT32) return 0x1p-24;
  return dtype == CONVSCAN_BFLOAT16 ? 0x1p-8 : dtype == CONVSCAN_FLOAT16 ? 0x1p-11 : 0;
}

double DecodeHalf(convscan_dtype dtype, uint16_t bits);
uint16_t EncodeHalf(convscan_dtype dtype, double value);  // value must be normal and exact in dtype, or zero

// Ways to lay out (batch, time, channel).
enum class Layout {
  kTimeMajor,          // channels contiguous
  kChannelMajor,       // time contiguous
  kPaddedRows,         // channels contiguous, rows longer than needed
  kPaddedTime,         // time contiguous, rows longer than needed
  kSpacedChannels,     // every second channel
  kReversedTime,       // negative stride of time, channels contiguous
  kReversedTimeMajor,  // negative stride of channels
  kReversedContiguousTime,
  kBatchInnermost,
};
inline constexpr Layout kLayouts[] = {
    Layout::kTimeMajor,      Layout::kChannelMajor,      Layout::kPaddedRows,
    Layout::kPaddedTime,     Layout::kSpacedChannels,    Layout::kReversedTime,
    Layout::kReversedTimeMajor, Layout::kReversedContiguousTime, Layout::kBatchInnermost,
};
const char *Name(Layout layout);

class Array {
 public:
  Array(convscan_dtype dtype, int64_t batch, int64_t time, int64_t channels, Layout layout, int64_t misaligned);
  // An array whose axes marked here have one element, repeated through a stride of zero.
  Array(convscan_dtype dtype, int64_t batch, int64_t time, int64_t channels, Layout layout, int64_t misaligned,
        bool repeat_batch, bool repeat_time, bool repeat_channels);
  Array(const Array &) = delete;
  Array &operator=(const Array &) = delete;
  ~Array() { free(memory_); }

  void *data() const { return memory_ + first_ * Bytes(dtype_); }
  const convscan_strides &strides() const { return strides_; }
  int64_t batch() const { return sizes_[0]; }
  int64_t time() const { return sizes_[1]; }
  int64_t channels() const { return sizes_[2]; }

  Complex At(int64_t b, int64_t t, int64_t c) const;
  void Set(int64_t b, int64_t t, int64_t c, Complex value);

  void FillRandom(Random &random);
  void FillPattern();          // an output, before the call
  bool PatternSurvives() const;  // and after it: every byte that belongs to no element
  bool SameElements(const Array &other) const;  // bit for bit
  void CopyElements(const Array &other);

 private:
  int64_t Offset(int64_t b, int64_t t, int64_t c) const {
    return first_ + b * strides_.batch + t * strides_.time + c * strides_.channel;
  }
  size_t Size() const { return static_cast<size_t>(elements_ * Bytes(dtype_)); }

  convscan_dtype dtype_;
  int64_t sizes_[3];
  convscan_strides strides_;
  int64_t first_;     // element index of (0, 0, 0)
  int64_t elements_;  // in memory
  unsigned char *memory_;
};

void TestArguments();
void TestHost();
void TestConvolution();
void TestOrigins();
void TestFilterGradient();
void TestRecurrence();
void TestRecurrenceGradient();
void TestAllpole();
void TestAllpoleArguments();
void TestStateSpaceArguments();
void TestVandermonde();
void TestCauchy();
void TestOnline();
void TestOnlineArguments();
void TestAttention();
void TestAttentionStep();
void TestDeltaRule();
// Of the instruction set in use.
void TestHeaders();

}  // namespace tests
