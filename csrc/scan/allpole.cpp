// All-pole filters, y[i] = x[i] + sum_k a_k[i] y[i-k], 1 <= k <= order, and their transposes, which run from the end.
//
// A step has to wait for the one before it: lanes are sequences, adjacent channels or any others. A tile of time is
// packed as rows of W lanes, with the outputs before it in front, so that a step is `order` multiply-adds of rows; all
// but the newest wait for nothing that the step before has not long finished. A single sequence sums its older terms
// in vectors; of few coefficients, or constant ones, it is divided into segments of time, which become the lanes.
// A transpose is the same filter with time reversed and its coefficients sheared: strides say so.
#include <string.h>

#include "convscan.h"
#include "core/arena.h"
#include "core/kernels.h"
#include "core/parallel.h"
#include "core/storage.h"
#include "core/vector.h"
#include "core/workspace.h"

namespace convscan::CONVSCAN_ISA {
namespace {

// Steps per tile, fewer where their coefficients, which vary in time, would leave the first-level cache.
constexpr int64_t kTile = 128, kSmallestTile = 8, kCoefficientBytes = 16 << 10;
// Vectors of lanes that one task takes along: two lines of memory per row of adjacent channels.
constexpr int64_t kColumns = 128 / kVectorBytes > 1 ? 128 / kVectorBytes : 1;
// Multiply-adds below which one thread works alone.
constexpr int64_t kSerialWork = 65536;
// Newest outputs of a single sequence that are not read in vectors: those would wait for the stores of each of them.
constexpr int64_t kNewest = 8;

// Where one array has the lanes of a vector.
template <class S, int W, class Element = const S>
struct Sequences {
  Element *at[W];
  int64_t time;
  bool is_adjacent;  // one vector in memory at every step
  int count;         // of lanes that are not repetitions of the last

  CONVSCAN_INLINE Vec<Compute<S>, W> Gather(int64_t offset) const {
    if (is_adjacent) return Load<W>(at[0] + offset);
    Vec<Compute<S>, W> v;
    for (int l = 0; l < W; ++l) v[l] = LoadScalar(at[l] + offset);
    return v;
  }

  // rows[i] = elements `offset` + i of every lane, 0 <= i < count.
  void PackRun(int64_t offset, int64_t length, Compute<S> *rows) const {
    int64_t i = 0;
    if constexpr (W > 1) {
      for (; i + W <= length; i += W) {
        Vec<Compute<S>, W> v[W];
#pragma GCC unroll 16
        for (int l = 0; l < W; ++l) v[l] = Load<W>(at[l] + offset + i);
        Transpose<Compute<S>, W>(v);
#pragma GCC unroll 16
        for (int l = 0; l < W; ++l) Store<W>(rows + (i + l) * W, v[l]);
      }
    }
    for (; i < length; ++i) Store<W>(rows + i * W, Gather(offset + i));
  }

  void Pack(int64_t t, int64_t length, Compute<S> *rows) const {
    if (time == 1 && !is_adjacent) return PackRun(t, length, rows);
    for (int64_t i = 0; i < length; ++i) Store<W>(rows + i * W, Gather((t + i) * time));
  }

  void Unpack(int64_t t, int64_t length, const Compute<S> *rows) const {
    int64_t i = 0;
    if (is_adjacent) {
      for (; i < length; ++i) Store<W>(at[0] + (t + i) * time, Load<W>(rows + i * W));
      return;
    }
    if constexpr (W > 1) {
      for (; time == 1 && i + W <= length; i += W) {
        Vec<Compute<S>, W> v[W];
#pragma GCC unroll 16
        for (int l = 0; l < W; ++l) v[l] = Load<W>(rows + (i + l) * W);
        Transpose<Compute<S>, W>(v);
        for (int l = 0; l < count; ++l) Store<W>(at[l] + t + i, v[l]);
      }
    }
    for (; i < length; ++i)
      for (int l = 0; l < count; ++l) StoreScalar(at[l] + (t + i) * time, rows[i * W + l]);
  }
};

template <class S, int W>
struct Filter {
  using T = Compute<S>;

