// All-pole filters and their transposes against loops, and what the C interface refuses.
#include "check.h"

namespace tests {
namespace {

constexpr convscan_dtype kDtypes[] = {CONVSCAN_FLOAT32, CONVSCAN_FLOAT64, CONVSCAN_BFLOAT16, CONVSCAN_FLOAT16};
constexpr int64_t kChannels[] = {1, 2, 3, 7, 8, 17, 33, 70};
constexpr int64_t kLengths[] = {1, 2, 9, 40, 140};

void Check(Random &random) {
  const convscan_dtype dtype = random.Pick(kDtypes);
  convscan_allpole p{};
  p.dtype = dtype;
  p.batch = 1 + random.Below(3);
  p.length = random.Pick(kLengths);
  p.channels = random.Pick(kChannels);
  p.order = 1 + random.Below(p.length > 9 ? 3 : 20);
  p.transposed = random.Below(3) == 0;
  p.threads = static_cast<int>(random.Below(4));
  const bool constant = random.Below(2) == 0, has_state = !p.transposed && random.Below(2) == 0;
  Array x(dtype, p.batch, p.length, p.channels, random.Pick(kLayouts), random.Below(4));
  Array y(dtype, p.batch, p.length, p.channels, random.Pick(kLayouts), random.Below(4));
  // The coefficients of one step follow one another along the axis of time.
  Array a(dtype, p.batch, constant ? p.order : p.length * p.order, p.channels, random.Pick(kLayouts), random.Below(4),
          constant, false, false);
  Array state(dtype, p.batch, p.order, p.channels, random.Pick(kLayouts), random.Below(4));
  x.FillRandom(random);
  a.FillRandom(random);
  state.FillRandom(random);
  y.FillPattern();
  p.x = x.data();
  p.x_strides = x.strides();
  p.a = a.data();
  p.a_strides = a.strides();
  p.a_order_stride = a.strides().time;
  p.a_strides.time = constant ? 0 : a.strides().time * p.order;
  p.state = has_state ? state.data() : nullptr;
  p.state_strides = state.strides();
  p.y = y.data();
  p.y_strides = y.strides();
  context = std::string("allpole ") + Name(dtype) + " B=" + std::to_string(p.batch) + " L=" + std::to_string(p.length) +
            " D=" + std::to_string(p.channels) + " p=" + std::to_string(p.order) + (constant ? " constant" : "") +
            (p.transposed ? " transposed" : "") + (has_state ? " state" : "");
  CHECK(convscan_allpole_filter(&p) == CONVSCAN_OK);
  CHECK(y.PatternSurvives());
  const auto coefficient = [&](int64_t b, int64_t i, int64_t k, int64_t n) {
    return a.At(b, constant ? k - 1 : i * p.order + k - 1, n).real();
  };
  std::vector<double> value(static_cast<size_t>(p.length)), size(value);
  for (int64_t b = 0; b < p.batch; ++b)
    for (int64_t n = 0; n < p.channels; ++n)
      for (int64_t step = 0; step < p.length; ++step) {
        const int64_t i = p.transposed ? p.length - 1 - step : step;
        double sum = x.At(b, i, n).real(), bound = std::abs(sum);
        for (int64_t k = 1; k <= p.order; ++k) {
          const int64_t from = p.transposed ? i + k : i - k;
          double before = 0, magnitude = 0, factor = 0;
          if (from >= 0 && from < p.length) {
            before = value[static_cast<size_t>(from)];
            magnitude = size[static_cast<size_t>(from)];
            factor = coefficient(b, p.transposed ? i + k : i, k, n);
          } else if (has_state && from < 0) {
            before = state.At(b, p.order + from, n).real();
            magnitude = std::abs(before);
            factor = coefficient(b, i, k, n);
          }
          sum += factor * before;
          bound += std::abs(factor) * magnitude;
        }
        value[static_cast<size_t>(i)] = sum;
        size[static_cast<size_t>(i)] = bound;
        const double got = y.At(b, i, n).real();
        if (IsHalf(dtype) && bound > 1e4) continue;  // beyond what a float16 holds
        const double roundings = 4.0 * static_cast<double>((p.order + 1) * (step + 1));
        const double tolerance = roundings * ComputeRoundoff(dtype) * bound + StorageRoundoff(dtype) * std::abs(sum);
        if (!CHECK(std::abs(got - sum) <= tolerance + 1e-7 * IsHalf(dtype))) return;
      }
}

}  // namespace

void TestAllpole() {
  Random random(71);
  for (int i = 0; i < 400; ++i) Check(random);
}

void TestAllpoleArguments() {
  float memory[64] = {};
  convscan_allpole p{};
  p.batch = p.channels = 1;
  p.length = 4;
  p.order = 2;
  p.x = memory;
  p.a = memory + 8;
  p.state = memory + 16;
  p.y = memory + 32;
  p.x_strides = p.y_strides = p.state_strides = {0, 1, 1};
  p.a_order_stride = 1;
  const auto refused = [&](auto change) {
    convscan_allpole broken = p;
    change(broken);
    return convscan_allpole_filter(&broken) == CONVSCAN_INVALID_ARGUMENT;
  };
  context = "arguments of all-pole filters";
  CHECK(convscan_allpole_filter(&p) == CONVSCAN_OK);
  CHECK(convscan_allpole_filter(nullptr) == CONVSCAN_INVALID_ARGUMENT);
  CHECK(refused([](convscan_allpole &q) { q.x = nullptr; }));
  CHECK(refused([](convscan_allpole &q) { q.a = nullptr; }));
  CHECK(refused([](convscan_allpole &q) { q.y = nullptr; }));
  CHECK(refused([](convscan_allpole &q) { q.order = 0; }));
  CHECK(refused([](convscan_allpole &q) { q.order = 1025; }));
  CHECK(refused([](convscan_allpole &q) { q.length = -1; }));
  CHECK(refused([](convscan_allpole &q) { q.threads = -1; }));
  CHECK(refused([](convscan_allpole &q) { q.transposed = 1; }));  // with a state
  CHECK(refused([](convscan_allpole &q) { q.y_strides.time = 0; }));
  CHECK(refused([](convscan_allpole &q) { q.a_order_stride = INT64_MAX / 2; }));
  CHECK(refused([&](convscan_allpole &q) { q.y = memory + 1; }));
  CHECK(refused([&](convscan_allpole &q) { q.y = memory + 8; }));
  CHECK(refused([&](convscan_allpole &q) { q.y = memory + 15; }));
  p.dtype = CONVSCAN_COMPLEX64;
  CHECK(convscan_allpole_filter(&p) == CONVSCAN_UNSUPPORTED);
  p.dtype = CONVSCAN_FLOAT32;
  p.length = 0;
  p.x = p.a = p.state = p.y = nullptr;
  CHECK(convscan_allpole_filter(&p) == CONVSCAN_OK);
}

}  // namespace tests
