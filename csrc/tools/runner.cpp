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
//
// Results are lines of JSON. One process does one case, so that a case that the system kills for its memory costs the
// others nothing. It needs no library of the device and no file.
#include <math.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

#include "convscan.h"
#include "core/parallel.h"
#include "core/workspace.h"

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

namespace kernels = convscan::CONVSCAN_ISA;
#define CONVSCAN_STRING_(x) #x
#define CONVSCAN_STRING(x) CONVSCAN_STRING_(x)

constexpr double kRoundoff = 0x1p-24;
constexpr double kChallengeTolerance = 1e-3;

double Now() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// ---- numbers: seeded, the same on every machine ----

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t Next() {  // SplitMix64
    uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  // Mean 0, variance 1, close to normal: the sum of four uniform numbers, which costs a phone no logarithm.
  float Normal() {
    const uint64_t bits = Next();
    const int sum = static_cast<int>((bits & 0xffff) + (bits >> 16 & 0xffff) + (bits >> 32 & 0xffff) + (bits >> 48));
    return static_cast<float>(sum - 2 * 0xffff) * (1.7320508f / 65536);
  }
  // In (0, 1), mostly near 1, as gates are.
  float Gate() {
    const float u = static_cast<float>(Next() >> 40) * 0x1p-24f;
    return 1 - u * u;
  }

 private:
  uint64_t state_;
};

// Memory of its own mapping, touched, so that it does not count as the call's.
class Buffer {
 public:
  explicit Buffer(int64_t count) : bytes_(static_cast<size_t>(std::max<int64_t>(count, 1)) * sizeof(float)) {
    void *memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
      printf("{\"error\": \"no memory for %zu bytes\"}\n", bytes_);
      exit(3);
    }
    data_ = static_cast<float *>(memory);
    madvise(memory, bytes_, MADV_HUGEPAGE);
    memset(memory, 0, bytes_);
  }
  Buffer(const Buffer &) = delete;
  Buffer &operator=(const Buffer &) = delete;
  ~Buffer() { munmap(data_, bytes_); }
  float *data() const { return data_; }
  int64_t bytes() const { return static_cast<int64_t>(bytes_); }

 private:
  size_t bytes_;
  float *data_;
};

// ---- memory ----

struct Memory {
  int64_t resident = 0, peak = 0;  // both with what the system has swapped out or compressed
};

Memory ReadMemory() {
  FILE *file = fopen("/proc/self/status", "r");
  char line[160];
  long long resident = 0, peak = 0, swapped = 0;
  while (file != nullptr && fgets(line, sizeof line, file) != nullptr) {
    sscanf(line, "VmRSS: %lld", &resident);
    sscanf(line, "VmHWM: %lld", &peak);
    sscanf(line, "VmSwap: %lld", &swapped);
  }
  if (file != nullptr) fclose(file);
  return {1024 * (resident + swapped), 1024 * (std::max(peak, resident) + swapped)};
}

bool ResetPeak() {
  FILE *file = fopen("/proc/self/clear_refs", "w");
  if (file == nullptr) return false;
  const bool written = fputs("5", file) >= 0;
  return fclose(file) == 0 && written;
}

// ---- a case and its implementations ----

struct Options {
  int64_t channels = 0, length = 0, taps = 0;
  int inputs = 100, runs = 10, threads = 0, calls = 0;
  double seconds = 0;
  const char *only = nullptr;
};

struct Error {
  double largest = 0;   // absolute
  double of_bound = 0;  // the largest share of what rounding may cost
  double squares = 0, norm = 0;

  void Add(double got, double expected, double bound) {
    const double off = isfinite(got) ? fabs(got - expected) : HUGE_VAL;
    largest = std::max(largest, off);
    of_bound = std::max(of_bound, off / (bound + 1e-30));
    squares += off * off;
    norm += expected * expected;
  }
  double RelativeRms() const { return squares == 0 ? 0 : sqrt(squares / norm); }
};

enum class Kind { kSum, kTransform, kWide };  // what the error of an implementation is bounded by

struct Implementation {
  const char *name;
  Kind kind;
  convscan_status (*run)(struct Case &);
  bool (*prepare)(struct Case &) = nullptr;  // for every input, before the clock starts; false without memory
  std::vector<double> seconds{};
  Error random{}, ones{};
  int64_t peak = -1, workspace = 0, kept = 0;
  const char *cut_off = nullptr;
  convscan_status status = CONVSCAN_OK;
};