  const convscan_allpole &p;
  int64_t order, tile;
  int64_t a_time, a_order;  // strides of the filter as it runs

  explicit Filter(const convscan_allpole &p) : p(p), order(p.order), a_time(p.a_strides.time), a_order(p.a_order_stride) {
    const int64_t fits = kCoefficientBytes / (order * W * static_cast<int64_t>(sizeof(T)));
    tile = IsConstant() ? kTile : Max(kSmallestTile, Min(kTile, fits));
    tile = Min(tile, p.length);
    if (p.transposed) {
      a_order += a_time;  // a_k[i+k]
      a_time = -a_time;
    }
  }

  bool IsConstant() const { return p.a_strides.time == 0; }

  struct Column {
    Sequences<S, W> x, a, state;
    Sequences<S, W, S> y;
    T *rows;      // [order + tile][W]: the outputs before a tile, then the tile; of a single sequence the newest first
    T *constant;  // [order][W]
  };

  Column At(int64_t vector, Arena &arena) const {
    Column c;
    const int64_t lanes = p.batch * p.channels, first = vector * W, end = p.transposed ? p.length - 1 : 0;
    const int count = static_cast<int>(Min(W, lanes - first));
    const bool is_row = W > 1 && count == W && first / p.channels == (first + W - 1) / p.channels;
    const int64_t direction = p.transposed ? -1 : 1;
    for (int l = 0; l < W; ++l) {
      const int64_t lane = first + Min(l, count - 1), b = lane / p.channels, n = lane % p.channels;
      const auto at = [&](const convscan_strides &s, int64_t t) { return b * s.batch + t * s.time + n * s.channel; };
      c.x.at[l] = static_cast<const S *>(p.x) + at(p.x_strides, end);
      c.y.at[l] = static_cast<S *>(p.y) + at(p.y_strides, end);
      // a_k of step j stands at j a_time + (k-1) a_order; of a transpose, j = 0 is the last step.
      c.a.at[l] = static_cast<const S *>(p.a) + at(p.a_strides, p.transposed ? p.length : 0);
      c.state.at[l] = p.state == nullptr ? nullptr : static_cast<const S *>(p.state) + at(p.state_strides, 0);
    }
    c.x.time = direction * p.x_strides.time;
    c.y.time = direction * p.y_strides.time;
    c.a.time = a_time;
    c.state.time = p.state_strides.time;
    c.x.is_adjacent = is_row && p.x_strides.channel == 1;
    c.y.is_adjacent = is_row && p.y_strides.channel == 1;
    c.a.is_adjacent = is_row && p.a_strides.channel == 1;
    c.state.is_adjacent = is_row && p.state_strides.channel == 1;
    c.x.count = c.y.count = c.a.count = c.state.count = count;
    c.rows = arena.Take<T>((order + tile) * W);
    c.constant = arena.Take<T>(order * W);
    return c;
  }

  size_t Bytes() const {
    Arena arena(nullptr);
    for (int64_t c = 0; c < kColumns; ++c) {
      arena.Take<T>((order + tile) * W);
      arena.Take<T>(order * W);
    }
    arena.Take<T>(tile * order * W);
    return arena.Used();
  }

  void Begin(Column &c) const {
    if (p.state == nullptr) memset(Before(c), 0, static_cast<size_t>(order * W) * sizeof(T));
    else if (W > 1) c.state.Pack(0, order, c.rows);
    else for (int64_t k = 0; k < order; ++k) Before(c)[k] = LoadScalar(c.state.at[0] + (order - 1 - k) * c.state.time);
    for (int64_t k = 0; IsConstant() && k < order; ++k) Store<W>(c.constant + k * W, c.a.Gather(k * a_order));
  }

  // The outputs before a tile.
  T *Before(const Column &c) const { return W > 1 ? c.rows : c.rows + tile; }

