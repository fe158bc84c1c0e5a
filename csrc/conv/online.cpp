// Convolution of a signal that comes a few samples at a time, in amortised O(log² K) per sample.
//
// The first taps are summed directly. Those beyond are cut into levels: a level of block size B has the taps at lags
// [first B, (first + segments) B), in segments of B taps. Input blocks j are transformed once, together with the block
// before, into Z[j]; the level's share of the outputs of block m is the last half of the negacyclic product
//
//   O[m] = IDFT( sum_q G[q] Z[j - q] ),   m = j + first,   G[q] the transform of segment first + q,
//
// of 2B real samples by a DFT of B complex points (fft/transform.h says how), so that nothing wraps into it. Each level
// has blocks eight times as large as the one before. That is W. G. Gardner's partition (Efficient convolution without
// input-output delay, 1995) with the transforms of input blocks kept, the relaxed product of J. van der Hoeven (Relax,
// but don't be too lazy, 2002) where one factor is known.
//
//   growing   first = 1: O[m] is computed at once when block m - 1 is complete, which is the moment it is first needed
//   spread    first = 2: O[m] is computed during block m - 1, so many butterflies for every sample
//   uniform   first = 0: one level, no direct taps, whole blocks in and out
//
// Everything kept is a function of the history of inputs, which is a ring. Going back in time is therefore moving the
// position; what a level has overwritten since is computed again (Rebuild). Lanes are channels: a row has 64 bytes of
// them, or 16 where there are no more, whatever the instruction set, so that states can be carried between machines.
#include <string.h>

#include "conv/signal.h"
#include "core/kernels.h"
#include "core/storage.h"
#include "fft/butterfly.h"
#include "fft/transform.h"

namespace convscan::CONVSCAN_ISA {
namespace {

// Lags below these are summed directly. A level of 128 points costs as much as some 90 direct taps; filters of up to 256
// taps have no levels.
constexpr int64_t kDirectTaps = 128, kMostDirectTaps = 256;
// Block sizes of levels grow by 8: a segment costs 8 operations a sample, a level 10 log2(B) for its two transforms. The
// last level takes up to 16 segments before another one pays.
constexpr int64_t kGrowth = 8, kMostSegments = 16;
constexpr int kMostLevels = 18;

struct Level {
  int64_t points, first, segments;
  int64_t slots;                      // blocks of outputs kept: this one, the one before, and one in the making
  int stages;                         // of a transform, each way; the last of one and the first of the other meet
  int64_t passes;                     // over the products in between
  int64_t roots, weights, spectra;    // offsets in the filter's memory: the tables, and of a row of lanes
  int64_t inputs, outputs, products;  // offsets in the state's memory of a row of lanes

  // Of work, each four points of a stage or a pass.
  int64_t Units() const { return (2 * stages - 1 + passes) * points / 4; }
};

// Everything about a convolution but its numbers.
struct Plan {
  int64_t lanes, rows, direct, history;
  int64_t tables, filter_row, state_row;  // elements
  int levels = 0;
  Level level[kMostLevels];

