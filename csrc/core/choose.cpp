// The formulas of src/convscan/ops/causal_conv/cpu.py and linear_recurrence/cpu.py, with the same constants, so that a
// program without Python comes to the same choice.
#include "core/choose.h"

#include <math.h>
#include <string.h>

#include "core/costs.h"
#include "core/parallel.h"

namespace convscan {
namespace {

double Least(double a, double b) { return a < b ? a : b; }
double Most(double a, double b) { return a < b ? b : a; }

const IsaCosts &Costs(const char *isa) {
  for (const IsaCosts &costs : kCosts)
    if (strcmp(costs.isa, isa) == 0) return costs;
  return kCosts[0];  // nobody has measured it
}

const OrderCosts &Order(const IsaCosts &costs, const convscan_strides &strides) {
  return strides.channel == 1 ? costs.channel : strides.time == 1 ? costs.time : costs.strided;
}

// How many times as long as float32 a type's arithmetic takes, and the bytes of an element.
struct Type {
  double relative, bytes;
};
Type TypeOf(convscan_dtype dtype) {
  switch (dtype) {
    case CONVSCAN_FLOAT64: return {2, 8};
    case CONVSCAN_WIDE_FLOAT32: return {2, 4};
    case CONVSCAN_BFLOAT16: return {1.3, 2};
    case CONVSCAN_FLOAT16: return {1.2, 2};
    case CONVSCAN_COMPLEX64: return {3, 8};
    case CONVSCAN_COMPLEX128: return {6, 16};
    default: return {1, 4};
  }
}

struct Work {
  double units, elements, moved, workers;
};

double Seconds(const IsaCosts &costs, const KernelCosts &kernel, const Type &type, const Work &work, int threads) {
  const double compute = type.relative * (work.units * kernel.unit + work.elements * kernel.element) / work.workers;
  const double memory = work.moved * (work.moved < costs.cache_bytes ? costs.cached_byte : costs.memory_byte);
  const double handoff = threads > 1 && compute * work.workers > costs.handoff ? costs.handoff : 0;
  return costs.call + handoff + sqrt(compute * compute + memory * memory);
}

int Threads(int asked) { return asked > 0 ? asked : ThreadCount(); }

// Whether steps are neighbours in memory, of a channel or of so few that a vector holds several of all of them.
bool RunsAlongTime(const convscan_scan &p, const char *isa, const Type &type) {
  const auto is = [&](int64_t time) {
    return p.x_strides.time == time && p.y_strides.time == time &&
           (p.a_strides.time == time || p.a_strides.time == 0);
  };
  if (is(1) || is(-1)) return true;
  const double vector = strcmp(isa, "avx512") == 0 ? 64 : strcmp(isa, "avx2") == 0 ? 32 : 16;
  const auto is_row = [&](const convscan_strides &s) { return s.channel == 1 || p.channels == 1; };
  return 2 * static_cast<double>(p.channels) * Most(4, type.bytes) <= vector && (is(p.channels) || is(-p.channels)) &&
         is_row(p.x_strides) && is_row(p.a_strides) && is_row(p.y_strides);
}

double Blocks(double length, double taps, double points) {
  return 2 * points >= length + taps - 1 ? 1 : ceil(length / (2 * points - taps + 1));
}

}  // namespace

ConvChoice ChooseConv(const convscan_conv &p, const char *isa, int64_t (*fft_length)(int64_t, convscan_dtype)) {
  const IsaCosts &costs = Costs(isa);
  const OrderCosts &kernels = Order(costs, p.x_strides);
  const Type type = TypeOf(p.dtype);
  const int threads = Threads(p.threads);
  const double sequences = p.boundaries == nullptr ? 1 : static_cast<double>(p.sequences);
  const double length = ceil(static_cast<double>(p.length) / Most(sequences, 1)), taps = static_cast<double>(p.taps);
  const double origin = static_cast<double>(p.origin), channels = static_cast<double>(p.channels);
  const double rows = static_cast<double>(p.batch) * Most(sequences, 1) * channels;
  const double samples = static_cast<double>(p.batch) * static_cast<double>(p.length) * channels;
  const double group = static_cast<double>(p.filter_group > 0 ? p.filter_group : 1);
  const double filters = p.h_channel_stride == 0 ? 1 : channels / group;
  const double signals = 2 + (p.pre_gate != nullptr) + (p.post_gate != nullptr);

  const double behind = Least(taps - origin, length), ahead = Least(origin, Most(0, length - 1));
  const double products =
      rows * (behind * length - behind * (behind - 1) / 2 + ahead * length - ahead * (ahead + 1) / 2);
  const double moved = type.bytes * (signals * samples + filters * taps);
  const Work sums = {products, samples, moved, static_cast<double>(threads)};
  const double direct = Seconds(costs, kernels.direct, type, sums, threads);
  const double toeplitz = Seconds(costs, kernels.toeplitz, type, sums, threads);
  ConvChoice choice = {toeplitz < direct ? ConvMethod::kToeplitz : ConvMethod::kDirect, 0};
  double least = Least(direct, toeplitz);

  // Taps that no sample meets are left out of the count: the kernel transforms what it needs.
  const double reach = p.state == nullptr ? Least(taps, origin + length) : taps;
  const int64_t whole = fft_length(static_cast<int64_t>(Most(1, floor((length + reach) / 2))), p.dtype);
  constexpr double kFactors[] = {0, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 32};
  for (double factor : kFactors) {
    // The history of a block must lie in the block before it: at least as many points as taps, and some to round.
    const int64_t points =
        factor == 0 ? whole : fft_length(static_cast<int64_t>(Most(256, floor(factor * reach) + 16)), p.dtype);
    if (points <= 0 || points > whole) continue;
    const double m = static_cast<double>(points), transform = m * log2(Most(2, m));
    const double own = p.h_batch_stride != 0 || sequences > 1 ? rows / channels : 1;
    const double units = transform * (2 * rows * Blocks(length, reach, m) + filters * own);
    const Work work = {units, samples, moved, Most(1, Least(threads, channels))};
    const double seconds = Seconds(costs, kernels.fft, type, work, threads);
    if (seconds < least) {
      least = seconds;
      choice = {ConvMethod::kFft, points};
    }
  }
  return choice;
}

ScanMethod ChooseScan(const convscan_scan &p, const char *isa) {
  const IsaCosts &costs = Costs(isa);
  const Type type = TypeOf(p.dtype);
  const int threads = Threads(p.threads);
  const double channels = static_cast<double>(p.channels), length = static_cast<double>(p.length);
  const double batch = static_cast<double>(p.batch), samples = batch * channels * length;
  const double moved = type.bytes * samples * (p.a_strides.time == 0 ? 2 : 3);
  const double sequences = p.boundaries == nullptr ? 1 : static_cast<double>(p.sequences);
  const double units = moved >= costs.cache_bytes ? samples : 0;  // what an element costs more beyond the caches
  const OrderCosts &kernels = Order(costs, p.x_strides), &of_rows = p.channels == 1 ? costs.time : kernels;
  const bool along_time = RunsAlongTime(p, isa, type);
  const auto sequential = [&](double tasks) {
    const double workers = Most(1, Least(threads, tasks));
    // A step waits for the one before it, however few channels there are.
    return Most(batch * length * 1.1e-9 / workers,
                Seconds(costs, kernels.sequential, type, {units, samples, moved, workers}, threads));
  };
  const auto parallel = [&](double tasks) {
    // A row costs the scan along time as much as 64 steps before the first one.
    return (1 + 64 * sequences / Most(1, length)) *
           Seconds(costs, of_rows.parallel, type, {units, samples, moved, Most(1, Least(threads, tasks))}, threads);
  };
  const double tiles = length >= 16384 ? batch * threads : batch;
  const double one_pass = sequential(batch * ceil(channels / 16));
  const double tiled = 1.05 * (along_time ? parallel(tiles) : sequential(tiles));
  if (along_time) {
    const double in_registers = parallel(batch * ceil(channels / 8));
    if (in_registers < Least(one_pass, tiled)) return ScanMethod::kParallel;
  }
  return one_pass <= tiled ? ScanMethod::kSequential : ScanMethod::kTiled;
}

}  // namespace convscan