  // The coefficients of steps [t, t + length). Those of outputs before the first one, where those are zeros, are not
  // there: of a transpose they would lie beyond the end of the array.
  void PackCoefficients(const Column &c, int64_t t, int64_t length, T *rows) const {
    int64_t i = 0;
    for (; p.state == nullptr && i < length && t + i < order; ++i)
      for (int64_t k = 0; k < order; ++k)
        Store<W>(rows + (i * order + k) * W,
                 k < t + i ? c.a.Gather((t + i) * a_time + k * a_order) : Vec<T, W>{});
    PackPresent(c.a, t + i, length - i, rows + i * order * W);
  }
  void PackPresent(const Sequences<S, W> &a, int64_t t, int64_t length, T *rows) const {
    if (W > 1 && a_order == 1 && a_time == order && !a.is_adjacent)
      return a.PackRun(t * order, length * order, rows);
    for (int64_t i = 0; i < length; ++i) {
      T *const row = rows + i * order * W;
      if (W > 1 && a_order == 1 && !a.is_adjacent) {
        a.PackRun((t + i) * a_time, order, row);
        continue;
      }
      for (int64_t k = 0; k < order; ++k) Store<W>(row + k * W, a.Gather((t + i) * a_time + k * a_order));
    }
  }

  // y in the place of x, `length` rows from `rows` on. `step`: from the coefficients of one step to those of the next.
  void Steps(T *rows, int64_t length, const T *a, int64_t step) const {
    Vec<T, W> last = Load<W>(rows - W);
    for (int64_t i = 0; i < length; ++i, rows += W, a += step) {
      Vec<T, W> even = Load<W>(rows), odd{};
      int64_t k = order;
      for (; k > 2; k -= 2) {
        even += Load<W>(a + (k - 1) * W) * Load<W>(rows - k * W);
        odd += Load<W>(a + (k - 2) * W) * Load<W>(rows - (k - 1) * W);
      }
      if (k == 2) even += Load<W>(a + W) * Load<W>(rows - 2 * W);
      last = (even + odd) + Load<W>(a) * last;
      Store<W>(rows, last);
    }
  }

  // The same for a single sequence: the newest output has the lowest address, so that outputs lie like their coefficients.
  static void SingleSteps(T *rows, int64_t length, const T *a, int64_t step, int64_t order) {
    constexpr int V = kLanes<T>;
    T last = rows[1];
    for (int64_t i = 0; i < length; ++i, --rows, a += step) {
      const T *const past = rows + 1;
      T even = *rows, odd = 0;
      int64_t k = order;
      if (order >= kNewest + 4) odd = SumOfProducts<V>(a, past, k);
      for (; k > 2; k -= 2) {
        even += a[k - 1] * past[k - 1];
        odd += a[k - 2] * past[k - 2];
      }
      if (k == 2) even += a[1] * past[1];
      *rows = last = (even + odd) + a[0] * last;
    }
  }

  // The sum of products from the oldest one, the k-th, to the newest but kNewest, as far as vectors of four and more go; k
  // becomes what is left.
  template <int V>
  static CONVSCAN_INLINE T SumOfProducts(const T *a, const T *past, int64_t &k) {
    Vec<T, V> sum{};
    for (; k - V >= kNewest; k -= V) sum += Load<V>(a + k - V) * Load<V>(past + k - V);
    return Sum<V>(sum, a, past, k);
  }
  template <int V>
  static CONVSCAN_INLINE T Sum(Vec<T, V> sum, const T *a, const T *past, int64_t &k) {
    if constexpr (V == 1) {
      return sum[0];
    } else {
      Vec<T, V / 2> halves[2];
      memcpy(halves, &sum, sizeof sum);
      halves[0] += halves[1];
      if (V > 4 && k - V / 2 >= kNewest) {
        k -= V / 2;
        halves[0] += Load<V / 2>(a + k) * Load<V / 2>(past + k);
      }
      return Sum<V / 2>(halves[0], a, past, k);
    }
  }