  explicit Plan(const convscan_online &p) {
    const int64_t element = p.dtype == CONVSCAN_FLOAT64 || p.dtype == CONVSCAN_WIDE_FLOAT32 ? 8 : 4;
    lanes = p.channels * element <= 16 ? 16 / element : 64 / element;
    rows = CeilDiv(p.channels, lanes);
    direct = p.taps;
    if (p.schedule == CONVSCAN_ONLINE_UNIFORM) {
      direct = 0;
      Add(p.block, 0, CeilDiv(p.taps, p.block));
    } else if (p.taps > kMostDirectTaps) {
      const int64_t first = p.schedule == CONVSCAN_ONLINE_SPREAD ? 2 : 1;
      direct = kDirectTaps;
      for (int64_t points = direct / first, begin = direct; begin < p.taps; points *= kGrowth) {
        const int64_t all = CeilDiv(p.taps - begin, points);
        const int64_t segments = all <= kMostSegments ? all : (kGrowth - 1) * first;
        Add(points, first, segments);
        begin += segments * points;
      }
    }
    // Rebuilding a level reads this far behind the position, which may have been moved back.
    history = p.taps + p.max_rewind;
    if (levels > 0) {
      const Level &last = level[levels - 1];
      history = RoundUp((last.segments + last.first + 1) * last.points + p.max_rewind, last.points);
    }
    tables = filter_row = state_row = 0;
    filter_row += direct * lanes;
    state_row += history * lanes;
    for (int l = 0; l < levels; ++l) {
      Level &v = level[l];
      v.roots = tables;
      v.weights = tables + 2 * v.points;
      tables += 4 * v.points;
      v.spectra = filter_row;
      filter_row += v.segments * v.points * 2 * lanes;
      v.inputs = state_row;
      v.outputs = v.inputs + v.segments * v.points * 2 * lanes;
      v.products = v.outputs + v.slots * v.points * lanes;
      // Only where the products wait half made for the next sample are they part of the state.
      state_row = v.products + (v.first == 2 ? v.points * 2 * lanes : 0);
    }
  }

  int64_t MostPoints() const { return levels == 0 ? 0 : level[levels - 1].points; }

 private:
  void Add(int64_t points, int64_t first, int64_t segments) {
    Level &v = level[levels++];
    v = {};
    v.points = points;
    v.first = first;
    v.segments = segments;
    v.slots = first + 1;
    // A unit of the sum over all segments reads many times the memory of a butterfly: where shares are to be equal, each
    // segment is a pass by itself.
    v.passes = first == 2 ? segments : 1;
    for (int64_t n = points; n > 1; n /= 4) ++v.stages;
  }
};

// The clock: position, the highest position since the oldest row of history still known, and for each level the block
// behind the first one whose outputs are still known, and the units of work done, counted from the beginning. Outputs are
// kept for a block and the one before: that is the highest block reached, or, where the level was made anew (Rebuild),
// one more.
struct Clock {
  int64_t *at;
  int64_t &Position() const { return at[0]; }
  int64_t &Highest() const { return at[1]; }
  int64_t &Block(int level) const { return at[2 + 2 * level]; }
  int64_t &Work(int level) const { return at[3 + 2 * level]; }
};

CONVSCAN_INLINE int64_t Modulo(int64_t n, int64_t size) {
  const int64_t rest = n % size;
  return rest < 0 ? rest + size : rest;
}

// One row of lanes of one sequence.
template <class T, int kRow>
class Online {
  static constexpr int W = kRow < kLanes<T> ? kRow : kLanes<T>;
  static constexpr int V = kRow / W;
  static constexpr int kChains = V >= 4 ? 1 : 4;  // sums that do not wait for one another
  using C = ComplexVec<T, W>;

 public:
  Online(const Plan &plan, const T *tables, const T *filter, T *state, T *scratch)
      : plan_(plan), tables_(tables), filter_(filter), state_(state), scratch_(scratch) {}

  template <class S>
  void Take(int64_t t, const S *x, int64_t stride, int64_t width) {
    T *const row = Row(t);
    if (stride == 1 && width == kRow) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) Store<W>(row + v * W, Load<W>(x + v * W));
    } else {
      for (int64_t n = 0; n < kRow; ++n) row[n] = n < width ? LoadScalar(x + n * stride) : T(0);
    }
  }

