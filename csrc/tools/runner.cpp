// The on-device runner: one case of the challenge's grid, every implementation, checked, timed and weighed.
//
//   runner machine                          the processor and its limits
//   runner causal_conv C L K [options]      x (C, L), h (C, K), time contiguous
//   runner linear_recurrence C L [options]  x, a (C, L) and y_init (C)
//
//   --inputs N --runs N    random inputs, and timed calls on each of them (100 and 10)
//   --seconds S            stop after the input in which S seconds have passed (0: never)
//   --threads N --cpus 4-7 threads, and the processors they are bound to
//   --only NAME --calls N  N calls and nothing else: what an instruction counter wants
//   --contiguous channels  with --calls: arrays (L, C) and (K, C)
//
// Results are lines of JSON. One process does one case, so that a case that the system kills for its memory costs the
// others nothing. It needs no library of the device and no file.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

#include "core/parallel.h"
#include "core/workspace.h"
#include "tools/harness.h"

// The kernels themselves, without the C interface's table: the linker leaves out those that nothing here names. Their
// problems are valid, which that interface would check.
namespace convscan::CONVSCAN_ISA {
convscan_status ConvDirect(const convscan_conv &);
convscan_status ConvToeplitz(const convscan_conv &);
convscan_status ConvFft(const convscan_conv &, int64_t);
convscan_status ConvFftKept(const convscan_conv &, int64_t, const void *, convscan_spectrum_storage);
convscan_status FilterSpectrum(const convscan_spectrum &);
int64_t FftLength(int64_t, convscan_dtype);
convscan_status ScanSequential(const convscan_scan &);
convscan_status ScanTiled(const convscan_scan &);
convscan_status ScanParallel(const convscan_scan &);
}  // namespace convscan::CONVSCAN_ISA

namespace {

namespace harness = convscan::harness;
namespace kernels = convscan::CONVSCAN_ISA;
#define CONVSCAN_STRING_(x) #x
#define CONVSCAN_STRING(x) CONVSCAN_STRING_(x)

using harness::Buffer;
using harness::Case;
using harness::Kind;
using harness::Now;
using harness::Options;

// ---- the implementations: the problem of a case, and what solves it ----

convscan_strides Rows(const Case &c) {
  if (c.options.channels_contiguous) return {c.count(), c.options.channels, 1};
  return {c.count(), 1, c.options.length};
}

convscan_conv Conv(const Case &c, int64_t channels) {
  convscan_conv p{};
  p.batch = 1;
  p.length = c.options.length;
  p.channels = channels;
  p.taps = c.options.taps;
  p.x = c.x.data();
  p.y = c.y.data();
  p.h = c.h.data();
  p.h_tap_stride = c.options.channels_contiguous ? c.options.channels : 1;
  p.h_channel_stride = c.options.channels_contiguous ? 1 : c.options.taps;
  p.x_strides = p.y_strides = Rows(c);
  p.threads = c.options.threads;
  return p;
}

convscan_scan Scan(const Case &c, int64_t channels) {
  convscan_scan p{};
  p.batch = 1;
  p.length = c.options.length;
  p.channels = channels;
  p.x = c.x.data();
  p.a = c.h.data();
  p.y = c.y.data();
  p.x_strides = p.a_strides = p.y_strides = Rows(c);
  p.y_init = c.start.data();
  p.y_init_batch_stride = c.options.channels;
  p.y_init_channel_stride = 1;
  p.threads = c.options.threads;
  return p;
}

// Ours: some channels of a case, with the core's own account of its workspace.
class Ours : public harness::Implementation {
 public:
  using Implementation::Implementation;
  bool Narrow(Case &c, int64_t channels) override {
    channels_ = channels == c.options.channels ? 0 : channels;
    return true;
  }
  int64_t Workspace() const override { return convscan::WorkspacePeak(); }

 protected:
  int64_t Channels(const Case &c) const { return channels_ > 0 ? channels_ : c.options.channels; }

