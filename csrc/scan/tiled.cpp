// The scan divided over time, for long sequences of few channels: two passes over tiles, bit for bit the answer of one.
//
//   first pass    every tile at the same time, the first from the initial state, the others from zero
//   second pass   tile after tile from its true initial state, until it has caught up with the first pass
//
// Where the coefficients decay, a state forgets where it started: after some steps (about 17 / (1 - a) in float32) both
// passes hold the very same number, and from there on the first pass was right. Where they do not decay, the second
// pass runs through its tile, and the time is that of the sequential scan, never more. No products are formed, so
// nothing can overflow or underflow that does not in the recurrence itself, and the result depends neither on the
// number of tiles nor on that of threads.
#include "core/kernels.h"
#include "core/parallel.h"
#include "scan/along_time.h"
#include "scan/segment.h"

namespace convscan::CONVSCAN_ISA {
namespace {

constexpr int64_t kMostChannels = 64;

// Whether the states equal the outputs of the last step of a segment, bit for bit.
bool Equals(const Segment &s, const void *state, int64_t bytes) {
  const char *y = static_cast<const char *>(s.y) + (s.length - 1) * s.y_time * bytes;
  for (int64_t c = 0; c < s.channels; ++c)
    if (__builtin_memcmp(y + c * s.y_channel * bytes, static_cast<const char *>(state) + c * bytes,
                         static_cast<size_t>(bytes)) != 0)
      return false;
  return true;
}

void StoreStates(const Segment &s, void *state, int64_t bytes) {
  const char *y = static_cast<const char *>(s.y) + (s.length - 1) * s.y_time * bytes;
  for (int64_t c = 0; c < s.channels; ++c)
    __builtin_memcpy(static_cast<char *>(state) + c * bytes, y + c * s.y_channel * bytes, static_cast<size_t>(bytes));
}

}  // namespace

convscan_status ScanTiled(const convscan_scan &problem) {
  const convscan_scan p = Forwards(problem);
  const Sequences sequences(p, problem.reverse);
  int threads = p.batch * p.length * p.channels < kSmallProblem ? 1 : p.threads;
  if (threads == 0) threads = ThreadCount();
  // The second pass needs the input that working in place overwrites, and outputs as exact as the states.
  const int64_t bytes = StorageBytes(p.dtype);
  const bool divides = p.x != p.y && bytes == ComputeBytes(p.dtype);
  const int64_t width = Min(p.channels, kMostChannels), blocks = CeilDiv(p.channels, width);
  const int64_t tiles = divides ? Max(1, Min(threads, p.length / (8 * kPiece))) : 1;
  const int64_t steps = CeilDiv(CeilDiv(p.length, tiles), kPiece) * kPiece;
  const SegmentKernel in_registers = ParallelSegment(p);
  const SegmentKernel kernel = in_registers != nullptr ? in_registers : SequentialSegment(p.dtype);
  const bool streams = in_registers != nullptr ? IsTooLargeForCaches(p) : StoresMayStream(p);
  const auto start = [&](int64_t tile) { return TileStart(sequences, tile * steps, p.length); };
  const auto cut = [&](int64_t row, int64_t t, int64_t end) {
    const int64_t c = row % blocks * width;
    return Cut(p, row / blocks, t, end - t, c, Min(width, p.channels - c));
  };

  ParallelFor(p.batch * blocks * tiles, threads, [&](int64_t task) {
    alignas(64) char state[kMostChannels * 16] = {};
    const int64_t row = task / tiles, tile = task % tiles, c = row % blocks * width;
    RunSteps(p, sequences, kernel, row / blocks, start(tile), start(tile + 1), c, Min(width, p.channels - c),
             streams, state);
  });
  if (tiles == 1) return CONVSCAN_OK;
  ParallelFor(p.batch * blocks, threads, [&](int64_t row) {
    alignas(64) char state[kMostChannels * 16];
    for (int64_t tile = 1; tile < tiles; ++tile) {
      int64_t t = start(tile);
      if (t >= p.length) break;
      const int64_t s = sequences.At(t), end = Min(start(tile + 1), sequences.End(s));
      if (t == sequences.Begin(s)) continue;
      StoreStates(cut(row, 0, t), state, bytes);
      // Pieces are what the second pass looks after whether it has caught up.
      for (bool caught_up = false; t < end && !caught_up; t += kPiece) {
        const Segment piece = cut(row, t, Min(t + kPiece, end));
        alignas(64) char guessed[kMostChannels * 16];
        StoreStates(piece, guessed, bytes);
        kernel(piece, state);
        caught_up = Equals(piece, guessed, bytes);
      }
    }
  });
  return CONVSCAN_OK;
}

}  // namespace convscan::CONVSCAN_ISA