  // The output at t, of which the input has been taken.
  template <class S>
  void Give(int64_t t, S *y, int64_t stride, int64_t width) const {
    Vec<T, W> sum[kChains][V] = {};
    const int64_t row = Modulo(t, plan_.history), before = Min(plan_.direct, row + 1);
    AddTaps(filter_, state_ + row * kRow, before, sum);
    AddTaps(filter_ + before * kRow, state_ + (plan_.history - 1) * kRow, plan_.direct - before, sum);
    T z[kRow];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      Vec<T, W> total = sum[0][v];
#pragma GCC unroll 4
      for (int c = 1; c < kChains; ++c) total += sum[c][v];
      for (int l = 0; l < plan_.levels; ++l) {
        const Level &level = plan_.level[l];
        const int64_t block = t / level.points;
        total += Load<W>(Outputs(level, block) + (t - block * level.points) * kRow + v * W);
      }
      Store<W>(z + v * W, total);
    }
    if (stride == 1 && width == kRow) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) Store<W>(y + v * W, Load<W>(z + v * W));
    } else {
      for (int64_t n = 0; n < width; ++n) StoreScalar(y + n * stride, z[n]);
    }
  }

  // Units [begin, end) of the work that turns input block j and those before it into outputs.
  void Work(const Level &level, int64_t j, int64_t begin, int64_t end) const {
    const int64_t stage_units = level.points / 4;
    while (begin < end) {
      const int stage = static_cast<int>(begin / stage_units);
      const int64_t from = begin - stage * stage_units, to = Min(stage_units, end - stage * stage_units);
      if (stage < level.stages) {
        Forward(level, stage, from, to, Block(level, j - 1), Block(level, j), Input(level, j));
      } else if (stage < level.stages + level.passes) {
        Multiply(level, j, stage - level.stages, from, to);
      } else {
        const int back = static_cast<int>(2 * level.stages - 2 + level.passes - stage);
        Back(level, back, from, to, Outputs(level, j + level.first));
      }
      begin = (stage + 1) * stage_units;
    }
  }

  // All that the level must know at a position in block b.
  void Rebuild(const Level &level, int64_t b) const {
    const int64_t transform = level.stages * level.points / 4;
    for (int64_t j = b - level.first - level.segments + 1; j < b; ++j)
      Work(level, j, 0, j >= b - level.first ? level.Units() : transform);
  }

  // The transform of `points` taps, which are scaled, at scratch, followed by as many zeros.
  void Spectrum(const Level &level, T *spectrum) const {
    for (int stage = 0; stage < level.stages; ++stage)
      Forward(level, stage, 0, level.points / 4, scratch_, scratch_ + level.points * kRow, spectrum);
  }

 private:
  T *Row(int64_t t) const { return state_ + Modulo(t, plan_.history) * kRow; }
  // Blocks are whole in the ring, whose size is a multiple of theirs.
  const T *Block(const Level &level, int64_t j) const { return Row(j * level.points); }
  T *Input(const Level &level, int64_t j) const {
    return state_ + level.inputs + Modulo(j, level.segments) * level.points * 2 * kRow;
  }
  T *Outputs(const Level &level, int64_t m) const {
    return state_ + level.outputs + Modulo(m, level.slots) * level.points * kRow;
  }
  T *Products(const Level &level) const { return level.first == 2 ? state_ + level.products : scratch_; }

  static CONVSCAN_INLINE C LoadPoint(const T *data, int64_t point, int v) {
    return {Load<W>(data + point * 2 * kRow + v * W), Load<W>(data + point * 2 * kRow + kRow + v * W)};
  }
  static CONVSCAN_INLINE void StorePoint(T *data, int64_t point, int v, C z) {
    Store<W>(data + point * 2 * kRow + v * W, z.re);
    Store<W>(data + point * 2 * kRow + kRow + v * W, z.im);
  }
  CONVSCAN_INLINE C Factor(int64_t table, int64_t index) const {
    const T *const at = tables_ + table + 2 * index;
    return {Broadcast<T, W>(at[0]), Broadcast<T, W>(at[1])};
  }

  static void AddTaps(const T *h, const T *x, int64_t taps, Vec<T, W> (&sum)[kChains][V]) {
    int64_t k = 0;
    for (; k + kChains <= taps; k += kChains)
#pragma GCC unroll 4
      for (int c = 0; c < kChains; ++c)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v)
          sum[c][v] += Load<W>(h + (k + c) * kRow + v * W) * Load<W>(x - (k + c) * kRow + v * W);
    for (; k < taps; ++k)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[0][v] += Load<W>(h + k * kRow + v * W) * Load<W>(x - k * kRow + v * W);
  }

  // Butterflies [from, to) of a stage of the transform, decimated in frequency, radix 4 but for a last radix 2; the
  // first stage reads the rows of two blocks and weights them.
  void Forward(const Level &level, int stage, int64_t from, int64_t to, const T *older, const T *newer,
               T *data) const {
    const int64_t size = level.points >> (2 * stage), quarter = size / 4, stride = level.points / size;
    for (int64_t i = from; i < to; ++i) {
      if (quarter == 0) {
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) Pairs<false>(data, i, v);
        continue;
      }
      const int64_t k = i & (quarter - 1), at = (i - k) * 4 + k;
      const C w1 = Factor(level.roots, k * stride), w2 = Factor(level.roots, 2 * k * stride),
              w3 = Factor(level.roots, 3 * k * stride);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        C z[4];
        if (stage == 0) {
#pragma GCC unroll 4
          for (int r = 0; r < 4; ++r) {
            const int64_t row = (at + r * quarter) * kRow + v * W;
            z[r] = C{Load<W>(older + row), Load<W>(newer + row)} * Factor(level.weights, at + r * quarter);
          }
        } else {
#pragma GCC unroll 4
          for (int r = 0; r < 4; ++r) z[r] = LoadPoint(data, at + r * quarter, v);
        }
        Dft<false, 4>(z);
        StorePoint(data, at, v, z[0]);
        StorePoint(data, at + quarter, v, z[1] * w1);
        StorePoint(data, at + 2 * quarter, v, z[2] * w2);
        StorePoint(data, at + 3 * quarter, v, z[3] * w3);
      }
    }
  }

  // Products of four points at a time, summed over the segments of a pass; the last pass has the first stage of the way
  // back with it.
  void Multiply(const Level &level, int64_t j, int64_t pass, int64_t from, int64_t to) const {
    T *const products = Products(level);
    const int64_t begin = pass * level.segments / level.passes, end = (pass + 1) * level.segments / level.passes;
    const bool is_last = pass + 1 == level.passes;
    const bool ends_in_pairs = (level.points >> (2 * (level.stages - 1))) == 2;
    for (int64_t i = from; i < to; ++i) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        C z[4] = {};
        if (begin > 0) {
#pragma GCC unroll 4
          for (int r = 0; r < 4; ++r) z[r] = LoadPoint(products, 4 * i + r, v);
        }
        for (int64_t q = begin; q < end; ++q) {
          const T *const spectrum = filter_ + level.spectra + q * level.points * 2 * kRow;
          const T *const input = Input(level, j - q);
#pragma GCC unroll 4
          for (int r = 0; r < 4; ++r) z[r] = z[r] + LoadPoint(spectrum, 4 * i + r, v) * LoadPoint(input, 4 * i + r, v);
        }
        if (is_last && !ends_in_pairs) Dft<true, 4>(z);
#pragma GCC unroll 4
        for (int r = 0; r < 4; ++r) StorePoint(products, 4 * i + r, v, z[r]);
        if (is_last && ends_in_pairs) Pairs<true>(products, i, v);
      }
    }
  }

  // The stages of Forward undone; the last one undoes the weights too and keeps the second half of the samples.
  void Back(const Level &level, int stage, int64_t from, int64_t to, T *outputs) const {
    T *const data = Products(level);
    const int64_t size = level.points >> (2 * stage), quarter = size / 4, stride = level.points / size;
    for (int64_t i = from; i < to; ++i) {
      const int64_t k = i & (quarter - 1), at = (i - k) * 4 + k;
      const C w1 = Factor(level.roots, k * stride), w2 = Factor(level.roots, 2 * k * stride),
              w3 = Factor(level.roots, 3 * k * stride);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        C z[4] = {LoadPoint(data, at, v), MultiplyConjugate(LoadPoint(data, at + quarter, v), w1),
                  MultiplyConjugate(LoadPoint(data, at + 2 * quarter, v), w2),
                  MultiplyConjugate(LoadPoint(data, at + 3 * quarter, v), w3)};
        Dft<true, 4>(z);
#pragma GCC unroll 4
        for (int r = 0; r < 4; ++r) {
          const int64_t point = at + r * quarter;
          if (stage > 0) {
            StorePoint(data, point, v, z[r]);
          } else {
            Store<W>(outputs + point * kRow + v * W, MultiplyConjugate(z[r], Factor(level.weights, point)).im);
          }
        }
      }
    }
  }

  // Two transforms of two points, which are their own inverse.
  template <bool kInverse>
  static CONVSCAN_INLINE void Pairs(T *data, int64_t i, int v) {
#pragma GCC unroll 2
    for (int64_t point = 4 * i; point < 4 * i + 4; point += 2) {
      C z[2] = {LoadPoint(data, point, v), LoadPoint(data, point + 1, v)};
      Dft<kInverse, 2>(z);
      StorePoint(data, point, v, z[0]);
      StorePoint(data, point + 1, v, z[1]);
    }
  }

  const Plan &plan_;
  const T *tables_, *filter_;
  T *state_, *scratch_;
};