struct Case {
  Options options;
  bool is_conv;
  Buffer x, h, y, start;  // h is the filter, or the coefficients a
  convscan_conv conv{};
  convscan_scan scan{};
  int64_t transform = 0;
  float *spectra = nullptr;
  int64_t spectra_bytes = 0;

  Case(const Options &given, bool conv_case)
      : options(given), is_conv(conv_case), x(Count()), h(options.channels * (is_conv ? options.taps : options.length)),
        y(Count()), start(options.channels) {
    const convscan_strides rows = {Count(), 1, options.length};
    conv.batch = scan.batch = 1;
    conv.length = scan.length = options.length;
    conv.channels = scan.channels = options.channels;
    conv.threads = scan.threads = options.threads;
    conv.taps = options.taps;
    conv.x = scan.x = x.data();
    conv.y = scan.y = y.data();
    conv.h = scan.a = h.data();
    conv.h_tap_stride = 1;
    conv.h_channel_stride = options.taps;
    conv.x_strides = conv.y_strides = scan.x_strides = scan.a_strides = scan.y_strides = rows;
    scan.y_init = start.data();
    scan.y_init_batch_stride = options.channels;
    scan.y_init_channel_stride = 1;
  }
  ~Case() { free(spectra); }
  int64_t Count() const { return options.channels * options.length; }

  void Fill(uint64_t seed) {
    const int64_t taps = is_conv ? options.taps : options.length;
    const float scale = is_conv ? 1 / sqrtf(static_cast<float>(std::min(taps, options.length))) : 1;
    convscan::ParallelFor(options.channels, options.threads, [&](int64_t n) {
      Random random(seed * 1000003 + static_cast<uint64_t>(n));
      for (int64_t i = 0; i < options.length; ++i) x.data()[n * options.length + i] = random.Normal();
      for (int64_t k = 0; k < taps; ++k) h.data()[n * taps + k] = is_conv ? scale * random.Normal() : random.Gate();
      start.data()[n] = random.Normal();
    });
  }
  void FillOnes() {
    std::fill_n(x.data(), Count(), 1.f);
    std::fill_n(h.data(), options.channels * (is_conv ? options.taps : options.length), 1.f);
    std::fill_n(start.data(), options.channels, 1.f);
  }
};

