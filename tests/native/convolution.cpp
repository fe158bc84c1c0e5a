#include <algorithm>

#include "check.h"

namespace tests {
namespace {

struct Kernel {
  const char *name;
  convscan_status (*run)(const convscan_conv *, int64_t transform_length);
  int64_t ran = 0;
};

struct GradientKernel {
  const char *name;
  convscan_status (*run)(const convscan_filter_gradient *, int64_t transform_length);
  int64_t ran = 0;
};

double Activate(convscan_activation activation, double z) {
  switch (activation) {
    case CONVSCAN_SILU: return z / (1 + std::exp(-z));
    case CONVSCAN_GELU: return z * std::erfc(-z / std::sqrt(2.0)) / 2;
    default: return z;
  }
}

constexpr int64_t kLengths[] = {1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 127, 128, 129, 255, 257,
                                500, 1021};
constexpr int64_t kChannels[] = {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 65, 130};
constexpr int64_t kTaps[] = {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 200, 257, 600};
constexpr convscan_dtype kReal[] = {CONVSCAN_FLOAT32, CONVSCAN_FLOAT64, CONVSCAN_BFLOAT16, CONVSCAN_FLOAT16,
                                      CONVSCAN_WIDE_FLOAT32};

std::string Describe(const char *kernel, convscan_dtype dtype, int64_t batch, int64_t length, int64_t channels,
                     int64_t taps) {
  char text[160];
  snprintf(text, sizeof text, "%s %s B=%lld L=%lld D=%lld K=%lld", kernel, Name(dtype), (long long)batch,
           (long long)length, (long long)channels, (long long)taps);
  return text;
}

// A problem of hostile sizes whose double loop stays affordable.
struct Sizes {
  int64_t batch, length, channels, taps;

