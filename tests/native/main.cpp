// Runs every kernel of every instruction set through the C interface against double loops.
#include "check.h"

#define CONVSCAN_DECLARE(isa) \
  namespace convscan::isa {   \
  void TestMatmul();          \
  void TestExp();             \
  }
#if defined(CONVSCAN_HAS_wide)
CONVSCAN_DECLARE(wide)
#endif
#if defined(CONVSCAN_HAS_baseline)
CONVSCAN_DECLARE(baseline)
#endif
#if defined(CONVSCAN_HAS_avx2)
CONVSCAN_DECLARE(avx2)
#endif
#if defined(CONVSCAN_HAS_avx512)
CONVSCAN_DECLARE(avx512)
#endif
#if defined(CONVSCAN_HAS_neon)
CONVSCAN_DECLARE(neon)
#endif

namespace tests {

// What kernels share in headers.
void TestHeaders() {
  const std::string isa = convscan_isa();
#if defined(CONVSCAN_HAS_wide)
  if (isa == "wide") convscan::wide::TestMatmul(), convscan::wide::TestExp();
#endif
#if defined(CONVSCAN_HAS_baseline)
  if (isa == "baseline") convscan::baseline::TestMatmul(), convscan::baseline::TestExp();
#endif
#if defined(CONVSCAN_HAS_avx2)
  if (isa == "avx2") convscan::avx2::TestMatmul(), convscan::avx2::TestExp();
#endif
#if defined(CONVSCAN_HAS_avx512)
  if (isa == "avx512") convscan::avx512::TestMatmul(), convscan::avx512::TestExp();
#endif
#if defined(CONVSCAN_HAS_neon)
  if (isa == "neon") convscan::neon::TestMatmul(), convscan::neon::TestExp();
#endif
}

double DecodeHalf(convscan_dtype dtype, uint16_t bits) {
  const int mantissa_bits = dtype == CONVSCAN_BFLOAT16 ? 7 : 10;
  const int exponent_bits = 15 - mantissa_bits;
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = (bits >> mantissa_bits) & ((1 << exponent_bits) - 1);
  const int mantissa = bits & ((1 << mantissa_bits) - 1);
  double magnitude;
  if (exponent == (1 << exponent_bits) - 1) {
    magnitude = mantissa == 0 ? HUGE_VAL : NAN;
  } else if (exponent == 0) {
    magnitude = std::ldexp(mantissa, 1 - bias - mantissa_bits);
  } else {
    magnitude = std::ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits);
  }
  return bits & 0x8000 ? -magnitude : magnitude;
}

uint16_t EncodeHalf(convscan_dtype dtype, double value) {
  const int mantissa_bits = dtype == CONVSCAN_BFLOAT16 ? 7 : 10;
  const int bias = (1 << (14 - mantissa_bits)) - 1;
  const int sign = std::signbit(value) ? 0x8000 : 0;
  if (value == 0) return static_cast<uint16_t>(sign);
  int exponent;
  const double fraction = std::frexp(std::fabs(value), &exponent);  // in [1/2, 1)
  const int mantissa = static_cast<int>(std::ldexp(fraction, mantissa_bits + 1));
  return static_cast<uint16_t>(sign + ((exponent - 1 + bias) << mantissa_bits) + mantissa - (1 << mantissa_bits));
}

const char *Name(Layout layout) {
  switch (layout) {
    case Layout::kTimeMajor: return "time-major";
    case Layout::kChannelMajor: return "channel-major";
    case Layout::kPaddedRows: return "padded rows";
    case Layout::kPaddedTime: return "padded time";
    case Layout::kSpacedChannels: return "spaced channels";
    case Layout::kReversedTime: return "reversed time";
    case Layout::kReversedTimeMajor: return "reversed channels";
    case Layout::kReversedContiguousTime: return "reversed contiguous time";
    case Layout::kBatchInnermost: return "batch innermost";
  }
  return "";
}

Array::Array(convscan_dtype dtype, int64_t batch, int64_t time, int64_t channels, Layout layout, int64_t misaligned)
    : Array(dtype, batch, time, channels, layout, misaligned, false, false, false) {}

Array::Array(convscan_dtype dtype, int64_t batch, int64_t time, int64_t channels, Layout layout, int64_t misaligned,
             bool repeat_batch, bool repeat_time, bool repeat_channels)
    : dtype_(dtype), sizes_{batch, time, channels} {
  const int64_t b = repeat_batch ? 1 : batch, t = repeat_time ? 1 : time, c = repeat_channels ? 1 : channels;
  switch (layout) {
    case Layout::kTimeMajor: strides_ = {t * c, c, 1}; break;
    case Layout::kChannelMajor: strides_ = {t * c, 1, t}; break;
    case Layout::kPaddedRows: strides_ = {t * (c + 3) + 5, c + 3, 1}; break;
    case Layout::kPaddedTime: strides_ = {c * (t + 5) + 1, 1, t + 5}; break;
    case Layout::kSpacedChannels: strides_ = {t * 2 * c, 2 * c, 2}; break;
    case Layout::kReversedTime: strides_ = {t * c, -c, 1}; break;
    case Layout::kReversedTimeMajor: strides_ = {t * c, c, -1}; break;
    case Layout::kReversedContiguousTime: strides_ = {-t * c, -1, t}; break;
    case Layout::kBatchInnermost: strides_ = {1, b * c, b}; break;
  }
  if (repeat_batch) strides_.batch = 0;
  if (repeat_time) strides_.time = 0;
  if (repeat_channels) strides_.channel = 0;
  int64_t low = 0, high = 0;
  const int64_t reaches[] = {(batch - 1) * strides_.batch, (time - 1) * strides_.time,
                             (channels - 1) * strides_.channel};
  for (int64_t reach : reaches) (reach < 0 ? low : high) += reach;
  first_ = misaligned - low;
  elements_ = first_ + high + 1;
  void *memory = nullptr;
  if (posix_memalign(&memory, 64, Size()) != 0) abort();  // a line of memory, which some stores are for
  memory_ = static_cast<unsigned char *>(memory);
  memset(memory_, 0xff, Size());  // NaN in every dtype
}