// The statement's loop over time, the baseline of the speed-up: nothing but what a C compiler makes of it.
convscan_status TimeLoop(Case &c) {
  const int64_t length = c.options.length, taps = c.options.taps;
  convscan::ParallelFor(c.conv.channels, c.options.threads, [&](int64_t n) {
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

convscan_status Direct(Case &c) { return kernels::ConvDirect(c.conv); }
convscan_status Toeplitz(Case &c) { return kernels::ConvToeplitz(c.conv); }
convscan_status Fft(Case &c) { return kernels::ConvFft(c.conv, c.transform); }
convscan_status FftKept(Case &c) {
  return kernels::ConvFftKept(c.conv, c.transform, c.spectra, CONVSCAN_SPECTRUM_FULL);
}
convscan_status FftHigh(Case &c) {
  convscan_conv wide = c.conv;
  wide.dtype = CONVSCAN_WIDE_FLOAT32;
  return kernels::ConvFft(wide, c.transform);
}
convscan_status Sequential(Case &c) { return kernels::ScanSequential(c.scan); }
convscan_status Tiled(Case &c) { return kernels::ScanTiled(c.scan); }
convscan_status Parallel(Case &c) { return kernels::ScanParallel(c.scan); }

bool MakeSpectra(Case &c) {
  convscan_spectrum p{};
  p.filters = c.conv.channels;
  p.taps = c.conv.taps;
  p.transform_length = c.transform;
  p.h = c.h.data();
  p.h_tap_stride = 1;
  p.h_filter_stride = c.conv.taps;
  p.threads = c.options.threads;
  c.spectra_bytes = p.filters * 2 * c.transform * static_cast<int64_t>(sizeof(float));
  if (c.spectra == nullptr)
    c.spectra = static_cast<float *>(aligned_alloc(64, static_cast<size_t>((c.spectra_bytes + 63) / 64 * 64)));
  p.spectra = c.spectra;
  return c.spectra != nullptr && kernels::FilterSpectrum(p) == CONVSCAN_OK;
}

// ---- truth: sums and loops in double precision ----

// Every output where that is affordable, otherwise outputs spread over all channels, the last of each first.
void CheckConv(const Case &c, Kind kind, bool ones, Error &error) {
  const int64_t length = c.options.length, taps = c.options.taps, count = c.Count();
  constexpr int64_t kProducts = 20'000'000;
  const int64_t points = std::min(count, std::max<int64_t>(64, kProducts / std::min(taps, length)));
  Random random(7);
  for (int64_t p = 0; p < (ones ? count : points); ++p) {
    int64_t n = p / length, i = p % length;
    if (!ones && points < count) {
      n = p * std::max<int64_t>(1, c.options.channels / points) % c.options.channels;
      i = p < c.options.channels ? length - 1 : static_cast<int64_t>(random.Next() % static_cast<uint64_t>(length));
    }
    const float *x = c.x.data() + n * length, *h = c.h.data() + n * taps;
    const double got = c.y.data()[n * length + i];
    if (ones) {
      const double expected = static_cast<double>(std::min(i + 1, taps));
      error.Add(got, expected, kRoundoff * 64 * log2(static_cast<double>(length + taps)) *
                                   sqrt(static_cast<double>(length) * static_cast<double>(taps)));
      continue;
    }
    double sum = 0, magnitude = 0, x_energy = 0, h_energy = 0;
    for (int64_t k = 0; k < std::min(taps, i + 1); ++k) {
      const double product = static_cast<double>(h[k]) * x[i - k];
      sum += product;
      magnitude += fabs(product);
    }
    double bound = static_cast<double>(taps + 8) * magnitude;
    if (kind == Kind::kTransform) {
      for (int64_t t = 0; t < length; ++t) x_energy += static_cast<double>(x[t]) * x[t];
      for (int64_t k = 0; k < taps; ++k) h_energy += static_cast<double>(h[k]) * h[k];
      bound = 64 * log2(static_cast<double>(length + taps)) * sqrt(x_energy * h_energy);
    } else if (kind == Kind::kWide) {
      bound = 2 * fabs(sum) + 1e-3 * magnitude;
    }
    error.Add(got, sum, kRoundoff * bound);
  }
}

void CheckRecurrence(const Case &c, Error &error) {
  const int64_t length = c.options.length;
  for (int64_t n = 0; n < c.options.channels; ++n) {
    double value = c.start.data()[n], scale = 0;
    for (int pass = 0; pass < 2; ++pass) {  // the largest value of the channel, which the bound scales with, first
      value = c.start.data()[n];
      for (int64_t i = n * length; i < (n + 1) * length; ++i) {
        const double kept = static_cast<double>(c.h.data()[i]) * value;
        value = kept + c.x.data()[i];
        if (pass == 0) scale = std::max(scale, fabs(value) + fabs(kept));
        else error.Add(c.y.data()[i], value, kRoundoff * 4096 * scale);
      }
    }
  }
}

void Check(const Case &c, Kind kind, bool ones, Error &error) {
  c.is_conv ? CheckConv(c, kind, ones, error) : CheckRecurrence(c, error);
}

// ---- a whole case ----

// Seconds of one call on all channels, from one on a few of them.
double Predict(Case &c, Implementation &one) {
  const int64_t few = std::min<int64_t>(c.options.channels, 8);
  c.conv.channels = c.scan.channels = few;
  double least = HUGE_VAL;
  for (int call = 0; call < 2 && least > 0.01; ++call) {
    if (one.prepare != nullptr && !one.prepare(c)) one.status = CONVSCAN_OUT_OF_MEMORY;
    const double begin = Now();
    if (one.status == CONVSCAN_OK) one.status = one.run(c);
    least = std::min(least, Now() - begin);
  }
  c.conv.channels = c.scan.channels = c.options.channels;
  free(c.spectra);
  c.spectra = nullptr;
  return least * static_cast<double>(c.options.channels) / static_cast<double>(few);
}

// Complex points of the transform: one block, or where the filter is much shorter the faster of a few.
void ChooseTransform(Case &c) {
  const int64_t taps = c.options.taps, whole = kernels::FftLength((c.options.length + taps) / 2, CONVSCAN_FLOAT32);
  Implementation fft{"fft", Kind::kTransform, Fft};
  double best = HUGE_VAL;
  int64_t chosen = whole;
  for (int64_t factor : {1, 2, 4, 8, 16}) {
    c.transform = std::min(kernels::FftLength(std::max<int64_t>(factor * taps, 256), CONVSCAN_FLOAT32), whole);
    const double seconds = Predict(c, fft);
    if (seconds < best) {
      best = seconds;
      chosen = c.transform;
    }
    if (c.transform == whole) break;
  }
  c.transform = chosen;
}

void Weigh(Case &c, Implementation &one) {
  convscan::OnEveryThread(convscan::ReleaseWorkspace);
  convscan::ResetWorkspacePeak();
  const bool reset = ResetPeak();
  const int64_t before = ReadMemory().resident;
  if (one.status == CONVSCAN_OK) one.status = one.run(c);
  one.workspace = convscan::WorkspacePeak();
  one.kept = one.prepare == nullptr ? 0 : c.spectra_bytes;
  if (reset) one.peak = std::max<int64_t>(0, ReadMemory().peak - before) + one.kept;
}

double Quantile(const std::vector<double> &ordered, double share) {
  const double at = share * static_cast<double>(ordered.size() - 1);
  const size_t low = static_cast<size_t>(at), high = std::min(low + 1, ordered.size() - 1);
  return ordered[low] + (at - static_cast<double>(low)) * (ordered[high] - ordered[low]);
}

// Every line names its case, so that those of many processes can lie in one file.
void PrintCase(const Case &c, const Implementation &one) {
  printf("{\"op\": \"%s\", \"channels\": %lld, \"length\": %lld, \"taps\": %lld, \"implementation\": \"%s\", ",
         c.is_conv ? "causal_conv" : "linear_recurrence", static_cast<long long>(c.options.channels),
         static_cast<long long>(c.options.length), static_cast<long long>(c.options.taps), one.name);
}

void Print(const Case &c, Implementation &one) {
  PrintCase(c, one);
  if (one.cut_off != nullptr || one.status != CONVSCAN_OK) {
    const char *reason = one.cut_off != nullptr ? one.cut_off
                         : one.status == CONVSCAN_OUT_OF_MEMORY ? "out of memory"
                                                                : "does not run this problem";
    printf("\"status\": \"%s\", \"reason\": \"%s\"}\n", one.cut_off != nullptr ? "cut off" : "skipped", reason);
    return;
  }
  const bool right = one.random.of_bound <= 1 && one.ones.of_bound <= 1 && one.random.RelativeRms() <= 1e-3;
  std::vector<double> &times = one.seconds;
  std::sort(times.begin(), times.end());
  double sum = 0;
  for (double t : times) sum += t;
  printf("\"status\": \"%s\", \"within_tolerance\": %s, \"max_abs\": %.9g, \"max_abs_ones\": %.9g, "
         "\"relative_rms\": %.9g, \"of_bound\": %.4g, \"peak_bytes\": %lld, \"workspace_bytes\": %lld, ",
         right ? "ok" : "wrong",
         std::max(one.random.largest, one.ones.largest) <= kChallengeTolerance ? "true" : "false",
         std::min(one.random.largest, 1e300), std::min(one.ones.largest, 1e300),
         std::min(one.random.RelativeRms(), 1e300), std::min(std::max(one.random.of_bound, one.ones.of_bound), 1e300),
         static_cast<long long>(one.peak), static_cast<long long>(one.workspace));
  if (!right || times.empty()) {
    printf("\"latency_us\": null}\n");
    return;
  }
  printf("\"latency_us\": {\"min\": %.3f, \"p10\": %.3f, \"p50\": %.3f, \"p90\": %.3f, \"max\": %.3f, \"avg\": %.3f, "
         "\"samples\": %zu}}\n",
         1e6 * times.front(), 1e6 * Quantile(times, 0.1), 1e6 * Quantile(times, 0.5), 1e6 * Quantile(times, 0.9),
         1e6 * times.back(), 1e6 * sum / static_cast<double>(times.size()), times.size());
}

void RunCase(Case &c) {
  std::vector<Implementation> all;
  if (c.is_conv) {
    all = {{"direct", Kind::kSum, Direct},
           {"toeplitz", Kind::kSum, Toeplitz},
           {"fft", Kind::kTransform, Fft},
           {"fft, spectrum kept", Kind::kTransform, FftKept, MakeSpectra},
           {"fft, high precision", Kind::kWide, FftHigh},
           {"time loop", Kind::kSum, TimeLoop}};
  } else {
    all = {{"sequential", Kind::kSum, Sequential},
           {"tiled", Kind::kSum, Tiled},
           {"parallel", Kind::kSum, Parallel},
           {"time loop", Kind::kSum, TimeLoop}};
  }
  if (c.options.only != nullptr)
    std::erase_if(all, [&](const Implementation &one) { return strcmp(one.name, c.options.only) != 0; });
  c.Fill(1);
  if (c.options.calls > 0) {
    if (c.is_conv) c.transform = kernels::FftLength((c.options.length + c.options.taps) / 2, CONVSCAN_FLOAT32);
    for (Implementation &one : all) {
      if (one.prepare != nullptr) one.prepare(c);
      for (int call = 0; call < c.options.calls; ++call) one.status = one.run(c);
      PrintCase(c, one);
      printf("\"status\": \"%s\", \"calls\": %d}\n", one.status == CONVSCAN_OK ? "ok" : "skipped", c.options.calls);
    }
    return;
  }
  if (c.is_conv) ChooseTransform(c);

  // The answer first, then memory; what is wrong, or would take far longer than the best, is not timed.
  double best = HUGE_VAL;
  std::vector<double> predicted;
  for (Implementation &one : all) {
    predicted.push_back(Predict(c, one));
    if (one.status == CONVSCAN_OK) best = std::min(best, predicted.back());
  }
  const double limit = std::max(50 * best, 0.02);
  for (size_t k = 0; k < all.size(); ++k)
    if (predicted[k] > limit) all[k].cut_off = "takes more than 50 times as long as the fastest";
  for (bool ones : {true, false}) {
    ones ? c.FillOnes() : c.Fill(1);
    for (Implementation &one : all) {
      if (one.cut_off != nullptr || one.status != CONVSCAN_OK) continue;
      memset(c.y.data(), 0xff, static_cast<size_t>(c.y.bytes()));
      if (one.prepare != nullptr && !one.prepare(c)) one.status = CONVSCAN_OUT_OF_MEMORY;
      ones ? (void)(one.status = one.status == CONVSCAN_OK ? one.run(c) : one.status) : Weigh(c, one);
      if (one.status == CONVSCAN_OK) Check(c, one.kind, ones, ones ? one.ones : one.random);
    }
  }
  const double begin = Now();
  for (int input = 0; input < c.options.inputs; ++input) {
    if (input > 0 && c.options.seconds > 0 && Now() - begin > c.options.seconds) break;
    if (input > 0) c.Fill(static_cast<uint64_t>(input) + 1);
    for (Implementation &one : all) {
      if (one.cut_off != nullptr || one.status != CONVSCAN_OK || one.random.of_bound > 1) continue;
      if (one.prepare != nullptr) one.prepare(c);
      one.run(c);  // brings the caches and the clock of the core to where repeated calls have them
      for (int run = 0; run < c.options.runs; ++run) {
        const double start = Now();
        one.run(c);
        one.seconds.push_back(Now() - start);
      }
    }
  }
  for (Implementation &one : all) Print(c, one);
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
                  "  [--inputs N] [--runs N] [--seconds S] [--threads N] [--cpus 4-7] [--only NAME --calls N]\n");
  return 2;
}

// "0,4-7"; false if it is no such list or the system refuses.
bool Bind(const char *list) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const char *at = list;;) {
    char *end;
    const long first = strtol(at, &end, 10);
    if (end == at) return false;
    long last = first;
    if (*end == '-') last = strtol(end + 1, &end, 10);
    for (long cpu = first; cpu <= last && cpu < CPU_SETSIZE; ++cpu) CPU_SET(static_cast<size_t>(cpu), &set);
    if (*end == '\0') return sched_setaffinity(0, sizeof set, &set) == 0;
    if (*end != ',') return false;
    at = end + 1;
  }
}

}  // namespace

