#include <algorithm>

#include "check.h"
#include "core/cache.h"

namespace tests {
namespace {

struct Kernel {
  const char *name;
  convscan_status (*run)(const convscan_scan *);
  int64_t ran = 0;
};

constexpr convscan_dtype kDtypes[] = {CONVSCAN_FLOAT32, CONVSCAN_FLOAT64,   CONVSCAN_BFLOAT16,
                                      CONVSCAN_FLOAT16, CONVSCAN_COMPLEX64, CONVSCAN_COMPLEX128};
constexpr int64_t kLengths[] = {1,  2,  3,   5,   7,   8,   9,   15,  16,  17,  31,   32,   33,  63,
                                64, 65, 127, 128, 129, 255, 256, 257, 500, 513, 1021, 2048, 5000, 17000};
constexpr int64_t kChannels[] = {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 65, 130, 200};

struct Sizes {
  int64_t batch, length, channels;

  explicit Sizes(Random &random) {
    do {
      batch = 1 + random.Below(3);
      length = random.Pick(kLengths);
      channels = random.Pick(kChannels);
    } while (batch * length * channels > 20'000);
  }
};

// Coefficients of which some are zero, some change sign, some exceed 1; a long product neither dies nor overflows.
void FillCoefficients(Array &a, convscan_dtype dtype, Random &random) {
  const int64_t kind = random.Below(4);
  for (int64_t b = 0; b < a.batch(); ++b)
    for (int64_t t = 0; t < a.time(); ++t)
      for (int64_t n = 0; n < a.channels(); ++n) {
        double value = kind == 0 ? random.Value() : 1 - static_cast<double>(random.Below(64)) / 256;
        if (kind == 2 && random.Below(8) == 0) value = 0;
        if (kind == 3 && a.strides().time != 0 && random.Below(16) == 0) value = -1.0625;
        a.Set(b, t, n, IsComplex(dtype) ? Complex(value / 2, random.Value() / 2) : Complex(value, 0));
      }
}

// Where packed sequences begin and end: some empty, some of one step. None in two cases of three.
std::vector<int64_t> Boundaries(int64_t length, Random &random) {
  if (random.Below(3) != 0) return {};
  std::vector<int64_t> values = {0, length};
  for (int64_t inner = random.Below(6); inner > 0; --inner) values.push_back(random.Below(length + 1));
  if (random.Below(2) == 0) values.push_back(values[values.size() / 2]);
  std::sort(values.begin(), values.end());
  return values;
}

// The sequence that step t belongs to.
int64_t SequenceOf(const std::vector<int64_t> &boundaries, int64_t t) {
  if (boundaries.empty()) return 0;
  return std::upper_bound(boundaries.begin(), boundaries.end(), t) - boundaries.begin() - 1;
}

// In one case of three all arrays are too large for the caches: kernels then store past them.
bool AssumeCaches(Random &random) {
  const bool none = random.Below(3) == 0;
  convscan::AssumeLastLevelCache(none ? 1 : 0);
  return none;
}

std::string Describe(const char *kernel, convscan_dtype dtype, const Sizes &s, bool reverse, int trial) {
  char text[160];
  snprintf(text, sizeof text, "%s %s B=%lld L=%lld D=%lld%s trial %d", kernel, Name(dtype), (long long)s.batch,
           (long long)s.length, (long long)s.channels, reverse ? " reverse" : "", trial);
  return text;
}

}  // namespace

void TestRecurrence() {
  Kernel kernels[] = {{"sequential", convscan_scan_sequential},
                      {"tiled", convscan_scan_tiled},
                      {"parallel", convscan_scan_parallel}};
  Random random(4);
  constexpr int kTrials = 700;
  for (int trial = 0; trial < kTrials; ++trial) {
    const convscan_dtype dtype = random.Pick(kDtypes);
    const Sizes s(random);
    const Layout x_layout = random.Pick(kLayouts), y_layout = random.Pick(kLayouts), a_layout = random.Pick(kLayouts);
    const bool in_place = random.Below(4) == 0;
    const int64_t repeats = random.Below(3) == 0 ? random.Below(8) : 0;
    Array x(dtype, s.batch, s.length, s.channels, x_layout, random.Below(5));
    Array a(dtype, s.batch, s.length, s.channels, a_layout, random.Below(5), repeats & 1, repeats & 2, repeats & 4);
    const std::vector<int64_t> boundaries = Boundaries(s.length, random);
    const int64_t sequences = boundaries.empty() ? 1 : static_cast<int64_t>(boundaries.size()) - 1;
    Array y_init(dtype, s.batch, sequences, s.channels, random.Pick(kLayouts), random.Below(3), random.Below(4) == 0,
                 random.Below(4) == 0, random.Below(4) == 0);
    const int64_t misaligned = random.Below(3) == 0 ? 0 : random.Below(5);
    const bool streams = AssumeCaches(random);
    x.FillRandom(random);
    y_init.FillRandom(random);
    FillCoefficients(a, dtype, random);

    convscan_scan p{};
    p.batch = s.batch;
    p.length = s.length;
    p.channels = s.channels;
    p.dtype = dtype;
    p.reverse = random.Below(3) == 0;
    p.x = x.data();
    p.x_strides = x.strides();
    p.a = a.data();
    p.a_strides = a.strides();
    if (random.Below(2) == 0) {
      p.y_init = y_init.data();
      p.y_init_batch_stride = y_init.strides().batch;
      p.y_init_sequence_stride = y_init.strides().time;
      p.y_init_channel_stride = y_init.strides().channel;
    }
    if (!boundaries.empty()) {
      p.boundaries = boundaries.data();
      p.sequences = sequences;
    }

    // Every term of y[i] is rounded at most four times a step; the recurrence of magnitudes bounds their sum.
    const size_t count = static_cast<size_t>(s.batch * s.length * s.channels);
    std::vector<Complex> expected(count);
    std::vector<double> scale(count);
    const auto index = [&](int64_t b, int64_t t, int64_t n) {
      return static_cast<size_t>((b * s.length + t) * s.channels + n);
    };
    for (int64_t b = 0; b < s.batch; ++b)
      for (int64_t n = 0; n < s.channels; ++n) {
        Complex y = 0;
        double magnitude = 0;
        int64_t sequence = -1;
        for (int64_t i = 0; i < s.length; ++i) {
          const int64_t t = p.reverse ? s.length - 1 - i : i;
          if (SequenceOf(boundaries, t) != sequence) {
            sequence = SequenceOf(boundaries, t);
            y = p.y_init == nullptr ? Complex(0) : y_init.At(b, sequence, n);
            magnitude = std::abs(y);
          }
          y = a.At(b, t, n) * y + x.At(b, t, n);
          magnitude = std::abs(a.At(b, t, n)) * magnitude + std::abs(x.At(b, t, n));
          expected[index(b, t, n)] = y;
          scale[index(b, t, n)] = magnitude;
        }
      }

    bool ran_somewhere = false;
    for (Kernel &kernel : kernels) {
      context = Describe(kernel.name, dtype, s, p.reverse, trial) + " x " + Name(x_layout) + " a " + Name(a_layout) +
                " repeats " + std::to_string(repeats) + " y " + (in_place ? "in place" : Name(y_layout)) +
                (p.y_init ? " y_init" : "") + (p.boundaries ? " packed" : "") + (streams ? " past the caches" : "");
      Array first(dtype, s.batch, s.length, s.channels, in_place ? x_layout : y_layout, misaligned);
      for (int threads = 1; threads <= 3; ++threads) {
        Array y(dtype, s.batch, s.length, s.channels, in_place ? x_layout : y_layout, misaligned);
        y.FillPattern();
        p.y = y.data();
        p.y_strides = y.strides();
        p.threads = threads;
        if (in_place) {
          y.CopyElements(x);
          p.x = y.data();
        }
        const convscan_status status = kernel.run(&p);
        p.x = x.data();
        if (status == CONVSCAN_UNSUPPORTED) break;
        if (!CHECK(status == CONVSCAN_OK)) break;
        ran_somewhere = true;
        if (threads == 1) ++kernel.ran;
        CHECK(y.PatternSurvives());
        const double steps = 4 * static_cast<double>(std::min<int64_t>(s.length, 256)) + 8;
        double worst = 0;
        for (int64_t b = 0; b < s.batch; ++b)
          for (int64_t t = 0; t < s.length; ++t)
            for (int64_t n = 0; n < s.channels; ++n) {
              const size_t at = index(b, t, n);
              const double bound = steps * ComputeRoundoff(dtype) * scale[at] +
                                   1.01 * StorageRoundoff(dtype) * std::abs(expected[at]) +
                                   (dtype == CONVSCAN_FLOAT16 ? 0x1p-24 : 0x1p-120);
              const double error = std::abs(y.At(b, t, n) - expected[at]);
              worst = std::max(worst, std::isnan(error) ? HUGE_VAL : error / bound);
            }
        if (worst > 1) context += " error/bound " + std::to_string(worst);
        CHECK(worst <= 1);
        if (threads == 1) first.CopyElements(y);
        CHECK(y.SameElements(first));
      }
    }
    context = Describe("any kernel", dtype, s, p.reverse, trial);
    CHECK(ran_somewhere);
  }
  convscan::AssumeLastLevelCache(0);
  for (const Kernel &kernel : kernels) {
    context = std::string("recurrence ") + kernel.name + " ran " + std::to_string(kernel.ran) + " of " +
              std::to_string(kTrials);
    fprintf(stderr, "  %s\n", context.c_str());
    CHECK(kernel.ran > 0);
  }
}

void TestRecurrenceGradient() {
  Random random(5);
  constexpr int kTrials = 400;
  int64_t ran = 0;
  for (int trial = 0; trial < kTrials; ++trial) {
    const convscan_dtype dtype = random.Pick(kDtypes);
    const Sizes s(random);
    const int64_t repeats = random.Below(2) == 0 ? random.Below(8) : 0;
    const bool in_place = random.Below(4) == 0, wants_da = random.Below(4) != 0, wants_dy_init = random.Below(3) != 0;
    const Layout a_layout = random.Pick(kLayouts), dy_layout = random.Pick(kLayouts), dx_layout = random.Pick(kLayouts);
    const Layout da_layout = random.Pick(kLayouts), init_layout = random.Pick(kLayouts);
    Array a(dtype, s.batch, s.length, s.channels, a_layout, random.Below(5), repeats & 1, repeats & 2, repeats & 4);
    Array y(dtype, s.batch, s.length, s.channels, random.Pick(kLayouts), random.Below(5));
    Array dy(dtype, s.batch, s.length, s.channels, dy_layout, random.Below(5));
    const std::vector<int64_t> boundaries = Boundaries(s.length, random);
    const int64_t sequences = boundaries.empty() ? 1 : static_cast<int64_t>(boundaries.size()) - 1;
    Array y_init(dtype, s.batch, sequences, s.channels, random.Pick(kLayouts), random.Below(3));
    const int64_t misaligned = random.Below(3) == 0 ? 0 : random.Below(5);
    const bool streams = AssumeCaches(random);
    FillCoefficients(a, dtype, random);
    y.FillRandom(random);
    dy.FillRandom(random);
    y_init.FillRandom(random);

    convscan_scan_gradient p{};
    convscan_scan &f = p.forward;
    f.batch = s.batch;
    f.length = s.length;
    f.channels = s.channels;
    f.dtype = dtype;
    f.reverse = random.Below(3) == 0;
    f.a = a.data();
    f.a_strides = a.strides();
    f.y = y.data();
    f.y_strides = y.strides();
    if (random.Below(2) == 0) {
      f.y_init = y_init.data();
      f.y_init_batch_stride = y_init.strides().batch;
      f.y_init_sequence_stride = y_init.strides().time;
      f.y_init_channel_stride = y_init.strides().channel;
    }
    if (!boundaries.empty()) {
      f.boundaries = boundaries.data();
      f.sequences = sequences;
    }
    context = Describe("gradient", dtype, s, f.reverse, trial) + " a " + Name(a_layout) + " dy " + Name(dy_layout) +
              " dx " + (in_place ? "in place" : Name(dx_layout)) + " da " + Name(da_layout) + " repeats " +
              std::to_string(repeats) + (wants_da ? "" : " without da") + (f.y_init ? " y_init" : "") +
              (f.boundaries ? " packed" : "") + (streams ? " past the caches" : "");

    const int64_t da_batch = repeats & 1 ? 1 : s.batch, da_time = repeats & 2 ? 1 : s.length,
                  da_channels = repeats & 4 ? 1 : s.channels;
    const auto index = [&](int64_t b, int64_t t, int64_t n) {
      return static_cast<size_t>((b * s.length + t) * s.channels + n);
    };
    const auto da_index = [&](int64_t b, int64_t t, int64_t n) {
      return static_cast<size_t>(((repeats & 1 ? 0 : b) * da_time + (repeats & 2 ? 0 : t)) * da_channels +
                                 (repeats & 4 ? 0 : n));
    };
    std::vector<Complex> dx(static_cast<size_t>(s.batch * s.length * s.channels)),
        da(static_cast<size_t>(da_batch * da_time * da_channels)), dy_init(static_cast<size_t>(s.batch * sequences * s.channels));
    std::vector<double> dx_scale(dx.size()), da_scale(da.size()), dy_init_scale(dy_init.size());
    for (int64_t b = 0; b < s.batch; ++b)
      for (int64_t n = 0; n < s.channels; ++n) {
        Complex carried = 0;
        double magnitude = 0;
        for (int64_t i = s.length - 1; i >= 0; --i) {
          const int64_t t = f.reverse ? s.length - 1 - i : i, next = f.reverse ? t + 1 : t - 1;
          const int64_t sequence = SequenceOf(boundaries, t);
          const Complex g = dy.At(b, t, n) + carried;
          magnitude += std::abs(dy.At(b, t, n));
          Complex before = 0;
          const bool is_first = i == 0 || SequenceOf(boundaries, next) != sequence;
          if (!is_first) before = y.At(b, next, n);
          else if (f.y_init != nullptr) before = y_init.At(b, sequence, n);
          dx[index(b, t, n)] = g;
          dx_scale[index(b, t, n)] = magnitude;
          da[da_index(b, t, n)] += g * std::conj(before);
          da_scale[da_index(b, t, n)] += magnitude * std::abs(before);
          carried = std::conj(a.At(b, t, n)) * g;
          magnitude *= std::abs(a.At(b, t, n));
          if (!is_first) continue;
          const size_t at = static_cast<size_t>((b * sequences + sequence) * s.channels + n);
          dy_init[at] = carried;
          dy_init_scale[at] = magnitude;
          carried = 0;
          magnitude = 0;
        }
      }

    const Layout dx_real_layout = in_place ? dy_layout : dx_layout;
    Array first_dx(dtype, s.batch, s.length, s.channels, dx_real_layout, misaligned);
    Array first_da(dtype, da_batch, da_time, da_channels, da_layout, misaligned);
    Array first_init(dtype, s.batch, sequences, s.channels, init_layout, misaligned);
    for (int threads = 1; threads <= 3; ++threads) {
      Array dx_out(dtype, s.batch, s.length, s.channels, dx_real_layout, misaligned);
      Array da_out(dtype, da_batch, da_time, da_channels, da_layout, misaligned);
      Array init_out(dtype, s.batch, sequences, s.channels, init_layout, misaligned);
      dx_out.FillPattern();
      da_out.FillPattern();
      init_out.FillPattern();
      p.dy = dy.data();
      p.dy_strides = dy.strides();
      if (in_place) {
        dx_out.CopyElements(dy);
        p.dy = dx_out.data();
        p.dy_strides = dx_out.strides();
      }
      p.dx = dx_out.data();
      p.dx_strides = dx_out.strides();
      p.da = wants_da ? da_out.data() : nullptr;
      p.da_strides = da_out.strides();
      if (repeats & 1) p.da_strides.batch = 0;
      if (repeats & 2) p.da_strides.time = 0;
      if (repeats & 4) p.da_strides.channel = 0;
      p.dy_init = wants_dy_init ? init_out.data() : nullptr;
      p.dy_init_batch_stride = init_out.strides().batch;
      p.dy_init_sequence_stride = init_out.strides().time;
      p.dy_init_channel_stride = init_out.strides().channel;
      f.threads = threads;
      if (!CHECK(convscan_scan_gradient_sequential(&p) == CONVSCAN_OK)) break;
      if (threads == 1) ++ran;
      CHECK(dx_out.PatternSurvives());
      CHECK(da_out.PatternSurvives());
      CHECK(init_out.PatternSurvives());
      const double u = ComputeRoundoff(dtype), half = 1.01 * StorageRoundoff(dtype);
      const double tiny = dtype == CONVSCAN_FLOAT16 ? 0x1p-24 : 0x1p-120;
      const double steps = 4 * static_cast<double>(std::min<int64_t>(s.length, 256)) + 8;
      const double sums = static_cast<double>(s.batch * s.length * s.channels) /
                          static_cast<double>(da_batch * da_time * da_channels);
      double worst_dx = 0, worst_da = 0, worst_init = 0;
      const auto ratio = [&](Complex got, Complex want, double scale, double roundings) {
        const double error = std::abs(got - want);
        return std::isnan(error) ? HUGE_VAL : error / (roundings * u * scale + half * std::abs(want) + tiny);
      };
      for (int64_t b = 0; b < s.batch; ++b)
        for (int64_t t = 0; t < s.length; ++t)
          for (int64_t n = 0; n < s.channels; ++n) {
            const size_t at = index(b, t, n);
            worst_dx = std::max(worst_dx, ratio(dx_out.At(b, t, n), dx[at], dx_scale[at], steps));
          }
      for (int64_t b = 0; wants_da && b < da_batch; ++b)
        for (int64_t t = 0; t < da_time; ++t)
          for (int64_t n = 0; n < da_channels; ++n) {
            const size_t at = static_cast<size_t>((b * da_time + t) * da_channels + n);
            worst_da = std::max(worst_da, ratio(da_out.At(b, t, n), da[at], da_scale[at], steps + sums));
          }
      for (int64_t b = 0; wants_dy_init && b < s.batch; ++b)
        for (int64_t q = 0; q < sequences; ++q)
          for (int64_t n = 0; n < s.channels; ++n) {
            const size_t at = static_cast<size_t>((b * sequences + q) * s.channels + n);
            worst_init = std::max(worst_init, ratio(init_out.At(b, q, n), dy_init[at], dy_init_scale[at], steps));
          }
      if (worst_dx > 1 || worst_da > 1 || worst_init > 1)
        context += " error/bound " + std::to_string(worst_dx) + " " + std::to_string(worst_da) + " " +
                   std::to_string(worst_init);
      CHECK(worst_dx <= 1);
      CHECK(worst_da <= 1);
      CHECK(worst_init <= 1);
      if (threads == 1) {
        first_dx.CopyElements(dx_out);
        if (wants_da) first_da.CopyElements(da_out);
        if (wants_dy_init) first_init.CopyElements(init_out);
      }
      CHECK(dx_out.SameElements(first_dx));
      CHECK(!wants_da || da_out.SameElements(first_da));
      CHECK(!wants_dy_init || init_out.SameElements(first_init));
    }
  }
  convscan::AssumeLastLevelCache(0);
  context = "recurrence gradient ran " + std::to_string(ran) + " of " + std::to_string(kTrials);
  fprintf(stderr, "  %s\n", context.c_str());
  CHECK(ran == kTrials);
}

}  // namespace tests