  // Steps [t, end) of a column; `varying` is memory for coefficients of a tile.
  void RunSteps(Column &c, int64_t t, int64_t end, T *varying) const {
    for (; t < end; t += tile) {
      const int64_t length = Min(tile, end - t);
      const T *a = IsConstant() ? c.constant : varying;
      int64_t step = IsConstant() ? 0 : order * W;
      if constexpr (W > 1) {
        T *const rows = c.rows + order * W;
        c.x.Pack(t, length, rows);
        if (!IsConstant()) PackCoefficients(c, t, length, varying);
        Steps(rows, length, a, step);
        c.y.Unpack(t, length, rows);
        memmove(c.rows, c.rows + length * W, static_cast<size_t>(order * W) * sizeof(T));
      } else {
        T *const first = c.rows + tile - 1;
        for (int64_t i = 0; i < length; ++i) first[-i] = LoadScalar(c.x.at[0] + (t + i) * c.x.time);
        bool lie_there = false;  // the coefficients, as they are needed
        if constexpr (kSame<S, T>) {
          lie_there = !IsConstant() && a_order == 1 && (p.state != nullptr || t >= order);
          if (lie_there) a = c.a.at[0] + t * a_time, step = a_time;
        }
        if (!IsConstant() && !lie_there) PackCoefficients(c, t, length, varying);
        SingleSteps(first, length, a, step, order);
        for (int64_t i = 0; i < length; ++i) StoreScalar(c.y.at[0] + (t + i) * c.y.time, first[-i]);
        memmove(c.rows + tile, c.rows + tile - length, static_cast<size_t>(order) * sizeof(T));
      }
    }
  }

  // Vectors of lanes [begin, end), no more than kColumns.
  void Run(int64_t begin, int64_t end, void *workspace) const {
    Arena arena(workspace);
    Column columns[kColumns];
    for (int64_t v = begin; v < end; ++v) Begin(columns[v - begin] = At(v, arena));
    T *const varying = arena.Take<T>(tile * order * W);
    for (int64_t t = 0; t < p.length; t += tile)
      for (int64_t v = 0; v < end - begin; ++v) RunSteps(columns[v], t, Min(t + tile, p.length), varying);
  }
};

// One sequence as W segments of time, a lane each, so that a step's multiply-adds are those of W steps:
//
//   responses   the last outputs of a segment for each of the `order` outputs before it, when it has no input: H
//   ends        its last outputs z when it begins at zero
//   carry       the outputs before every segment, z + H s from the s before the last one
//   outputs     the recurrence itself, in every lane, from there
//
// Constant coefficients have one H, made in double precision; varying ones take order^2 multiply-adds a step for it, which
// pays for few. Where states barely decay within a segment, or grow, steps are done one by one: H would round more than they.
template <class S>
class SegmentedFilter {
  using T = Compute<S>;
  static constexpr int W = kLanes<T>;
  static constexpr int64_t kMostStates = 32;
  // The largest row of H in sums of magnitudes: its roundings, like so many of a step, add to those of the recurrence.
  static constexpr double kLargest = 4, kLargestInDouble = 1 << 20;

  const Filter<S, 1> single_;
  const Filter<S, W> wide_;
  const int64_t order_, steps_, length_;  // steps of a segment, and of all

 public:
  using Column = typename Filter<S, 1>::Column;

  // Half of the first-level cache for the coefficients of a chunk, if they vary.
  static int64_t StepsOf(const convscan_allpole &p) {
    return p.a_strides.time == 0 ? 128 : Min(64, 24576 / (p.order * W * static_cast<int64_t>(sizeof(T))));
  }
  static bool Suits(const convscan_allpole &p) {
    return 4 * p.batch * p.channels <= W && p.order <= (p.a_strides.time == 0 ? kMostStates : W / 4) &&
           p.length >= 2 * W * StepsOf(p);
  }

  explicit SegmentedFilter(const convscan_allpole &p)
      : single_(p), wide_(p), order_(p.order), steps_(StepsOf(p)), length_(p.length) {}

  size_t Bytes() const {
    Arena arena(nullptr);
    Take(arena);
    return arena.Used() + single_.Bytes();
  }