int main(int count, char **words) {
  if (count < 2) return Usage();
  const char *const what = words[1];
  const bool is_conv = strcmp(what, "causal_conv") == 0, is_recurrence = strcmp(what, "linear_recurrence") == 0;
  Options options;
  int64_t *const sizes[] = {&options.channels, &options.length, &options.taps};
  const int size_count = is_conv ? 3 : is_recurrence ? 2 : 0;
  if (count < 2 + size_count || (size_count == 0 && strcmp(what, "machine") != 0)) return Usage();
  for (int k = 0; k < size_count; ++k)
    if ((*sizes[k] = atoll(words[2 + k])) < 1) return Usage();
  for (int k = 2 + size_count; k < count; k += 2) {
    if (k + 1 == count) return Usage();
    const char *const value = words[k + 1];
    if (strcmp(words[k], "--inputs") == 0) options.inputs = atoi(value);
    else if (strcmp(words[k], "--runs") == 0) options.runs = atoi(value);
    else if (strcmp(words[k], "--seconds") == 0) options.seconds = atof(value);
    else if (strcmp(words[k], "--threads") == 0) options.threads = atoi(value);
    else if (strcmp(words[k], "--only") == 0) options.only = value;
    else if (strcmp(words[k], "--calls") == 0) options.calls = atoi(value);
    else if (strcmp(words[k], "--cpus") != 0) return Usage();
    else if (!Bind(value)) return fprintf(stderr, "cannot bind to the processors %s\n", value), 2;
  }
  if (size_count == 0) {
    PrintMachine(options.threads);
  } else {
    Case c(options, is_conv);
    RunCase(c);
  }
  return 0;
}