// function(Online &, sequence, row of lanes) for each row of each sequence, in parallel.
template <class T, int kRow, class Function>
convscan_status ForEachRow(const convscan_online &p, const Plan &plan, int64_t work, const Function &function) {
  T *const tables = static_cast<T *>(p.filter), *const state = static_cast<T *>(p.state);
  bool failed = false;
  ParallelFor(p.batch * plan.rows, Threads(p.threads, p.batch * p.channels * work), [&](int64_t task) {
    void *scratch = Workspace(static_cast<size_t>(plan.MostPoints() * 2 * kRow) * sizeof(T));
    if (scratch == nullptr) return __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
    const int64_t row = task % plan.rows;
    const T *const filter = tables + plan.tables + (p.shares_filter ? 0 : row * plan.filter_row);
    Online<T, kRow> online(plan, tables, filter, state + task * plan.state_row, static_cast<T *>(scratch));
    function(online, task / plan.rows, row);
  });
  return failed ? CONVSCAN_OUT_OF_MEMORY : CONVSCAN_OK;
}

// Multiply-adds that a sample, or the rebuilding of all levels, costs at the least.
constexpr int64_t kWorkPerSample = 64;
int64_t RebuildWork(const Plan &plan) { return plan.levels == 0 ? 1 : plan.history * kWorkPerSample; }

