#include "tools/harness.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include <algorithm>

#include "core/parallel.h"
#include "core/workspace.h"

namespace convscan::harness {
namespace {

constexpr double kRoundoff = 0x1p-24;

// Seeded, the same on every machine.
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

}  // namespace

double Now() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

Buffer::Buffer(int64_t count) : bytes_(static_cast<size_t>(std::max<int64_t>(count, 1)) * sizeof(float)) {
  void *memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    printf("{\"error\": \"no memory for %zu bytes\"}\n", bytes_);
    exit(3);
  }
  data_ = static_cast<float *>(memory);
  madvise(memory, bytes_, MADV_HUGEPAGE);
  memset(memory, 0, bytes_);
}
Buffer::~Buffer() { munmap(data_, bytes_); }

Case::Case(const Options &given, bool conv_case)
    : options(given), is_conv(conv_case), x(count()), h(options.channels * taps()), y(count()), start(options.channels) {}

void Case::Fill(uint64_t seed) {
  const int64_t row = taps();
  const float scale = is_conv ? 1 / sqrtf(static_cast<float>(std::min(row, options.length))) : 1;
  ParallelFor(options.channels, options.threads, [&](int64_t n) {
    Random random(seed * 1000003 + static_cast<uint64_t>(n));
    for (int64_t i = 0; i < options.length; ++i) x.data()[n * options.length + i] = random.Normal();
    for (int64_t k = 0; k < row; ++k) h.data()[n * row + k] = is_conv ? scale * random.Normal() : random.Gate();
    start.data()[n] = random.Normal();
  });
}

void Case::FillOnes() {
  std::fill_n(x.data(), count(), 1.f);
  std::fill_n(h.data(), options.channels * taps(), 1.f);
  std::fill_n(start.data(), options.channels, 1.f);
}

void Error::Add(double got, double expected, double bound) {
  const double off = isfinite(got) ? fabs(got - expected) : HUGE_VAL;
  largest = std::max(largest, off);
  of_bound = std::max(of_bound, off / (bound + 1e-30));
  squares += off * off;
  norm += expected * expected;
}

namespace {

// ---- truth: sums and loops in double precision ----

// Every output where that is affordable, otherwise outputs spread over all channels, the last of each first.
void CheckConv(const Case &c, Kind kind, bool ones, Error &error) {
  const int64_t length = c.options.length, taps = c.options.taps, count = c.count();
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

void Weigh(Case &c, Implementation &one) {
  OnEveryThread(ReleaseWorkspace);
  ResetWorkspacePeak();
  const bool released = one.Release();
  const bool reset = ResetPeak();
  const int64_t before = ReadMemory().resident;
  if (released && one.status == CONVSCAN_OK) one.status = one.Prepare(c);
  if (one.status == CONVSCAN_OK) one.status = one.Run(c);
  one.workspace = one.Workspace();
  if (reset) one.peak = std::max<int64_t>(0, ReadMemory().peak - before) + one.Kept();
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
                         : one.Reason() != nullptr ? one.Reason()
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
         "\"relative_rms\": %.9g, \"of_bound\": %.4g, \"peak_bytes\": %lld, ",
         right ? "ok" : "wrong",
         std::max(one.random.largest, one.ones.largest) <= kChallengeTolerance ? "true" : "false",
         std::min(one.random.largest, 1e300), std::min(one.ones.largest, 1e300),
         std::min(one.random.RelativeRms(), 1e300), std::min(std::max(one.random.of_bound, one.ones.of_bound), 1e300),
         static_cast<long long>(one.peak));
  if (one.workspace >= 0) printf("\"workspace_bytes\": %lld, ", static_cast<long long>(one.workspace));
  else printf("\"workspace_bytes\": null, ");
  if (!right || times.empty()) {
    printf("\"latency_us\": null}\n");
    return;
  }
  printf("\"latency_us\": {\"min\": %.3f, \"p10\": %.3f, \"p50\": %.3f, \"p90\": %.3f, \"max\": %.3f, \"avg\": %.3f, "
         "\"samples\": %zu}}\n",
         1e6 * times.front(), 1e6 * Quantile(times, 0.1), 1e6 * Quantile(times, 0.5), 1e6 * Quantile(times, 0.9),
         1e6 * times.back(), 1e6 * sum / static_cast<double>(times.size()), times.size());
}

}  // namespace

double Predict(Case &c, Implementation &one) {
  const int64_t few = std::min<int64_t>(c.options.channels, 8);
  const bool narrow = one.Narrow(c, few);
  double least = HUGE_VAL;
  for (int call = 0; call < 2 && least > 0.01 && one.status == CONVSCAN_OK; ++call) {
    one.status = one.Prepare(c);
    const double begin = Now();
    if (one.status == CONVSCAN_OK) one.status = one.Run(c);
    least = std::min(least, Now() - begin);
  }
  if (!narrow) return least;
  one.Narrow(c, c.options.channels);
  return least * static_cast<double>(c.options.channels) / static_cast<double>(few);
}

