// How gradients that are summed over batch and time are cut into tasks: lanes are channels, or (channel, segment of time)
// where channels are fewer than lanes. Where groups of lanes are too few tasks, chunks of time of all sequences are dealt out
// to parts, a number that depends on the problem only, whose sums are added up in order: the result is the same for any
// number of threads.
#pragma once

#include "conv/signal.h"

namespace convscan::CONVSCAN_ISA {

inline constexpr int64_t kGradientTasks = 16;  // wanted at least, to keep threads busy
inline constexpr int64_t kStepsPerTap = 4;     // of a part at least: its sums are cleared, kept and added up

template <int W>
struct GradientChunks {
  const convscan_filter_gradient &p;
  bool is_adjacent;               // lanes are adjacent channels, several vectors at once
  int64_t columns, extra;         // extra: steps behind the end of each sequence
  int64_t group, segments;        // group: channels per task
  int64_t steps, chunks_each, chunks, groups, parts;  // chunks: of all sequences together

  // `columns`: vectors of adjacent channels per task; `longest`: steps of a lane in a chunk, at most.
  GradientChunks(const convscan_filter_gradient &p, bool is_adjacent, int64_t columns, int64_t longest, int64_t extra)
      : p(p), is_adjacent(is_adjacent), columns(columns), extra(extra) {
    group = Min(columns * W, p.channels);
    segments = is_adjacent ? 1 : W / group;
    steps = RoundUp(Min(longest, CeilDiv(LongestSequence(p) + extra, segments)), W < 4 ? 4 : W);
    chunks_each = 0;
    for (int64_t s = 0; s < Sequences(p); ++s) chunks_each += ChunksOf(s);
    chunks = p.batch * chunks_each;
    groups = CeilDiv(p.channels, group);
    parts = Min(Min(chunks, CeilDiv(kGradientTasks, groups)), p.batch * p.length / (kStepsPerTap * Max(1, p.taps)));
    parts = Max(1, parts);
  }

  int64_t ChunksOf(int64_t sequence) const {
    const int64_t length = SequenceEnd(p, sequence) - SequenceBegin(p, sequence);
    return length == 0 ? 0 : CeilDiv(length + extra, steps * segments);
  }

  // The lanes of the channels from n on, each `steps` behind the one before it where they share a channel.
  void SetLanes(int64_t b, int64_t n, int64_t start, Lane (&lanes)[W]) const {
    for (int l = 0; l < W; ++l)
      lanes[l] = {b, Min(n + l % group, p.channels - 1), start + Min(l / group, segments - 1) * steps};
  }

  // visit(b, sequence, start) for chunks [begin, end), whose lanes begin at `start`.
  template <class Visit>
  void Run(int64_t begin, int64_t end, const Visit &visit) const {
    if (begin >= end) return;
    int64_t b = begin / chunks_each, sequence = 0, part = begin % chunks_each;
    for (; part >= ChunksOf(sequence); ++sequence) part -= ChunksOf(sequence);
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      visit(b, sequence, part * steps * segments);
      if (++part < ChunksOf(sequence)) continue;
      part = 0;
      do {
        if (++sequence == Sequences(p)) {
          sequence = 0;
          ++b;
        }
      } while (ChunksOf(sequence) == 0);
    }
  }

  // The sum over the lanes of channel n + i of its group, of row k of `rows` of every vector.
  double Total(const double *sums, int64_t rows, int64_t i, int64_t k) const {
    double total = 0;
    for (int64_t s = 0; s < segments; ++s) total += sums[(i / W * rows + k) * W + i % W + s * group];
    return total;
  }

  // sums = run(workspace, n, begin, end) of every task, `count` of them in workspace of `tile_bytes`, and store(n, sums) of
  // all parts of a group of channels together.
  template <class RunPart, class Store>
  convscan_status SumParts(int threads, size_t tile_bytes, int64_t count, const RunPart &run, const Store &store) const {
    // The sums of all parts stand behind the tile in the calling thread's workspace, which its own tasks also ask for,
    // at the same size so that it stays where it is.
    const int64_t kept = parts > 1 ? parts * groups * count : 0;
    const size_t bytes = tile_bytes + static_cast<size_t>(kept) * sizeof(double);
    char *const own = static_cast<char *>(Workspace(bytes));
    if (own == nullptr) return CONVSCAN_OUT_OF_MEMORY;
    double *const partial = reinterpret_cast<double *>(own + tile_bytes);
    bool failed = false;
    ParallelFor(groups * parts, threads, [&](int64_t task) {
      void *workspace = Workspace(bytes);
      if (workspace == nullptr) return __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
      const int64_t g = task / parts, i = task % parts, n = g * group;
      const double *const sums = run(workspace, n, i * chunks / parts, (i + 1) * chunks / parts);
      if (parts > 1) memcpy(partial + task * count, sums, static_cast<size_t>(count) * sizeof(double));
      else store(n, sums);
    });
    if (failed) return CONVSCAN_OUT_OF_MEMORY;
    for (int64_t g = 0; parts > 1 && g < groups; ++g) {
      double *const sums = partial + g * parts * count;
      for (int64_t j = 1; j < parts; ++j)
        for (int64_t i = 0; i < count; ++i) sums[i] += sums[j * count + i];
      store(g * group, sums);
    }
    return CONVSCAN_OK;
  }
};

}  // namespace convscan::CONVSCAN_ISA