template <class S, int kRow>
convscan_status Extend(const convscan_online &p, const Plan &plan) {
  using T = Compute<S>;
  const Clock clock{p.clock};
  const int64_t begin = clock.Position(), end = begin + p.length;
  const bool gives = p.y != nullptr, is_uniform = p.schedule == CONVSCAN_ONLINE_UNIFORM;
  const int64_t work = gives ? p.length * kWorkPerSample : p.length + RebuildWork(plan);
  const auto run = [&](Online<T, kRow> &online, int64_t b, int64_t row) {
    const int64_t n = row * kRow, width = Min(kRow, p.channels - n);
    const S *const x = static_cast<const S *>(p.x) + b * p.x_strides.batch + n * p.x_strides.channel;
    S *const y = gives ? static_cast<S *>(p.y) + b * p.y_strides.batch + n * p.y_strides.channel : nullptr;
    const auto take = [&](int64_t t) {
      online.Take(t, x + (t - begin) * p.x_strides.time, p.x_strides.channel, width);
    };
    const auto give = [&](int64_t t) {
      online.Give(t, y + (t - begin) * p.y_strides.time, p.y_strides.channel, width);
    };
    if (!gives) {
      for (int64_t t = Max(begin, end - plan.history); t < end; ++t) take(t);
      for (int l = 0; l < plan.levels; ++l) online.Rebuild(plan.level[l], end / plan.level[l].points);
    } else if (is_uniform) {
      const Level &level = plan.level[0];
      for (int64_t t = begin; t < end; t += level.points) {
        for (int64_t i = t; i < t + level.points; ++i) take(i);
        online.Work(level, t / level.points, 0, level.Units());
        for (int64_t i = t; i < t + level.points; ++i) give(i);
      }
    } else {
      for (int64_t t = begin; t < end; ++t) {
        take(t);
        give(t);
        for (int l = 0; l < plan.levels; ++l) {
          const Level &level = plan.level[l];
          const int64_t block = t / level.points, within = t + 1 - block * level.points, units = level.Units();
          if (level.first == 1) {
            if (within == level.points) online.Work(level, block, 0, units);
          } else {
            // During this block the one before is worked on, in equal shares; a clock set back has done some before.
            const int64_t done = Max(units * (within - 1) / level.points, clock.Work(l) - block * units);
            online.Work(level, block - 1, done, units * within / level.points);
          }
        }
      }
    }
  };
  const convscan_status status = ForEachRow<T, kRow>(p, plan, work, run);
  if (status != CONVSCAN_OK) return status;
  clock.Position() = end;
  clock.Highest() = Max(clock.Highest(), end);
  for (int l = 0; l < plan.levels; ++l) {
    const Level &level = plan.level[l];
    const int64_t block = end / level.points;
    if (gives) {
      const int64_t last = (end - 1) / level.points, units = level.Units();
      clock.Block(l) = Max(clock.Block(l), block);
      clock.Work(l) = Max(clock.Work(l), last * units + units * (end - last * level.points) / level.points);
    } else {
      clock.Block(l) = block + 1;
      clock.Work(l) = (block + 1) * level.Units();
    }
  }
  return CONVSCAN_OK;
}

