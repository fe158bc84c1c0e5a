// Convolutions of signals that come a few samples at a time, against double loops.
#include <algorithm>

#include "check.h"

namespace tests {
namespace {

constexpr convscan_dtype kDtypes[] = {CONVSCAN_FLOAT32, CONVSCAN_FLOAT64, CONVSCAN_BFLOAT16, CONVSCAN_FLOAT16,
                                      CONVSCAN_WIDE_FLOAT32};
constexpr int64_t kTaps[] = {1, 2, 17, 128, 256, 257, 300, 640, 1500};
constexpr int64_t kChannels[] = {1, 2, 3, 5, 16, 17};
constexpr int64_t kBlocks[] = {16, 32, 128};
constexpr int kTrials = 60;

// Memory for everything between calls, exactly as long as it must be.
struct Memory {
  std::vector<char> filter, state;
  std::vector<int64_t> clock;

  explicit Memory(convscan_online &p) {
    convscan_online_sizes sizes;
    CHECK(convscan_online_measure(&p, &sizes) == CONVSCAN_OK);
    const size_t value = ComputeRoundoff(p.dtype) == 0x1p-53 ? 8 : 4;
    filter.resize(static_cast<size_t>(sizes.filter) * value);
    state.resize(static_cast<size_t>(p.batch * sizes.state) * value);
    clock.resize(static_cast<size_t>(sizes.clock));
    Bind(p);
  }
  void Bind(convscan_online &p) {
    p.filter = filter.data();
    p.state = state.data();
    p.clock = clock.data();
  }
};

void CheckOutputs(const Array &x, const Array &h, const Array &y, convscan_dtype dtype) {
  const double u = ComputeRoundoff(dtype), stored = StorageRoundoff(dtype);
  for (int64_t b = 0; b < x.batch(); ++b)
    for (int64_t n = 0; n < x.channels(); ++n) {
      double samples = 0, taps = 0;
      for (int64_t t = 0; t < x.time(); ++t) samples += std::norm(x.At(b, t, n));
      for (int64_t k = 0; k < h.time(); ++k) taps += std::norm(h.At(0, k, n));
      const double bound = 8 * u * std::log2(static_cast<double>(4 * h.time())) * std::sqrt(samples * taps);
      for (int64_t t = 0; t < x.time(); ++t) {
        double sum = 0;
        for (int64_t k = 0; k < std::min(h.time(), t + 1); ++k) sum += (h.At(0, k, n) * x.At(b, t - k, n)).real();
        if (!CHECK(std::abs(y.At(b, t, n).real() - sum) <= bound + 2 * stored * std::abs(sum) + 1e-30)) return;
      }
    }
}

}  // namespace

void TestOnline() {
  Random random(7);
  for (int trial = 0; trial < kTrials; ++trial) {
    convscan_online p{};
    p.schedule = static_cast<convscan_online_schedule>(trial % 3);
    const bool is_uniform = p.schedule == CONVSCAN_ONLINE_UNIFORM;
    p.dtype = random.Pick(kDtypes);
    p.batch = 1 + random.Below(2);
    p.channels = random.Pick(kChannels);
    p.taps = random.Pick(kTaps);
    p.block = is_uniform ? random.Pick(kBlocks) : 0;
    p.max_rewind = is_uniform ? 4 * p.block : 300;
    p.shares_filter = random.Below(4) == 0;
    const int64_t unit = is_uniform ? p.block : 1, length = 768;
    char text[160];
    snprintf(text, sizeof text, "online schedule %d %s batch=%lld channels=%lld taps=%lld block=%lld", p.schedule,
             Name(p.dtype), (long long)p.batch, (long long)p.channels, (long long)p.taps, (long long)p.block);
    context = text;
    const Layout layout = random.Pick(kLayouts);
    Array x(p.dtype, p.batch, length, p.channels, layout, random.Below(5));
    Array h(p.dtype, 1, p.taps, p.channels, random.Pick(kLayouts), random.Below(5), false, false, p.shares_filter);
    Array first(p.dtype, p.batch, length, p.channels, layout, 1);
    x.FillRandom(random);
    h.FillRandom(random);
    p.x_strides = x.strides();
    p.y_strides = first.strides();
    const auto at = [&](const Array &array, int64_t t) {
      return static_cast<char *>(array.data()) + t * array.strides().time * Bytes(p.dtype);
    };
    const uint64_t seed = random.Next();
    for (int threads = 1; threads <= 2; ++threads) {
      Array y(p.dtype, p.batch, length, p.channels, layout, 1);
      y.FillPattern();
      p.threads = threads;
      p.length = 0;
      Memory memory(p);
      CHECK(convscan_online_prepare(&p, h.data(), h.strides().time, h.strides().channel) == CONVSCAN_OK);
      Random cuts(seed);
      for (int64_t t = 0; t < length;) {
        p.length = std::min((1 + cuts.Below(300 / unit)) * unit, length - t);
        p.x = at(x, t);
        p.y = at(y, t);
        CHECK(convscan_online_extend(&p) == CONVSCAN_OK);
        t += p.length;
        if (cuts.Below(3) == 0) {  // samples that are taken back
          const int64_t back = std::min(std::min(p.length, p.max_rewind), (1 + cuts.Below(4)) * 60 / unit * unit);
          CHECK(convscan_online_rewind(&p, back) == CONVSCAN_OK);
          t -= back;
          p.length = back;
          p.x = at(x, t);
          p.y = at(y, t);
          CHECK(convscan_online_extend(&p) == CONVSCAN_OK);
          t += back;
        }
        if (cuts.Below(4) == 0) {  // a state made of the past alone
          Memory other(p);
          memcpy(other.filter.data(), memory.filter.data(), memory.filter.size());
          p.length = t;
          p.x = x.data();
          p.y = nullptr;
          CHECK(convscan_online_extend(&p) == CONVSCAN_OK);
          std::swap(other.state, memory.state);
          std::swap(other.clock, memory.clock);
          memory.Bind(p);
        }
      }
      CHECK(y.PatternSurvives());
      if (threads == 1) {
        CheckOutputs(x, h, y, p.dtype);
        first.CopyElements(y);
      } else {
        CHECK(y.SameElements(first));
      }
    }
  }
}

void TestOnlineArguments() {
  struct Problem {
    float x[64] = {}, h[6] = {}, y[64] = {};
    std::vector<float> filter, state;
    std::vector<int64_t> clock;
    convscan_online p{};

    Problem() {
      p.batch = 2;
      p.length = 16;
      p.channels = 2;
      p.taps = 3;
      p.x = x;
      p.y = y;
      p.x_strides = p.y_strides = {32, 2, 1};
      convscan_online_sizes sizes;
      CHECK(convscan_online_measure(&p, &sizes) == CONVSCAN_OK);
      filter.resize(static_cast<size_t>(sizes.filter));
      state.resize(static_cast<size_t>(2 * sizes.state));
      clock.resize(static_cast<size_t>(sizes.clock));
      p.filter = filter.data();
      p.state = state.data();
      p.clock = clock.data();
    }
  };
  struct Break {
    const char *what;
    void (*apply)(Problem &);
  };
  constexpr int64_t kHuge = INT64_MAX / 2;
  const Break breaks[] = {
      {"null x", [](Problem &c) { c.p.x = nullptr; }},
      {"null filter", [](Problem &c) { c.p.filter = nullptr; }},
      {"null state", [](Problem &c) { c.p.state = nullptr; }},
      {"null clock", [](Problem &c) { c.p.clock = nullptr; }},
      {"negative batch", [](Problem &c) { c.p.batch = -1; }},
      {"negative length", [](Problem &c) { c.p.length = -1; }},
      {"no taps", [](Problem &c) { c.p.taps = 0; }},
      {"taps overflow", [](Problem &c) { c.p.taps = kHuge; }},
      {"channels overflow", [](Problem &c) { c.p.channels = kHuge; }},
      {"negative max_rewind", [](Problem &c) { c.p.max_rewind = -1; }},
      {"max_rewind overflows", [](Problem &c) { c.p.max_rewind = kHuge; }},
      {"negative threads", [](Problem &c) { c.p.threads = -1; }},
      {"schedule 3", [](Problem &c) { c.p.schedule = static_cast<convscan_online_schedule>(3); }},
      {"dtype 7", [](Problem &c) { c.p.dtype = static_cast<convscan_dtype>(7); }},
      {"block of 24", [](Problem &c) { c.p.schedule = CONVSCAN_ONLINE_UNIFORM, c.p.block = 24; }},
      {"part of a block", [](Problem &c) { c.p.schedule = CONVSCAN_ONLINE_UNIFORM, c.p.block = 32; }},
      {"misaligned x", [](Problem &c) { c.p.x = reinterpret_cast<char *>(c.x) + 2; }},
      {"misaligned state", [](Problem &c) { c.p.state = reinterpret_cast<char *>(c.state.data()) + 2; }},
      {"y folded onto itself", [](Problem &c) { c.p.y_strides.time = 0; }},
      {"y one step into x", [](Problem &c) { c.p.y = c.x + 2; }},
      {"y is the state", [](Problem &c) { c.p.y = c.state.data(); }},
      {"y is the filter", [](Problem &c) { c.p.y = c.filter.data(); }},
      {"x is the state", [](Problem &c) { c.p.x = c.state.data(); }},
      {"the state is the filter", [](Problem &c) { c.p.filter = c.state.data(); }},
      {"a position below zero", [](Problem &c) { c.clock[0] = -1; }},
      {"a position above the highest", [](Problem &c) { c.clock[0] = 1; }},
  };
  for (const Break &one : breaks) {
    context = one.what;
    Problem problem;
    one.apply(problem);
    CHECK(convscan_online_extend(&problem.p) == CONVSCAN_INVALID_ARGUMENT);
  }
  context = "online";
  Problem problem;
  CHECK(convscan_online_extend(nullptr) == CONVSCAN_INVALID_ARGUMENT);
  CHECK(convscan_online_measure(&problem.p, nullptr) == CONVSCAN_INVALID_ARGUMENT);
  CHECK(convscan_online_prepare(&problem.p, nullptr, 2, 1) == CONVSCAN_INVALID_ARGUMENT);
  CHECK(convscan_online_prepare(&problem.p, problem.h, 2, 1) == CONVSCAN_OK);
  CHECK(convscan_online_extend(&problem.p) == CONVSCAN_OK);
  CHECK(convscan_online_rewind(&problem.p, -1) == CONVSCAN_INVALID_ARGUMENT);
  CHECK(convscan_online_rewind(&problem.p, 1) == CONVSCAN_INVALID_ARGUMENT);  // max_rewind is 0
  CHECK(convscan_online_rewind(&problem.p, 0) == CONVSCAN_OK);
  problem.p.dtype = CONVSCAN_COMPLEX64;
  CHECK(convscan_online_extend(&problem.p) == CONVSCAN_UNSUPPORTED);
  Problem empty;
  empty.p.batch = 0;
  empty.p.x = empty.p.y = nullptr;
  CHECK(convscan_online_extend(&empty.p) == CONVSCAN_OK);
  CHECK(empty.clock[0] == 16);
}

}  // namespace tests