void CallOnly(Case &c, const std::vector<Implementation *> &all) {
  c.Fill(1);
  for (Implementation *one : all) {
    one->status = one->Prepare(c);
    for (int call = 0; call < c.options.calls && one->status == CONVSCAN_OK; ++call) one->status = one->Run(c);
    PrintCase(c, *one);
    printf("\"status\": \"%s\", \"calls\": %d}\n", one->status == CONVSCAN_OK ? "ok" : "skipped", c.options.calls);
  }
}

void Judge(Case &c, const std::vector<Implementation *> &all) {
  c.Fill(1);
  // The answer first, then memory; what is wrong, or would take far longer than the best, is not timed.
  double best = HUGE_VAL;
  std::vector<double> predicted;
  for (Implementation *one : all) {
    predicted.push_back(Predict(c, *one));
    if (one->status == CONVSCAN_OK) best = std::min(best, predicted.back());
  }
  // Where one call is all there is, as under emulation, what the machine does beside it must not decide.
  const double limit = std::max(50 * best, c.options.inputs * c.options.runs > 1 ? 0.02 : 2.0);
  for (size_t k = 0; k < all.size(); ++k)
    if (all[k]->status == CONVSCAN_OK && predicted[k] > limit)
      all[k]->cut_off = "takes more than 50 times as long as the fastest";
  for (bool ones : {true, false}) {
    ones ? c.FillOnes() : c.Fill(1);
    for (Implementation *one : all) {
      if (one->cut_off != nullptr || one->status != CONVSCAN_OK) continue;
      memset(c.y.data(), 0xff, static_cast<size_t>(c.y.bytes()));
      one->status = one->Prepare(c);
      if (!ones) Weigh(c, *one);
      else if (one->status == CONVSCAN_OK) one->status = one->Run(c);
      if (one->status != CONVSCAN_OK) continue;
      one->Fetch(c);
      Check(c, one->kind, ones, ones ? one->ones : one->random);
    }
  }
  const double begin = Now();
  for (int input = 0; input < c.options.inputs; ++input) {
    if (input > 0 && c.options.seconds > 0 && Now() - begin > c.options.seconds) break;
    if (input > 0) c.Fill(static_cast<uint64_t>(input) + 1);
    for (Implementation *one : all) {
      if (one->cut_off != nullptr || one->status != CONVSCAN_OK || one->random.of_bound > 1) continue;
      one->Prepare(c);
      one->Run(c);  // brings the caches and the clock of the core to where repeated calls have them
      for (int run = 0; run < c.options.runs; ++run) {
        const double start = Now();
        one->Run(c);
        const double own = one->OwnSeconds();
        one->seconds.push_back(own >= 0 ? own : Now() - start);
      }
    }
  }
  for (Implementation *one : all) Print(c, *one);
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

bool ReadArguments(int count, char **words, Options &options, bool &is_conv, bool (*other)(const char *, const char *)) {
  if (count < 2) return false;
  const char *const what = words[1];
  is_conv = strcmp(what, "causal_conv") == 0;
  int64_t *const sizes[] = {&options.channels, &options.length, &options.taps};
  const int size_count = is_conv ? 3 : strcmp(what, "linear_recurrence") == 0 ? 2 : 0;
  if (count < 2 + size_count) return false;
  for (int k = 0; k < size_count; ++k)
    if ((*sizes[k] = atoll(words[2 + k])) < 1) return false;
  for (int k = 2 + size_count; k < count; k += 2) {
    if (k + 1 == count) return false;
    const char *const value = words[k + 1];
    if (strcmp(words[k], "--inputs") == 0) options.inputs = atoi(value);
    else if (strcmp(words[k], "--runs") == 0) options.runs = atoi(value);
    else if (strcmp(words[k], "--seconds") == 0) options.seconds = atof(value);
    else if (strcmp(words[k], "--threads") == 0) options.threads = atoi(value);
    else if (strcmp(words[k], "--only") == 0) options.only = value;
    else if (strcmp(words[k], "--calls") == 0) options.calls = atoi(value);
    else if (strcmp(words[k], "--contiguous") == 0) options.channels_contiguous = strcmp(value, "channels") == 0;
    else if (strcmp(words[k], "--cpus") == 0) {
      if (!Bind(value)) return fprintf(stderr, "cannot bind to the processors %s\n", value), false;
    } else if (other == nullptr || !other(words[k], value)) {
      return false;
    }
  }
  return !options.channels_contiguous || options.calls > 0;
}

}  // namespace convscan::harness