Complex Array::At(int64_t b, int64_t t, int64_t c) const {
  const unsigned char *p = memory_ + Offset(b, t, c) * Bytes(dtype_);
  float single[2] = {0, 0};
  double full[2] = {0, 0};
  uint16_t half;
  switch (dtype_) {
    case CONVSCAN_FLOAT32:
    case CONVSCAN_WIDE_FLOAT32: memcpy(single, p, 4); return {single[0], 0};
    case CONVSCAN_FLOAT64: memcpy(full, p, 8); return {full[0], 0};
    case CONVSCAN_COMPLEX64: memcpy(single, p, 8); return {single[0], single[1]};
    case CONVSCAN_COMPLEX128: memcpy(full, p, 16); return {full[0], full[1]};
    default: memcpy(&half, p, 2); return {DecodeHalf(dtype_, half), 0};
  }
}

void Array::Set(int64_t b, int64_t t, int64_t c, Complex value) {
  unsigned char *p = memory_ + Offset(b, t, c) * Bytes(dtype_);
  const double full[2] = {value.real(), value.imag()};
  const float single[2] = {static_cast<float>(full[0]), static_cast<float>(full[1])};
  const uint16_t half = IsHalf(dtype_) ? EncodeHalf(dtype_, value.real()) : 0;
  switch (dtype_) {
    case CONVSCAN_FLOAT32:
    case CONVSCAN_WIDE_FLOAT32: memcpy(p, single, 4); break;
    case CONVSCAN_FLOAT64: memcpy(p, full, 8); break;
    case CONVSCAN_COMPLEX64: memcpy(p, single, 8); break;
    case CONVSCAN_COMPLEX128: memcpy(p, full, 16); break;
    default: memcpy(p, &half, 2);
  }
}

void Array::FillRandom(Random &random) {
  for (int64_t b = 0; b < sizes_[0]; ++b)
    for (int64_t t = 0; t < sizes_[1]; ++t)
      for (int64_t c = 0; c < sizes_[2]; ++c) {
        const double re = random.Value(), im = IsComplex(dtype_) ? random.Value() : 0;
        Set(b, t, c, {re, im});
      }
}

void Array::FillPattern() { memset(memory_, 0xa5, Size()); }

bool Array::PatternSurvives() const {
  const size_t element = static_cast<size_t>(Bytes(dtype_));
  std::vector<bool> owned(static_cast<size_t>(elements_), false);
  for (int64_t b = 0; b < sizes_[0]; ++b)
    for (int64_t t = 0; t < sizes_[1]; ++t)
      for (int64_t c = 0; c < sizes_[2]; ++c) owned[static_cast<size_t>(Offset(b, t, c))] = true;
  for (size_t i = 0; i < owned.size(); ++i)
    for (size_t j = 0; j < element && !owned[i]; ++j)
      if (memory_[i * element + j] != 0xa5) return false;
  return true;
}

bool Array::SameElements(const Array &other) const {
  const size_t element = static_cast<size_t>(Bytes(dtype_));
  for (int64_t b = 0; b < sizes_[0]; ++b)
    for (int64_t t = 0; t < sizes_[1]; ++t)
      for (int64_t c = 0; c < sizes_[2]; ++c)
        if (memcmp(memory_ + Offset(b, t, c) * static_cast<int64_t>(element),
                   other.memory_ + other.Offset(b, t, c) * static_cast<int64_t>(element), element) != 0)
          return false;
  return true;
}

void Array::CopyElements(const Array &other) {
  const int64_t element = Bytes(dtype_);
  for (int64_t b = 0; b < sizes_[0]; ++b)
    for (int64_t t = 0; t < sizes_[1]; ++t)
      for (int64_t c = 0; c < sizes_[2]; ++c)
        memcpy(memory_ + Offset(b, t, c) * element, other.memory_ + other.Offset(b, t, c) * element,
               static_cast<size_t>(element));
}

}  // namespace tests

int main() {
  using namespace tests;
  TestArguments();
  TestAllpoleArguments();
  TestStateSpaceArguments();
  TestOnlineArguments();
  for (int i = 0; i < convscan_isa_count(); ++i) {
    if (!CHECK(convscan_set_isa(convscan_isa_name(i)) == CONVSCAN_OK)) continue;
    fprintf(stderr, "%s\n", convscan_isa());
    TestHost();
    TestConvolution();
    TestOrigins();
    TestFilterGradient();
    TestRecurrence();
    TestRecurrenceGradient();
    TestVandermonde();
    TestAllpole();
    TestCauchy();
    TestOnline();
    TestAttention();
    TestDeltaRule();
    TestHeaders();
  }
  convscan_workspace_reset_peak();
  context = "after the last call";
  CHECK(convscan_workspace_current() == 0);
  if (failures == 0) fprintf(stderr, "all kernel tests passed\n");
  else fprintf(stderr, "%d checks failed\n", failures);
  return failures != 0;
}
