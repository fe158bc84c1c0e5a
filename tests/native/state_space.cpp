#include <algorithm>

#include "check.h"

namespace tests {
namespace {

constexpr convscan_dtype kDtypes[] = {CONVSCAN_COMPLEX64, CONVSCAN_COMPLEX128};
constexpr int64_t kLengths[] = {1, 2, 3, 15, 16, 17, 47, 49, 95, 97, 128, 129, 255, 577, 1021};
constexpr int64_t kTerms[] = {1, 2, 7, 31, 64, 65, 130};
constexpr int64_t kPoints[] = {1, 7, 16, 33, 255, 257, 300};
// Layouts of which the last axis is consecutive, as that of an output has to be.
constexpr Layout kOutputLayouts[] = {Layout::kTimeMajor, Layout::kPaddedRows, Layout::kReversedTime};
constexpr int kTrials = 150;
// Factors below the smallest normal number count as zero; order 2 multiplies what is lost by up to a million.
constexpr double kFlushed = 1e-30;

convscan_dtype RealOf(convscan_dtype dtype) {
  return dtype == CONVSCAN_COMPLEX64 ? CONVSCAN_FLOAT32 : CONVSCAN_FLOAT64;
}

// Numbers inside the unit circle, some of them zero. They are read back as the dtype rounds them.
void FillPowers(Array &a, Random &random) {
  for (int64_t r = 0; r < a.time(); ++r)
    for (int64_t n = 0; n < a.channels(); ++n) {
      const Complex z(random.Value(), random.Value());
      a.Set(0, r, n, random.Below(8) == 0 ? Complex(0) : z / std::max(1.0, std::abs(z)));
    }
}

double Falling(int64_t l, int order) {
  double product = 1;
  for (int i = 0; i < order; ++i) product *= static_cast<double>(l - i);
  return product;
}

std::string Describe(const char *kernel, convscan_dtype dtype, int64_t rows, int64_t terms, int64_t length, int order) {
  char text[160];
  snprintf(text, sizeof text, "%s %s rows=%lld terms=%lld length=%lld order %d", kernel, Name(dtype), (long long)rows,
           (long long)terms, (long long)length, order);
  return text;
}

}  // namespace

void TestVandermonde() {
  Random random(6);
  for (int trial = 0; trial < kTrials; ++trial) {
    const convscan_dtype dtype = random.Pick(kDtypes), a_dtype = random.Pick(kDtypes), real = RealOf(dtype);
    const int64_t rows = 1 + random.Below(3), terms = random.Pick(kTerms), length = random.Pick(kLengths);
    const int order = static_cast<int>(random.Below(3));
    context = Describe("vandermonde", dtype, rows, terms, length, order);
    Array c(dtype, 1, rows, terms, random.Pick(kLayouts), random.Below(5));
    Array a(a_dtype, 1, rows, terms, random.Pick(kLayouts), random.Below(5), false, random.Below(4) == 0, false);
    Array g(real, 1, rows, length, random.Pick(kLayouts), random.Below(5));
    c.FillRandom(random);
    g.FillRandom(random);
    FillPowers(a, random);
    const Layout layout = random.Pick(kOutputLayouts);
    Array first_y(real, 1, rows, length, layout, 1), first_w(dtype, 1, rows, terms, layout, 1);
    for (int threads = 1; threads <= 2; ++threads) {
      Array y(real, 1, rows, length, layout, 1), w(dtype, 1, rows, terms, layout, 1);
      y.FillPattern();
      w.FillPattern();
      convscan_vandermonde p{};
      p.rows = rows;
      p.terms = terms;
      p.length = length;
      p.order = order;
      p.dtype = dtype;
      p.a_dtype = a_dtype;
      p.c = c.data();
      p.c_row_stride = c.strides().time;
      p.c_term_stride = c.strides().channel;
      p.a = a.data();
      p.a_row_stride = a.strides().time;
      p.a_term_stride = a.strides().channel;
      p.y = y.data();
      p.y_row_stride = y.strides().time;
      p.threads = threads;
      CHECK(convscan_vandermonde_product(&p) == CONVSCAN_OK);
      convscan_vandermonde_adjoint q{};
      q.rows = rows;
      q.terms = terms;
      q.length = length;
      q.order = order;
      q.dtype = dtype;
      q.a_dtype = a_dtype;
      q.g = g.data();
      q.g_row_stride = g.strides().time;
      q.g_time_stride = g.strides().channel;
      q.a = p.a;
      q.a_row_stride = p.a_row_stride;
      q.a_term_stride = p.a_term_stride;
      q.w = w.data();
      q.w_row_stride = w.strides().time;
      q.threads = threads;
      CHECK(convscan_vandermonde_adjoint_product(&q) == CONVSCAN_OK);
      CHECK(y.PatternSurvives() && w.PatternSurvives());
      if (threads == 1) {
        first_y.CopyElements(y);
        first_w.CopyElements(w);
      } else {
        CHECK(y.SameElements(first_y) && w.SameElements(first_w));
      }
    }
    // Rounded factors and partial sums, and powers whose error in double precision grows with l.
    const double u = ComputeRoundoff(dtype), step = 0x1p-53;
    for (int64_t r = 0; r < rows; ++r) {
      std::vector<Complex> powers(static_cast<size_t>(terms), 1), sums(static_cast<size_t>(terms), 0);
      std::vector<double> scales(static_cast<size_t>(terms), 0);
      for (int64_t l = 0; l < length; ++l) {
        const double weight = l < order ? 0 : Falling(l, order);
        Complex sum = 0;
        double scale = 0;
        for (int64_t n = 0; n < terms; ++n) {
          const size_t at = static_cast<size_t>(n);
          const Complex term = weight * powers[at];
          sum += c.At(0, r, n) * term;
          scale += std::abs(c.At(0, r, n)) * std::abs(term);
          sums[at] += g.At(0, r, l) * term;
          scales[at] += std::abs(g.At(0, r, l)) * std::abs(term);
          if (l >= order) powers[at] *= a.At(0, r, n);
        }
        const double slack = u * static_cast<double>(terms + 8) + step * 8 * static_cast<double>(l + 1);
        CHECK(std::abs(first_y.At(0, r, l).real() - sum.real()) <= slack * scale + kFlushed);
      }
      const double slack = u * 140 + step * 8 * static_cast<double>(length);
      for (int64_t n = 0; n < terms; ++n)
        CHECK(std::abs(first_w.At(0, r, n) - sums[static_cast<size_t>(n)]) <=
              slack * scales[static_cast<size_t>(n)] + kFlushed);
    }
  }
}

void TestCauchy() {
  Random random(7);
  for (int trial = 0; trial < kTrials; ++trial) {
    const convscan_dtype dtype = random.Pick(kDtypes);
    const int64_t sides = 1 + random.Below(6), rows = 1 + random.Below(2), terms = random.Pick(kTerms),
                  points = random.Pick(kPoints);
    const int power = 1 + static_cast<int>(random.Below(3));
    context = Describe("cauchy", dtype, rows, terms, points, power) + " sides " + std::to_string(sides);
    Array v(dtype, sides, rows, terms, random.Pick(kLayouts), random.Below(5));
    Array lambda(dtype, 1, rows, terms, random.Pick(kLayouts), random.Below(5), false, random.Below(4) == 0, false);
    Array z(dtype, 1, rows, points, random.Pick(kLayouts), random.Below(5), false, random.Below(2) == 0, false);
    v.FillRandom(random);
    z.FillRandom(random);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t n = 0; n < terms; ++n) lambda.Set(0, r, n, {-1.25 - std::abs(random.Value()), random.Value()});
    const Layout layout = random.Pick(kOutputLayouts);
    Array first(dtype, sides, rows, points, layout, 1);
    for (int threads = 1; threads <= 2; ++threads) {
      Array k(dtype, sides, rows, points, layout, 1);
      k.FillPattern();
      convscan_cauchy p{};
      p.sides = sides;
      p.rows = rows;
      p.terms = terms;
      p.points = points;
      p.power = power;
      p.dtype = dtype;
      p.v = v.data();
      p.v_side_stride = v.strides().batch;
      p.v_row_stride = v.strides().time;
      p.v_term_stride = v.strides().channel;
      p.lambda = lambda.data();
      p.lambda_row_stride = lambda.strides().time;
      p.lambda_term_stride = lambda.strides().channel;
      p.z = z.data();
      p.z_row_stride = z.strides().time;
      p.z_point_stride = z.strides().channel;
      p.k = k.data();
      p.k_side_stride = k.strides().batch;
      p.k_row_stride = k.strides().time;
      p.threads = threads;
      CHECK(convscan_cauchy_product(&p) == CONVSCAN_OK);
      CHECK(k.PatternSurvives());
      if (threads == 1) first.CopyElements(k);
      else CHECK(k.SameElements(first));
    }
    const double slack = ComputeRoundoff(dtype) * static_cast<double>(terms + 8 * power);
    for (int64_t s = 0; s < sides; ++s)
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t w = 0; w < points; ++w) {
          Complex sum = 0;
          double scale = 0;
          for (int64_t n = 0; n < terms; ++n) {
            const Complex once = 1.0 / (z.At(0, r, w) - lambda.At(0, r, n));
            Complex term = v.At(s, r, n);
            for (int i = 0; i < power; ++i) term *= once;
            sum += term;
            scale += std::abs(term);
          }
          CHECK(std::abs(first.At(s, r, w) - sum) <= slack * scale);
        }
  }
}

