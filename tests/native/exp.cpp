// The exponentials against long double, compiled once per instruction set like the kernels that use them: every bound
// that core/exp.h and conv/activation.h state, over all magnitudes and in the tails.
#include "core/exp.h"

#include "conv/activation.h"

#include "check.h"

namespace convscan::CONVSCAN_ISA {
namespace {

using tests::Random;

// The C library musl, of the device's tests, computes long double exponentials and error functions in double. Hence these.

long double TrueExp(long double x) {
  constexpr long double kHigh = 0x1.62e42feep-1L, kLow = 0x1.a39ef35793c7673007e5ed5e81e69p-33L;  // of log(2)
  if (std::isnan(x) || std::fabs(x) > 10'000) return x < 0 ? 0 : x > 0 ? static_cast<long double>(INFINITY) : x;
  const long double n = std::rint(x / (kHigh + kLow)), r = (x - n * kHigh) - n * kLow;
  long double sum = 1;
  for (int k = 27; k > 0; --k) sum = 1 + sum * r / static_cast<long double>(k);
  return std::ldexp(sum, static_cast<int>(n));
}

// The normal distribution's tail beyond t >= 0.
long double TrueTail(long double t) {
  constexpr long double kInverseRoot = 0.398942280401432677939946059934381868L;  // 1 / sqrt(2 pi)
  const long double high = static_cast<float>(t);  // whose square is exact
  const long double density = kInverseRoot * TrueExp(high * high / -2) * TrueExp((t - high) * (t + high) / -2);
  if (t < 2.5L) {
    long double sum = 0;
    for (int k = 101; k > 0; k -= 2) sum = t / static_cast<long double>(k) * (1 + t * sum);
    return 0.5L - density * sum;
  }
  long double fraction = t;
  for (int k = 100; k > 0; --k) fraction = t + static_cast<long double>(k) / fraction;
  return std::isinf(t) ? 0 : density / fraction;
}

// |value - truth| in units in the last place of the truth; 0 for two NaNs or infinities of one sign.
template <class T>
double Ulps(T value, long double truth) {
  if (std::isnan(truth) || std::isnan(value)) return std::isnan(truth) && std::isnan(value) ? 0 : INFINITY;
  const T rounded = static_cast<T>(truth);
  if (std::isinf(rounded) || std::isinf(value)) return rounded == value ? 0 : INFINITY;
  constexpr int kDigits = sizeof(T) == 4 ? 24 : 53, kLowest = sizeof(T) == 4 ? -149 : -1074;
  const int exponent = truth == 0 ? kLowest : std::max(std::ilogb(truth) - kDigits + 1, kLowest);
  return static_cast<double>(std::fabs(static_cast<long double>(value) - truth) / std::ldexp(1.0L, exponent));
}

// The largest error of function(x) over numbers of every magnitude, both signs, and densely over [-limit, limit].
template <class T, class Function, class Truth>
double LargestError(T least, T limit, const Function &function, const Truth &truth) {
  constexpr int kW = kLanes<T>, kTrials = 60'000;
  Random random(11);
  std::vector<T> x;
  for (T special : {T(0), T(1), limit, static_cast<T>(INFINITY), static_cast<T>(NAN), static_cast<T>(0x1p-126),
                    static_cast<T>(1e-40), std::nextafter(limit, T(0)), T(87.3), T(88.7), T(103.9), T(709.7), T(745.1)})
    for (const T signed_special : {special, -special})
      if (least < 0 || (signed_special >= 0 && signed_special <= limit)) x.push_back(signed_special);
  for (int i = 0; i < kTrials; ++i) {
    const double unit = static_cast<double>(random.Next() >> 11) * 0x1p-53;
    x.push_back(static_cast<T>(static_cast<double>(least) + unit * static_cast<double>(limit - least)));
    const T tiny = static_cast<T>(std::ldexp(unit, static_cast<int>(random.Below(sizeof(T) == 4 ? 149 : 1074)) * -1));
    x.push_back(least < 0 && random.Below(2) ? -tiny : tiny);
  }
  x.resize(x.size() / kW * kW);
  double worst = 0;
  for (size_t i = 0; i < x.size(); i += kW) {
    const Vec<T> y = function(Load<kW>(x.data() + i));
    for (int lane = 0; lane < kW; ++lane)
      worst = std::max(worst, Ulps<T>(y[lane], truth(static_cast<long double>(x[i + static_cast<size_t>(lane)]))));
  }
  return worst;
}

template <class T>
void CheckFunctions(const char *type) {
  constexpr int kW = kLanes<T>;
  constexpr T kLimit = sizeof(T) == 4 ? 120 : 800;
  const auto within = [&](double error, double bound, const char *name) {
    tests::context = std::string(name) + " of " + type + ": " + std::to_string(error) + " ulp";
    CHECK(error <= bound);
  };
  within(LargestError<T>(-kLimit, kLimit, Exp<kW, T>, [](long double x) { return TrueExp(x); }), 1.5, "exp");
  within(LargestError<T>(0, 1, Log1pOfUnit<kW, T>, [](long double x) { return log1pl(x); }), 4, "log1p");
  within(LargestError<T>(-kLimit, kLimit, Softplus<kW, T>,
                         [](long double x) { return x > 0 ? x + log1pl(TrueExp(-x)) : log1pl(TrueExp(x)); }),
         4, "softplus");
  within(LargestError<T>(-kLimit, kLimit, Sigmoid<kW, T>,
                         [](long double x) { return 1 / (1 + TrueExp(-x)); }),
         3, "sigmoid");
  within(LargestError<T>(-kLimit, kLimit, Silu<kW, T>,
                         [](long double x) { return std::isinf(x) ? std::max(x, -0.0L) : x / (1 + TrueExp(-x)); }),
         3, "silu");
  within(LargestError<T>(-kLimit, kLimit, Gelu<kW, T>,
                         [](long double x) { return std::isinf(x) ? std::max(x, -0.0L) : x * (x < 0 ? TrueTail(-x) : 1 - TrueTail(x)); }),
         6, "gelu");
  within(LargestError<T>(0, kLimit, [](Vec<T> x) { return Reciprocal<kW, T>(AtLeast<kW, T>(x, T(0.5))); },
                         [](long double x) { return 1 / std::max(x, 0.5L); }),
         1, "reciprocal");
}

template <class T>
void CheckGate(const char *type) {
  constexpr int kW = kLanes<T>;
  constexpr double kBias = ExpConstants<T>::kBias;
#if defined(__FMA__) || defined(__aarch64__)
  constexpr double kBound = 1;
#else
  constexpr double kBound = kBias;  // the product's rounding, magnified
#endif
  Random random(12);
  double worst = 0;
  bool zero = true, infinite = true;
  const auto gate = [](T x, long double rate) {
    const T high = static_cast<T>(rate);
    const Split<kW, T> split{Broadcast<T>(high), Broadcast<T>(static_cast<T>(rate - static_cast<long double>(high)))};
    return Exp2OfProduct<kW, T>(Broadcast<T>(x), split)[0];
  };
  for (int i = 0; i < 50'000; ++i) {
    const T x = static_cast<T>(std::ldexp(1 + random.Value() / 2, static_cast<int>(random.Below(30)) - 20));
    const long double exponent = kBias * (random.Value() + static_cast<double>(random.Below(1 << 20)) * 0x1p-27);
    if (std::fabs(exponent) > kBias - 1) continue;
    // The rate as its two parts represent it: what is compared is the function, not the split.
    const long double rate = exponent / static_cast<long double>(x);
    const T high = static_cast<T>(rate), low = static_cast<T>(rate - static_cast<long double>(high));
    const long double product = static_cast<long double>(x) * (static_cast<long double>(high) + static_cast<long double>(low));
    worst = std::max(worst, Ulps<T>(gate(x, rate), exp2l(product)));
    const long double far = static_cast<long double>(std::ldexp(1.0, static_cast<int>(random.Below(60)))) * (kBias + 2);
    zero = zero && gate(T(1), -far) == 0;
    infinite = infinite && gate(T(1), far) == static_cast<T>(INFINITY);
  }
  tests::context = std::string("gate of ") + type + ": " + std::to_string(worst) + " ulp";
  CHECK(worst <= kBound);
  CHECK(zero && infinite);
  CHECK(gate(T(0), -3) == 1 && gate(static_cast<T>(INFINITY), -3) == 0);
  CHECK(std::isnan(gate(static_cast<T>(NAN), -3)) && std::isnan(gate(T(1), NAN)));
}

}  // namespace

void TestExp() {
  CheckFunctions<float>("float");
  CheckFunctions<double>("double");
  CheckGate<float>("float");
  CheckGate<double>("double");
}

}  // namespace convscan::CONVSCAN_ISA