// Blocks and work as they were at the end of the block that the new position lies in.
template <class T, int kRow>
convscan_status Rewind(const convscan_online &p, const Plan &plan, int64_t steps) {
  const Clock clock{p.clock};
  const int64_t position = clock.Position() - steps;
  const auto is_lost = [&](int l) { return position / plan.level[l].points < clock.Block(l) - 1; };
  bool is_any_lost = false;
  for (int l = 0; l < plan.levels; ++l) is_any_lost = is_any_lost || is_lost(l);
  if (is_any_lost) {
    const auto run = [&](Online<T, kRow> &online, int64_t, int64_t) {
      for (int l = 0; l < plan.levels; ++l)
        if (is_lost(l)) online.Rebuild(plan.level[l], position / plan.level[l].points);
    };
    const convscan_status status = ForEachRow<T, kRow>(p, plan, RebuildWork(plan), run);
    if (status != CONVSCAN_OK) return status;
  }
  for (int l = 0; l < plan.levels; ++l) {
    const int64_t block = position / plan.level[l].points, done = (block + 1) * plan.level[l].Units();
    clock.Work(l) = is_lost(l) ? done : Min(clock.Work(l), done);
    if (is_lost(l)) clock.Block(l) = block + 1;
  }
  clock.Position() = position;
  return CONVSCAN_OK;
}