// What the checks before the kernels refuse, and that empty sums are zeros.
void TestStateSpaceArguments() {
  context = "state-space arguments";
  float memory[64] = {};
  convscan_vandermonde p{};
  p.rows = 1;
  p.terms = 2;
  p.length = 4;
  p.dtype = p.a_dtype = CONVSCAN_COMPLEX64;
  p.c = memory;
  p.a = memory + 8;
  p.c_term_stride = p.a_term_stride = 1;
  p.y = memory + 16;
  CHECK(convscan_vandermonde_product(nullptr) == CONVSCAN_INVALID_ARGUMENT);
  CHECK(convscan_vandermonde_product(&p) == CONVSCAN_OK);
  p.order = -1;
  CHECK(convscan_vandermonde_product(&p) == CONVSCAN_INVALID_ARGUMENT);
  p.order = 9;  // more derivatives than steps
  memory[19] = 1;
  CHECK(convscan_vandermonde_product(&p) == CONVSCAN_OK && memory[19] == 0);
  p.order = 0;
  p.dtype = CONVSCAN_FLOAT32;
  CHECK(convscan_vandermonde_product(&p) == CONVSCAN_UNSUPPORTED);
  p.dtype = CONVSCAN_COMPLEX64;
  p.y = memory + 1;
  CHECK(convscan_vandermonde_product(&p) == CONVSCAN_INVALID_ARGUMENT);
  p.y = nullptr;
  CHECK(convscan_vandermonde_product(&p) == CONVSCAN_INVALID_ARGUMENT);
  p.terms = 0;
  p.c = p.a = nullptr;
  p.y = memory + 16;
  memory[16] = 1;
  CHECK(convscan_vandermonde_product(&p) == CONVSCAN_OK && memory[16] == 0);

  convscan_vandermonde_adjoint q{};
  q.rows = 1;
  q.terms = 2;
  q.length = 4;
  q.dtype = q.a_dtype = CONVSCAN_COMPLEX64;
  q.g = memory;
  q.g_time_stride = q.a_term_stride = 1;
  q.a = memory + 8;
  q.w = memory + 16;
  CHECK(convscan_vandermonde_adjoint_product(&q) == CONVSCAN_OK);
  q.w = memory + 2;
  CHECK(convscan_vandermonde_adjoint_product(&q) == CONVSCAN_INVALID_ARGUMENT);
  q.w = memory + 16;
  q.length = 0;
  q.g = nullptr;
  memory[16] = 1;
  CHECK(convscan_vandermonde_adjoint_product(&q) == CONVSCAN_OK && memory[16] == 0);

  convscan_cauchy k{};
  k.sides = k.rows = 1;
  k.terms = k.points = 2;
  k.power = 1;
  k.dtype = CONVSCAN_COMPLEX64;
  k.v = memory;
  k.lambda = memory + 4;
  k.z = memory + 8;
  k.v_term_stride = k.lambda_term_stride = k.z_point_stride = 1;
  k.k = memory + 16;
  memory[8] = memory[10] = 1;
  CHECK(convscan_cauchy_product(&k) == CONVSCAN_OK);
  k.power = 0;
  CHECK(convscan_cauchy_product(&k) == CONVSCAN_INVALID_ARGUMENT);
  k.power = 1;
  k.k = memory + 2;
  CHECK(convscan_cauchy_product(&k) == CONVSCAN_INVALID_ARGUMENT);
}

}  // namespace tests