  // One sequence.
  void Run(int64_t lane, void *workspace) const {
    Arena arena(workspace);
    const Memory m = Take(arena);
    Column column = single_.At(lane, arena);
    single_.Begin(column);
    // The first outputs have coefficients of what was before them, which may not be there.
    int64_t t = CeilDiv(order_, single_.tile) * single_.tile;
    single_.RunSteps(column, 0, t, m.single_a);
    const int64_t chunk = W * steps_;
    if (!single_.IsConstant() || ConstantResponses(column.constant, m)) {
      for (; t + chunk <= length_; t += chunk)
        if (!RunChunk(column, t, m)) single_.RunSteps(column, t, t + chunk, m.single_a);
    }
    single_.RunSteps(column, t, length_, m.single_a);
  }

 private:
  struct Memory {
    T *single_a;   // coefficients of a tile of the sequence
    T *a;          // of a chunk, or the constant ones, in every lane
    T *x;          // [steps][W]
    T *rows;       // [order + steps][W]: the outputs before the segments, then theirs
    T *ends;       // [order][order][W]: entry (k, j) is what the output k + 1 steps before a segment adds to its j-th last
    double *end;   // the same of constant coefficients
    double *wide;  // [2 order + steps], to make them
  };

  Memory Take(Arena &arena) const {
    const int64_t varying = single_.IsConstant() ? 0 : 1, constant = 1 - varying;
    Memory m;
    m.single_a = arena.Take<T>(single_.tile * order_);
    m.a = arena.Take<T>((varying ? steps_ : 1) * order_ * W);
    m.x = arena.Take<T>(steps_ * W);
    m.rows = arena.Take<T>((order_ + steps_) * W);
    m.ends = arena.Take<T>(varying * order_ * order_ * W);
    m.end = arena.Take<double>(constant * order_ * order_);
    m.wide = arena.Take<double>(constant * (2 * order_ + steps_));
    return m;
  }

  // H of constant coefficients, which a segment then has in every lane; false where it is too large.
  bool ConstantResponses(const T *a, const Memory &m) const {
    double *const exact = m.wide, *const h = m.wide + order_;
    for (int64_t k = 0; k < order_; ++k) {
      exact[k] = static_cast<double>(a[k]);
      Store<W>(m.a + k * W, Broadcast<T, W>(a[k]));
    }
    double sums[kMostStates] = {};
    for (int64_t k = 0; k < order_; ++k) {
      memset(h, 0, static_cast<size_t>(order_ + steps_) * sizeof(double));
      h[steps_ + k] = 1;
      Filter<double, 1>::SingleSteps(h + steps_ - 1, steps_, exact, 0, order_);
      for (int64_t j = 0; j < order_; ++j) {
        const double response = h[j];
        m.end[k * order_ + j] = response;
        sums[j] += __builtin_fabs(response);
        if (!(sums[j] <= kLargestInDouble)) return false;
      }
    }
    return true;
  }

  // The same of varying ones, of every lane.
  bool VaryingResponses(const Memory &m) const {
    Vec<T, W> sums[W / 4 > 0 ? W / 4 : 1] = {};
    for (int64_t k = 0; k < order_; ++k) {
      memset(m.rows, 0, static_cast<size_t>((order_ + steps_) * W) * sizeof(T));
      Store<W>(m.rows + (order_ - 1 - k) * W, Broadcast<T, W>(1));
      wide_.Steps(m.rows + order_ * W, steps_, m.a, order_ * W);
      for (int64_t j = 0; j < order_; ++j) {
        const Vec<T, W> response = Load<W>(m.rows + (order_ + steps_ - 1 - j) * W);
        Store<W>(m.ends + (k * order_ + j) * W, response);
        sums[j] += response < 0 ? -response : response;
      }
    }
    for (int64_t j = 0; j < order_; ++j)
      for (int l = 0; l < W; ++l)
        if (!(static_cast<double>(sums[j][l]) <= kLargest)) return false;
    return true;
  }