template <class S, int kRow>
convscan_status Prepare(const convscan_online &p, const Plan &plan, const void *h, int64_t tap_stride,
                        int64_t channel_stride) {
  using T = Compute<S>;
  T *const tables = static_cast<T *>(p.filter);
  for (int l = 0; l < plan.levels; ++l) {
    const Level &level = plan.level[l];
    T *const roots = tables + level.roots, *const weights = tables + level.weights;
    for (int64_t n = 0; n < level.points; ++n) {
      double re, im;
      UnitRoot(n, level.points, re, im);
      roots[2 * n] = static_cast<T>(re);
      roots[2 * n + 1] = static_cast<T>(im);
      UnitRoot(-n, 4 * level.points, re, im);
      weights[2 * n] = static_cast<T>(re);
      weights[2 * n + 1] = static_cast<T>(im);
    }
  }
  const int64_t rows = p.shares_filter ? 1 : plan.rows;
  bool failed = false;
  ParallelFor(rows, Threads(p.threads, p.taps * kRow * rows), [&](int64_t row) {
    void *const scratch = Workspace(static_cast<size_t>(plan.MostPoints() * 2 * kRow) * sizeof(T));
    if (scratch == nullptr) return __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
    T *const taps = static_cast<T *>(scratch), *const filter = tables + plan.tables + row * plan.filter_row;
    const auto copy = [&](T *to, int64_t begin, int64_t count, T scale) {
      for (int64_t k = 0; k < count; ++k)
        for (int64_t lane = 0; lane < kRow; ++lane) {
          const int64_t n = p.shares_filter ? 0 : row * kRow + lane;
          const bool is_there = begin + k < p.taps && n < p.channels;
          const S *const from = static_cast<const S *>(h) + (begin + k) * tap_stride + n * channel_stride;
          to[k * kRow + lane] = is_there ? LoadScalar(from) * scale : T(0);
        }
    };
    copy(filter, 0, plan.direct, T(1));
    const Online<T, kRow> online(plan, tables, filter, nullptr, taps);
    int64_t begin = plan.direct;
    for (int l = 0; l < plan.levels; ++l) {
      const Level &level = plan.level[l];
      memset(taps + level.points * kRow, 0, static_cast<size_t>(level.points * kRow) * sizeof(T));
      for (int64_t q = 0; q < level.segments; ++q, begin += level.points) {
        copy(taps, begin, level.points, T(1) / static_cast<T>(level.points));
        online.Spectrum(level, filter + level.spectra + q * level.points * 2 * kRow);
      }
    }
  });
  return failed ? CONVSCAN_OUT_OF_MEMORY : CONVSCAN_OK;
}

// function with the storage type and the width of a row.
template <class Function>
convscan_status WithRow(const convscan_online &p, const Plan &plan, const Function &function) {
  return WithRealStorage(p.dtype, [&]<class S>(Type<S>) {
    constexpr int kWide = 64 / static_cast<int>(sizeof(Compute<S>));
    return plan.lanes == kWide ? function.template operator()<S, kWide>()
                               : function.template operator()<S, kWide / 4>();
  });
}

}  // namespace

void OnlineMeasure(const convscan_online &p, convscan_online_sizes &sizes) {
  const Plan plan(p);
  sizes.filter = plan.tables + plan.filter_row * (p.shares_filter ? 1 : plan.rows);
  sizes.state = plan.rows * plan.state_row;
  sizes.clock = 2 + 2 * plan.levels;
  sizes.lanes = plan.lanes;
  sizes.history = plan.history;
}

convscan_status OnlinePrepare(const convscan_online &p, const void *h, int64_t tap_stride, int64_t channel_stride) {
  const Plan plan(p);
  return WithRow(p, plan, [&]<class S, int kRow>() { return Prepare<S, kRow>(p, plan, h, tap_stride, channel_stride); });
}

convscan_status OnlineExtend(const convscan_online &p) {
  const Plan plan(p);
  return WithRow(p, plan, [&]<class S, int kRow>() { return Extend<S, kRow>(p, plan); });
}

convscan_status OnlineRewind(const convscan_online &p, int64_t steps) {
  const Plan plan(p);
  return WithRow(p, plan, [&]<class S, int kRow>() { return Rewind<Compute<S>, kRow>(p, plan, steps); });
}

}  // namespace convscan::CONVSCAN_ISA