  explicit Sizes(Random &random) {
    do {
      batch = 1 + random.Below(3);
      length = random.Pick(kLengths);
      channels = random.Pick(kChannels);
      taps = random.Pick(kTaps);
    } while (batch * length * channels * taps > 400'000);
  }
};

// Complex points that a random split of the signal into blocks would use; 0 for a single block.
int64_t RandomTransform(Random &random, const Sizes &s, convscan_dtype dtype) {
  if (random.Below(2) == 0) return 0;
  return convscan_fft_length((s.taps + 1) / 2 + 1 + random.Below(s.length + 8), dtype);
}

// Makes the spectra of the problem's filters, forgets the filters, and convolves with the spectra. Only the filters as
// they are and reversed in time have spectra.
convscan_status ConvolveKept(const convscan_conv *p, int64_t transform_length) {
  if (p->origin != 0 && p->origin != p->taps - 1) return CONVSCAN_UNSUPPORTED;
  if (transform_length == 0) transform_length = convscan_fft_length((p->length + p->taps) / 2, p->dtype);
  convscan_spectrum s{};
  s.filters = p->h_channel_stride == 0 ? 1 : (p->channels - 1) / (p->filter_group > 0 ? p->filter_group : 1) + 1;
  s.taps = p->taps;
  s.transform_length = transform_length;
  s.dtype = p->dtype;
  s.h = p->h;
  s.h_tap_stride = p->h_tap_stride;
  s.h_filter_stride = p->h_channel_stride;
  const bool is_reversed = p->origin != 0;
  if (is_reversed) {  // spectra are those of causal filters
    s.h = static_cast<const char *>(p->h) + (p->taps - 1) * p->h_tap_stride * Bytes(p->dtype);
    s.h_tap_stride = -p->h_tap_stride;
  }
  s.threads = p->threads;
  const int64_t bytes = s.filters * convscan_spectrum_bytes(transform_length, p->dtype, s.storage);
  s.spectra = aligned_alloc(64, static_cast<size_t>((bytes + 63) / 64 * 64));
  convscan_status status = convscan_filter_spectrum(&s);
  convscan_conv kept = *p;
  kept.h = nullptr;
  if (status == CONVSCAN_OK) status = convscan_conv_fft_kept(&kept, transform_length, s.spectra, s.storage);
  free(s.spectra);
  return status;
}

convscan_status GradientDirect(const convscan_conv_gradient *p, int64_t) { return convscan_conv_gradient_direct(p); }

// The filter's gradient as computed along with that of the input, which is right too.
template <convscan_status (*kRun)(const convscan_conv_gradient *, int64_t transform_length)>
convscan_status BothGradients(const convscan_filter_gradient *f, int64_t transform_length) {
  convscan_conv_gradient p{};
  p.filter = *f;
  const int64_t element = Bytes(f->dtype);
  // A filter that moves samples by one step: dx[j] = dz[j + 1].
  Array h(f->dtype, 1, f->taps, 1, Layout::kTimeMajor, 0), dx(f->dtype, f->batch, f->length, f->channels,
                                                              Layout::kTimeMajor, 0);
  for (int64_t k = 0; k < f->taps; ++k) h.Set(0, k, 0, k == 1 ? 1.0 : 0.0);
  p.h = h.data();
  p.h_tap_stride = h.strides().time;
  p.dx = dx.data();
  p.dx_strides = dx.strides();
  const convscan_status status = kRun(&p, transform_length);
  if (status != CONVSCAN_OK) return status;
  const double tolerance = 64 * ComputeRoundoff(f->dtype) * static_cast<double>(f->length) + StorageRoundoff(f->dtype);
  Array sample(f->dtype, 1, 1, 1, Layout::kTimeMajor, 0);
  for (int64_t b = 0; b < f->batch; ++b)
    for (int64_t n = 0; n < f->channels; ++n)
      for (int64_t i = 0; i < f->length; ++i) {
        double expected = 0;
        if (i + 1 < f->length && f->taps > 1) {
          const convscan_strides &s = f->dz_strides;
          const int64_t at = b * s.batch + (i + 1) * s.time + n * s.channel;
          memcpy(sample.data(), static_cast<const char *>(f->dz) + at * element, static_cast<size_t>(element));
          expected = sample.At(0, 0, 0).real();
        }
        if (!(std::fabs(dx.At(b, i, n).real() - expected) <= tolerance)) return CHECK(!"dx is right"), status;
      }
  return status;
}

}  // namespace

void TestConvolution() {
  static const auto kDirect = [](const convscan_conv *p, int64_t) { return convscan_conv_direct(p); };
  static const auto kToeplitz = [](const convscan_conv *p, int64_t) { return convscan_conv_toeplitz(p); };
  static const auto kRecurrence = [](const convscan_conv *p, int64_t) { return convscan_conv_recurrence(p); };
  Kernel kernels[] = {
      {"direct", kDirect}, {"toeplitz", kToeplitz}, {"recurrence", kRecurrence}, {"fft", convscan_conv_fft},
      {"fft with kept spectra", ConvolveKept}};
  Random random(2);
  constexpr int kTrials = 500;
  for (int trial = 0; trial < kTrials; ++trial) {
    const convscan_dtype dtype = random.Pick(kReal);
    const Sizes s(random);
    const Layout x_layout = random.Pick(kLayouts), y_layout = random.Pick(kLayouts);
    const bool in_place = random.Below(4) == 0, one_filter = random.Below(5) == 0;
    Array x(dtype, s.batch, s.length, s.channels, x_layout, random.Below(5));
    Array bias(dtype, 1, 1, s.channels, random.Pick(kLayouts), random.Below(3), false, false, random.Below(3) == 0);
    // Gates of any extent, filters that channels or no sequences share, sequences packed along time.
    const auto gate_extent = [&] { return random.Below(3) == 0; };
    Array pre(dtype, s.batch, s.length, s.channels, random.Pick(kLayouts), random.Below(3), gate_extent(), gate_extent(),
              gate_extent());
    Array post(dtype, s.batch, s.length, s.channels, random.Pick(kLayouts), random.Below(3), gate_extent(), gate_extent(),
               gate_extent());
    const int64_t group = one_filter ? 1 : random.Pick({int64_t{1}, int64_t{1}, int64_t{2}, int64_t{5}});
    const bool own_filters = random.Below(4) == 0, is_packed = random.Below(3) == 0;
    Array h(dtype, own_filters ? s.batch : 1, s.taps, (s.channels - 1) / group + 1, random.Pick(kLayouts),
            random.Below(5), false, false, one_filter);
    std::vector<int64_t> boundaries{0, s.length};
    for (int64_t cuts = is_packed ? random.Below(6) : 0; cuts > 0; --cuts)
      boundaries.push_back(random.Below(2) == 0 ? s.length / 2 : random.Below(s.length + 1));
    std::sort(boundaries.begin(), boundaries.end());
    const int64_t sequences = static_cast<int64_t>(boundaries.size()) - 1;
    std::vector<int64_t> begin_of(static_cast<size_t>(s.length)), sequence_of(begin_of), end_of(begin_of);
    for (int64_t q = 0; q < sequences; ++q)
      for (int64_t i = boundaries[q]; i < boundaries[q + 1]; ++i) {
        begin_of[i] = boundaries[q];
        end_of[i] = boundaries[q + 1];
        sequence_of[i] = q;
      }
    // The states of all sequences behind one another.
    const int64_t past = std::max<int64_t>(s.taps - 1, 1);
    Array state(dtype, s.batch, past * sequences, s.channels, random.Pick(kLayouts), random.Below(3),
                random.Below(4) == 0, false, false);
    const int64_t misaligned = random.Below(5);
    x.FillRandom(random);
    h.FillRandom(random);
    bias.FillRandom(random);
    state.FillRandom(random);
    pre.FillRandom(random);
    post.FillRandom(random);

    convscan_conv p{};
    p.batch = s.batch;
    p.length = s.length;
    p.channels = s.channels;
    p.taps = s.taps;
    p.dtype = dtype;
    p.activation = random.Pick({CONVSCAN_IDENTITY, CONVSCAN_IDENTITY, CONVSCAN_SILU, CONVSCAN_GELU});
    p.x = x.data();
    p.x_strides = x.strides();
    p.h = h.data();
    p.h_batch_stride = own_filters ? h.strides().batch : 0;
    p.h_tap_stride = h.strides().time;
    p.h_channel_stride = h.strides().channel;
    p.filter_group = group;
    if (random.Below(2) == 0) {
      p.bias = bias.data();
      p.bias_stride = bias.strides().channel;
    }
    if (random.Below(3) == 0) {
      p.pre_gate = pre.data();
      p.pre_gate_strides = pre.strides();
    }
    if (random.Below(3) == 0) {
      p.post_gate = post.data();
      p.post_gate_strides = post.strides();
    }
    if (is_packed) {
      p.boundaries = boundaries.data();
      p.sequences = sequences;
    }
    const int64_t start = random.Below(3);
    if (start == 0) {
      p.state = state.data();
      p.state_strides = state.strides();
      p.state_sequence_stride = past * state.strides().time;
    } else if (start == 1) {
      p.origin = random.Below(s.taps);
    }
    const auto sample_at = [&](int64_t b, int64_t t, int64_t n) {
      return x.At(b, t, n).real() * (p.pre_gate ? pre.At(b, t, n).real() : 1.0);
    };

    // Expected values, the sum of magnitudes (direct sums) and the channels' energies (FFT) that bound the error.
    const size_t count = static_cast<size_t>(s.batch * s.length * s.channels);
    std::vector<double> expected(count), scale(count), energy(count);
    size_t at = 0;
    for (int64_t b = 0; b < s.batch; ++b)
      for (int64_t n = 0; n < s.channels; ++n) {
        const int64_t filter_batch = own_filters ? b : 0, filter = n / group;
        double h_energy = 0, x_energy = 0;
        for (int64_t k = 0; k < s.taps; ++k) h_energy += std::norm(h.At(filter_batch, k, filter));
        for (int64_t i = 0; i < s.length; ++i) x_energy += std::norm(sample_at(b, i, n));
        for (int64_t j = 0; j < past * sequences && p.state != nullptr; ++j) x_energy += std::norm(state.At(b, j, n));
        for (int64_t i = 0; i < s.length; ++i, ++at) {
          const double factor = p.post_gate ? post.At(b, i, n).real() : 1.0;
          double z = 0, magnitude = 0;
          for (int64_t k = 0; k < s.taps; ++k) {
            const int64_t t = i + p.origin - k, before = t - begin_of[i];
            double sample = 0;
            if (before >= 0 && t < end_of[i]) sample = sample_at(b, t, n);
            if (before < 0 && p.state != nullptr)
              sample = state.At(b, past * sequence_of[i] + s.taps - 1 + before, n).real();
            z += h.At(filter_batch, k, filter).real() * sample;
            magnitude += std::fabs(h.At(filter_batch, k, filter).real() * sample);
          }
          if (p.bias != nullptr) {
            z += bias.At(0, 0, n).real();
            magnitude += std::fabs(bias.At(0, 0, n).real());
          }
          expected[at] = Activate(p.activation, z * factor);
          scale[at] = magnitude * std::fabs(factor);
          energy[at] = std::sqrt(h_energy * x_energy) * std::fabs(factor);
        }
      }

    bool ran_somewhere = false;
    for (Kernel &kernel : kernels) {
      const bool is_fft = kernel.run == convscan_conv_fft || kernel.run == ConvolveKept;
      const int64_t transform = is_fft ? RandomTransform(random, s, dtype) : 0;
      context = Describe(kernel.name, dtype, s.batch, s.length, s.channels, s.taps) + " x " + Name(x_layout) + " y " +
                (in_place ? "in place" : Name(y_layout)) + " origin " + std::to_string(p.origin) + " transform " +
                std::to_string(transform) + (p.state ? " state" : "") + (p.bias ? " bias" : "") +
                (one_filter ? " one filter" : "") + (own_filters ? " own filters" : "") + (p.pre_gate ? " pre" : "") +
                (p.post_gate ? " post" : "") + " group " + std::to_string(group) + " sequences " +
                std::to_string(sequences) + " trial " + std::to_string(trial);
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
        const convscan_status status = kernel.run(&p, transform);
        p.x = x.data();
        if (status == CONVSCAN_UNSUPPORTED) break;
        if (!CHECK(status == CONVSCAN_OK)) break;
        ran_somewhere = true;
        if (threads == 1) ++kernel.ran;
        CHECK(y.PatternSurvives());
        const double roundoff = ComputeRoundoff(dtype);
        const double bits = std::log2(static_cast<double>(s.length + s.taps)) + 2;
        at = 0;
        double worst = 0;
        for (int64_t b = 0; b < s.batch; ++b)
          for (int64_t n = 0; n < s.channels; ++n)
            for (int64_t i = 0; i < s.length; ++i, ++at) {
              const double arithmetic = is_fft ? 4 * bits * energy[at] + scale[at] : (s.taps + 8) * scale[at];
              const double bound = 1.3 * roundoff * (arithmetic + 8 * std::fabs(expected[at])) +
                                   1.01 * StorageRoundoff(dtype) * std::fabs(expected[at]) +
                                   (dtype == CONVSCAN_FLOAT16 ? 0x1p-24 : 0x1p-120);
              const double error = std::fabs(y.At(b, i, n).real() - expected[at]);
              worst = std::max(worst, std::isnan(error) ? HUGE_VAL : error / bound);
            }
        if (worst > 1) context += " error/bound " + std::to_string(worst);
        CHECK(worst <= 1);
        if (threads == 1) first.CopyElements(y);
        CHECK(y.SameElements(first));
      }
    }
    context = Describe("any kernel", dtype, s.batch, s.length, s.channels, s.taps);
    CHECK(ran_somewhere);
  }
  for (const Kernel &kernel : kernels) {
    context = std::string("convolution ") + kernel.name + " ran " + std::to_string(kernel.ran) + " of " +
              std::to_string(kTrials);
    fprintf(stderr, "  %s\n", context.c_str());
    CHECK(kernel.ran > 0);
  }
}

// Every (length, taps, origin) up to 40, two channels of float64, against the double loop.
void TestOrigins() {
  constexpr int64_t kMost = 40, kChannels = 2;
  Random random(5);
  Array x(CONVSCAN_FLOAT64, 1, kMost, kChannels, Layout::kTimeMajor, 0), h(CONVSCAN_FLOAT64, 1, kMost, kChannels, Layout::kTimeMajor, 0);
  Array y(CONVSCAN_FLOAT64, 1, kMost, kChannels, Layout::kTimeMajor, 0);
  x.FillRandom(random);
  h.FillRandom(random);
  convscan_conv p{};
  p.batch = 1;
  p.channels = kChannels;
  p.dtype = CONVSCAN_FLOAT64;
  p.x = x.data();
  p.x_strides = x.strides();
  p.h = h.data();
  p.h_tap_stride = h.strides().time;
  p.h_channel_stride = h.strides().channel;
  p.y = y.data();
  p.y_strides = y.strides();
  p.threads = 1;
  for (p.length = 1; p.length <= kMost; ++p.length)
    for (p.taps = 1; p.taps <= kMost; ++p.taps)
      for (p.origin = 0; p.origin < p.taps; ++p.origin)
        for (int kernel = 0; kernel < 3; ++kernel) {
          const convscan_status status = kernel == 0   ? convscan_conv_direct(&p)
                                         : kernel == 1 ? convscan_conv_toeplitz(&p)
                                                       : convscan_conv_fft(&p, 0);
          context = Describe(kernel == 0 ? "direct" : kernel == 1 ? "toeplitz" : "fft", p.dtype, 1, p.length, kChannels,
                             p.taps) + " origin " + std::to_string(p.origin);
          if (!CHECK(status == CONVSCAN_OK)) return;
          double worst = 0;
          for (int64_t n = 0; n < kChannels; ++n)
            for (int64_t i = 0; i < p.length; ++i) {
              double z = 0;
              for (int64_t j = 0; j < p.length; ++j)
                if (i - j + p.origin >= 0 && i - j + p.origin < p.taps)
                  z += h.At(0, i - j + p.origin, n).real() * x.At(0, j, n).real();
              worst = std::max(worst, std::fabs(y.At(0, i, n).real() - z));
            }
          if (!CHECK(worst <= 1e-13 * kMost)) return;
        }
}

void TestFilterGradient() {
  static const auto kDirect = [](const convscan_filter_gradient *p, int64_t) {
    return convscan_filter_gradient_direct(p);
  };
  static constexpr auto kBothFft = BothGradients<convscan_conv_gradient_fft>, kBothDirect = BothGradients<GradientDirect>;
  GradientKernel kernels[] = {{"direct", kDirect},
                              {"fft", convscan_filter_gradient_fft},
                              {"fft with dx", kBothFft},
                              {"direct with dx", kBothDirect}};
  Random random(3);
  constexpr int kTrials = 250;
  for (int trial = 0; trial < kTrials; ++trial) {
    const convscan_dtype dtype = random.Pick(kReal);
    const convscan_dtype out_dtype = ComputeRoundoff(dtype) == 0x1p-53 ? CONVSCAN_FLOAT64 : CONVSCAN_FLOAT32;
    const Sizes s(random);
    const Layout x_layout = random.Pick(kLayouts), dz_layout = random.Pick(kLayouts), dh_layout = random.Pick(kLayouts);
    Array x(dtype, s.batch, s.length, s.channels, x_layout, random.Below(5));
    Array dz(dtype, s.batch, s.length, s.channels, dz_layout, random.Below(5));
    Array state(dtype, s.batch, std::max<int64_t>(s.taps - 1, 1), s.channels, random.Pick(kLayouts), random.Below(3));
    const int64_t misaligned = random.Below(5);
    x.FillRandom(random);
    dz.FillRandom(random);
    state.FillRandom(random);

    convscan_filter_gradient p{};
    p.batch = s.batch;
    p.length = s.length;
    p.channels = s.channels;
    p.taps = s.taps;
    p.dtype = dtype;
    p.x = x.data();
    p.x_strides = x.strides();
    p.dz = dz.data();
    p.dz_strides = dz.strides();
    if (random.Below(3) == 0) {
      p.state = state.data();
      p.state_strides = state.strides();
    }

    const size_t count = static_cast<size_t>(s.taps * s.channels);
    std::vector<double> expected(count, 0), scale(count, 0), energy(count, 0);
    for (int64_t n = 0; n < s.channels; ++n) {
      double channel_energy = 0;
      for (int64_t b = 0; b < s.batch; ++b) {
        double x_energy = 0, dz_energy = 0;
        for (int64_t i = 0; i < s.length; ++i) {
          x_energy += std::norm(x.At(b, i, n));
          dz_energy += std::norm(dz.At(b, i, n));
        }
        for (int64_t j = 0; j + 1 < s.taps && p.state != nullptr; ++j) x_energy += std::norm(state.At(b, j, n));
        channel_energy += std::sqrt(x_energy * dz_energy);
      }
      for (int64_t k = 0; k < s.taps; ++k) {
        const size_t at = static_cast<size_t>(k * s.channels + n);
        energy[at] = channel_energy;
        for (int64_t b = 0; b < s.batch; ++b)
          for (int64_t i = 0; i < s.length; ++i) {
            double sample = 0;
            if (i >= k) sample = x.At(b, i - k, n).real();
            else if (p.state != nullptr) sample = state.At(b, s.taps - 1 + i - k, n).real();
            expected[at] += dz.At(b, i, n).real() * sample;
            scale[at] += std::fabs(dz.At(b, i, n).real() * sample);
          }
      }
    }

    bool ran_somewhere = false;
    for (GradientKernel &kernel : kernels) {
      const bool is_fft = kernel.run == convscan_filter_gradient_fft || kernel.run == kBothFft;
      const int64_t transform = is_fft ? RandomTransform(random, s, dtype) : 0;
      context = Describe(kernel.name, dtype, s.batch, s.length, s.channels, s.taps) + " filter gradient, x " +
                Name(x_layout) + " dz " + Name(dz_layout) + " dh " + Name(dh_layout) + " transform " +
                std::to_string(transform) + (p.state ? " state" : "") + " trial " + std::to_string(trial);
      Array first(out_dtype, 1, s.taps, s.channels, dh_layout, misaligned);
      for (int threads = 1; threads <= 3; ++threads) {
        Array dh(out_dtype, 1, s.taps, s.channels, dh_layout, misaligned);
        dh.FillPattern();
        p.dh = dh.data();
        p.dh_tap_stride = dh.strides().time;
        p.dh_channel_stride = dh.strides().channel;
        p.threads = threads;
        const convscan_status status = kernel.run(&p, transform);
        if (status == CONVSCAN_UNSUPPORTED) break;
        if (!CHECK(status == CONVSCAN_OK)) break;
        ran_somewhere = true;
        if (threads == 1) ++kernel.ran;
        CHECK(dh.PatternSurvives());
        const double roundoff = ComputeRoundoff(dtype);
        const double bits = std::log2(static_cast<double>(s.length + s.taps)) + 2;
        double worst = 0;
        for (int64_t k = 0; k < s.taps; ++k)
          for (int64_t n = 0; n < s.channels; ++n) {
            const size_t at = static_cast<size_t>(k * s.channels + n);
            const double arithmetic =
                is_fft ? 4 * bits * energy[at] : static_cast<double>(s.batch * s.length + 8) * scale[at];
            const double error = std::fabs(dh.At(0, k, n).real() - expected[at]);
            worst = std::max(worst, std::isnan(error) ? HUGE_VAL : error / (roundoff * arithmetic + 0x1p-120));
          }
        if (worst > 1) context += " error/bound " + std::to_string(worst);
        CHECK(worst <= 1);
        if (threads == 1) first.CopyElements(dh);
        CHECK(dh.SameElements(first));
      }
    }
    context = Describe("any kernel", dtype, s.batch, s.length, s.channels, s.taps) + " filter gradient";
    CHECK(ran_somewhere);
  }
  for (const GradientKernel &kernel : kernels) {
    context = std::string("filter gradient ") + kernel.name + " ran " + std::to_string(kernel.ran) + " of " +
              std::to_string(kTrials);
    fprintf(stderr, "  %s\n", context.c_str());
    CHECK(kernel.ran > 0);
  }
}

}  // namespace tests