  // Steps [t, t + W steps); false, and nothing is written, where H is too large.
  bool RunChunk(const Column &single, int64_t t, const Memory &m) const {
    const bool is_constant = single_.IsConstant();
    const int64_t step = is_constant ? 0 : order_ * W;
    const auto spread = [&](const auto &from, auto to) {
      for (int l = 0; l < W; ++l) to.at[l] = from.at[0] + l * steps_ * from.time;
      to.time = from.time;
      to.is_adjacent = false;
      to.count = W;
      return to;
    };
    if (!is_constant) {
      wide_.PackPresent(spread(single.a, Sequences<S, W>{}), t, steps_, m.a);
      if (!VaryingResponses(m)) return false;
    }
    spread(single.x, Sequences<S, W>{}).Pack(t, steps_, m.x);
    T *const outputs = m.rows + order_ * W;
    memset(m.rows, 0, static_cast<size_t>(order_ * W) * sizeof(T));
    memcpy(outputs, m.x, static_cast<size_t>(steps_ * W) * sizeof(T));
    wide_.Steps(outputs, steps_, m.a, step);
    Carry(single_.Before(single), m);
    memcpy(outputs, m.x, static_cast<size_t>(steps_ * W) * sizeof(T));
    wide_.Steps(outputs, steps_, m.a, step);
    spread(single.y, Sequences<S, W, S>{}).Unpack(t, steps_, outputs);
    return true;
  }

  // Puts what comes before every segment into rows, from what comes before the first one, which becomes what comes after
  // the last.
  void Carry(T *before, const Memory &m) const {
    for (int lane = 0; lane < W; ++lane) {
      double after[kMostStates];
      for (int64_t j = 0; j < order_; ++j) after[j] = static_cast<double>(m.rows[(order_ + steps_ - 1 - j) * W + lane]);
      for (int64_t k = 0; k < order_; ++k) {
        const double s = static_cast<double>(before[k]);
        m.rows[(order_ - 1 - k) * W + lane] = before[k];
        for (int64_t j = 0; j < order_; ++j) {
          const int64_t entry = k * order_ + j;
          after[j] += s * (single_.IsConstant() ? m.end[entry] : static_cast<double>(m.ends[entry * W + lane]));
        }
      }
      for (int64_t j = 0; j < order_; ++j) before[j] = static_cast<T>(after[j]);
    }
  }
};

template <class S>
convscan_status RunSegmented(const convscan_allpole &p) {
  const SegmentedFilter<S> filter(p);
  bool failed = false;
  ParallelFor(p.batch * p.channels, p.threads, [&](int64_t lane) {
    void *const workspace = Workspace(filter.Bytes());
    if (workspace == nullptr) return __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
    filter.Run(lane, workspace);
  });
  return failed ? CONVSCAN_OUT_OF_MEMORY : CONVSCAN_OK;
}

template <class S, int W>
convscan_status RunFilter(const convscan_allpole &p) {
  const Filter<S, W> filter(p);
  const int64_t work = p.batch * p.length * p.channels * p.order, vectors = CeilDiv(p.batch * p.channels, W);
  const int threads = work < kSerialWork ? 1 : p.threads > 0 ? p.threads : ThreadCount();
  // Fewer vectors per task where threads would idle.
  const int64_t columns = Max(1, Min(kColumns, vectors / (2 * threads)));
  bool failed = false;
  ParallelFor(CeilDiv(vectors, columns), threads, [&](int64_t task) {
    void *const workspace = Workspace(filter.Bytes());
    if (workspace == nullptr) return __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
    filter.Run(task * columns, Min((task + 1) * columns, vectors), workspace);
  });
  return failed ? CONVSCAN_OUT_OF_MEMORY : CONVSCAN_OK;
}

}  // namespace

convscan_status AllpoleFilter(const convscan_allpole &p) {
  return WithRealStorage(p.dtype, [&](auto type) {
    using S = typename decltype(type)::Storage;
    constexpr int W = kLanes<Compute<S>>;
    if (SegmentedFilter<S>::Suits(p)) return RunSegmented<S>(p);
    // A vector mostly of repetitions would cost more than its few sequences one by one.
    return 4 * p.batch * p.channels <= W ? RunFilter<S, 1>(p) : RunFilter<S, W>(p);
  });
}

}  // namespace convscan::CONVSCAN_ISA