 private:
  int64_t channels_ = 0;  // 0: all
};

template <convscan_status (*kernel)(const convscan_conv &)>
class Sum : public Ours {
 public:
  explicit Sum(const char *name) : Ours(name, Kind::kSum) {}
  convscan_status Run(Case &c) override { return kernel(Conv(c, Channels(c))); }
};

template <convscan_status (*kernel)(const convscan_scan &)>
class Recurrence : public Ours {
 public:
  explicit Recurrence(const char *name) : Ours(name, Kind::kSum) {}
  convscan_status Run(Case &c) override { return kernel(Scan(c, Channels(c))); }
};

class Fft : public Ours {
 public:
  Fft(const char *name, Kind kind, const int64_t &transform) : Ours(name, kind), transform_(transform) {}
  convscan_status Run(Case &c) override {
    convscan_conv p = Conv(c, Channels(c));
    if (kind == Kind::kWide) p.dtype = CONVSCAN_WIDE_FLOAT32;
    return kernels::ConvFft(p, transform_);
  }

 protected:
  const int64_t &transform_;
};

class FftKept : public Fft {
 public:
  explicit FftKept(const int64_t &transform) : Fft("fft, spectrum kept", Kind::kTransform, transform) {}
  ~FftKept() override { free(spectra_); }
  convscan_status Prepare(Case &c) override {
    convscan_spectrum p{};
    p.filters = Channels(c);
    p.taps = c.options.taps;
    p.transform_length = transform_;
    p.h = c.h.data();
    p.h_tap_stride = 1;
    p.h_filter_stride = p.taps;
    p.threads = c.options.threads;
    const int64_t bytes = p.filters * 2 * transform_ * static_cast<int64_t>(sizeof(float));
    if (bytes != bytes_) {
      free(spectra_);
      spectra_ = static_cast<float *>(aligned_alloc(64, static_cast<size_t>((bytes + 63) / 64 * 64)));
      bytes_ = bytes;
    }
    p.spectra = spectra_;
    return spectra_ == nullptr ? CONVSCAN_OUT_OF_MEMORY : kernels::FilterSpectrum(p);
  }
  convscan_status Run(Case &c) override {
    return kernels::ConvFftKept(Conv(c, Channels(c)), transform_, spectra_, CONVSCAN_SPECTRUM_FULL);
  }
  int64_t Kept() const override { return bytes_; }

 private:
  float *spectra_ = nullptr;
  int64_t bytes_ = 0;
};

// The statement's loop over time, the baseline of the speed-up: nothing but what a C compiler makes of it.
class TimeLoop : public Ours {
 public:
  TimeLoop() : Ours("time loop", Kind::kSum) {}
  convscan_status Run(Case &c) override {
    const int64_t length = c.options.length, taps = c.options.taps;
    convscan::ParallelFor(Channels(c), c.options.threads, [&](int64_t n) {
      const float *x = c.x.data() + n * length;
      float *y = c.y.data() + n * length;
      if (c.is_conv) {
        const float *h = c.h.data() + n * taps;
        for (int64_t i = 0; i < length; ++i) {
          float sum = 0;
          for (int64_t k = 0; k < std::min(taps, i + 1); ++k) sum += h[k] * x[i - k];
          y[i] = sum;
        }
      } else {
        const float *a = c.h.data() + n * length;
        float value = c.start.data()[n];
        for (int64_t i = 0; i < length; ++i) y[i] = value = a[i] * value + x[i];
      }
    });
    return CONVSCAN_OK;
  }
};

// Complex points of the transform: one block, or where the filter is much shorter the faster of a few.
int64_t ChooseTransform(Case &c) {
  const int64_t taps = c.options.taps, whole = kernels::FftLength((c.options.length + taps) / 2, CONVSCAN_FLOAT32);
  if (c.options.calls > 0) return whole;
  double best = HUGE_VAL;
  int64_t chosen = whole;
  for (int64_t factor : {1, 2, 4, 8, 16}) {
    const int64_t points = std::min(kernels::FftLength(std::max<int64_t>(factor * taps, 256), CONVSCAN_FLOAT32), whole);
    Fft fft("fft", Kind::kTransform, points);
    const double seconds = harness::Predict(c, fft);
    if (seconds < best) {
      best = seconds;
      chosen = points;
    }
    if (points == whole) break;
  }
  return chosen;
}

void RunCase(Case &c) {
  c.Fill(1);
  const int64_t transform = c.is_conv ? ChooseTransform(c) : 0;
  Sum<kernels::ConvDirect> direct("direct");
  Sum<kernels::ConvToeplitz> toeplitz("toeplitz");
  Fft fft("fft", Kind::kTransform, transform), high("fft, high precision", Kind::kWide, transform);
  FftKept kept(transform);
  Recurrence<kernels::ScanSequential> sequential("sequential");
  Recurrence<kernels::ScanTiled> tiled("tiled");
  Recurrence<kernels::ScanParallel> parallel("parallel");
  TimeLoop loop;
  std::vector<harness::Implementation *> all;
  if (c.is_conv) all = {&direct, &toeplitz, &fft, &kept, &high, &loop};
  else all = {&sequential, &tiled, &parallel, &loop};
  if (c.options.only != nullptr)
    std::erase_if(all, [&](const harness::Implementation *one) { return strcmp(one->name, c.options.only) != 0; });
  c.options.calls > 0 ? harness::CallOnly(c, all) : harness::Judge(c, all);
}

// ---- the machine ----

// Bytes per second of y = x and y = x + s·z over a working set, and multiplications and additions per second.
void PrintMachine(int threads) {
  const int count = threads > 0 ? threads : convscan::ThreadCount();
  utsname system{};
  uname(&system);
  double load = 0;
  if (FILE *file = fopen("/proc/loadavg", "r")) {
    if (fscanf(file, "%lf", &load) != 1) load = 0;
    fclose(file);
  }
  printf("{\"system\": \"%s %s\", \"architecture\": \"%s\", \"isa\": \"%s\", \"cores\": %ld, \"threads\": %d, "
         "\"memory_bytes\": %lld, \"load\": %.2f, ",
         system.sysname, system.release, system.machine, CONVSCAN_STRING(CONVSCAN_ISA), sysconf(_SC_NPROCESSORS_CONF), count,
         static_cast<long long>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE), load);
  constexpr int64_t kSets[] = {256 << 10, 2 << 20, 16 << 20, 192 << 20};
  for (int arrays : {2, 3}) {
    printf("\"%s_bandwidth\": [", arrays == 2 ? "copy" : "triad");
    for (int64_t set : kSets) {
      const int64_t n = set / (4 * arrays) / count * count, part = n / count;
      Buffer x(n), z(arrays == 3 ? n : 1), y(n);
      double least = HUGE_VAL, begin = Now();
      for (int pass = 0; pass < 3 || (pass < 200 && Now() - begin < 0.1); ++pass) {
        const double start = Now();
        convscan::ParallelFor(count, count, [&](int64_t t) {
          float *to = y.data() + t * part;
          const float *from = x.data() + t * part, *other = z.data() + (arrays == 3 ? t * part : 0);
          if (arrays == 2) memcpy(to, from, static_cast<size_t>(part) * sizeof(float));
          else for (int64_t i = 0; i < part; ++i) to[i] = from[i] + 2.f * other[i];
        });
        least = std::min(least, Now() - start);
      }
      printf("%s[%lld, %.4g]", set == kSets[0] ? "" : ", ", static_cast<long long>(set),
             static_cast<double>(set) / least);
    }
    printf("], ");
  }
  constexpr int kSums = 64, kSteps = 200000;
  std::vector<float> results(static_cast<size_t>(count));
  double least = HUGE_VAL;
  for (int pass = 0; pass < 5; ++pass) {
    const double start = Now();
    convscan::ParallelFor(count, count, [&](int64_t t) {
      float sums[kSums] = {}, factor = 0.999f + 1e-6f * static_cast<float>(t);
      for (int step = 0; step < kSteps; ++step)
        for (float &sum : sums) sum = sum * factor + 0.5f;
      for (float sum : sums) results[static_cast<size_t>(t)] += sum;
    });
    least = std::min(least, Now() - start);
  }
  printf("\"peak_flops\": %.4g, \"checksum\": %.4g}\n", 2.0 * kSums * kSteps * count / least,
         static_cast<double>(results[0]));
}

int Usage() {
  fprintf(stderr, "runner machine | causal_conv C L K | linear_recurrence C L\n"
                  "  [--inputs N] [--runs N] [--seconds S] [--threads N] [--cpus 4-7] [--only NAME --calls N [--contiguous channels]]\n");
  return 2;
}

}  // namespace

int main(int count, char **words) {
  Options options;
  bool is_conv = false;
  if (!harness::ReadArguments(count, words, options, is_conv, nullptr)) return Usage();
  if (options.channels > 0) {
    Case c(options, is_conv);
    RunCase(c);
  } else if (strcmp(words[1], "machine") == 0) {
    PrintMachine(options.threads);
  } else {
    return Usage();
  }
  return 0;
}
