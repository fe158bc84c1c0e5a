// All-pole filters, y[i] = x[i] + sum_k a_k[i] y[i-k], 1 <= k <= order, and their transposes, which run from the end.
//
// A step has to wait for the one before it: lanes are sequences, adjacent channels or any others. A tile of time is
// packed as rows of W lanes, with the outputs before it in front, so that a step is `order` multiply-adds of rows; all
// but the newest wait for nothing that the step before has not long finished. A single sequence sums its older terms
// in vectors. A transpose is the same filter with time reversed and its coefficients sheared: strides say so.
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
    T *rows;      // [order + tile][W]: the outputs before a tile, then the tile
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
    if (p.state == nullptr) memset(c.rows, 0, static_cast<size_t>(order * W) * sizeof(T));
    else c.state.Pack(0, order, c.rows);
    for (int64_t k = 0; IsConstant() && k < order; ++k) Store<W>(c.constant + Slot(k) * W, c.a.Gather(k * a_order));
  }

  // Where a step has its coefficient k+1: a single sequence has them in the order of the outputs that they multiply.
  int64_t Slot(int64_t k) const { return W > 1 ? k : order - 1 - k; }

  // The coefficients of steps [t, t + length). Those of outputs before the first one, where those are zeros, are not
  // there: of a transpose they would lie beyond the end of the array.
  void PackCoefficients(const Column &c, int64_t t, int64_t length, T *rows) const {
    int64_t i = 0;
    for (; p.state == nullptr && i < length && t + i < order; ++i)
      for (int64_t k = 0; k < order; ++k)
        Store<W>(rows + (i * order + Slot(k)) * W,
                 k < t + i ? c.a.Gather((t + i) * a_time + k * a_order) : Vec<T, W>{});
    if (W > 1 && a_order == 1 && a_time == order && !c.a.is_adjacent)
      return c.a.PackRun((t + i) * order, (length - i) * order, rows + i * order * W);
    for (; i < length; ++i) {
      T *const row = rows + i * order * W;
      if (W > 1 && a_order == 1 && !c.a.is_adjacent) {
        c.a.PackRun((t + i) * a_time, order, row);
        continue;
      }
      if (W == 1 && a_order == 1) {
        const S *const from = c.a.at[0] + (t + i) * a_time;
        for (int64_t k = 0; k < order; ++k) row[order - 1 - k] = LoadScalar(from + k);
        continue;
      }
      for (int64_t k = 0; k < order; ++k) Store<W>(row + Slot(k) * W, c.a.Gather((t + i) * a_time + k * a_order));
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

  // The same for a single sequence.
  void SingleSteps(T *rows, int64_t length, const T *a, int64_t step) const {
    constexpr int V = kLanes<T>;
    const int64_t older = order > kNewest ? (order - kNewest) / V * V : 0;
    T last = rows[-1];
    for (int64_t i = 0; i < length; ++i, ++rows, a += step) {
      const T *const past = rows - order;
      T even = *rows, odd = 0;
      if (older > 0) {
        Vec<T> sum{};
        for (int64_t m = 0; m < older; m += V) sum += Load<V>(a + m) * Load<V>(past + m);
#pragma GCC unroll 16
        for (int l = 0; l < V; l += 2) {
          even += sum[l];
          odd += sum[l + 1];
        }
      }
      int64_t m = older;
      for (; m + 2 < order; m += 2) {
        even += a[m] * past[m];
        odd += a[m + 1] * past[m + 1];
      }
      if (m + 1 < order) even += a[m] * past[m];
      *rows = last = (even + odd) + a[order - 1] * last;
    }
  }

  // Vectors of lanes [begin, end), no more than kColumns.
  void Run(int64_t begin, int64_t end, void *workspace) const {
    Arena arena(workspace);
    Column columns[kColumns];
    for (int64_t v = begin; v < end; ++v) Begin(columns[v - begin] = At(v, arena));
    T *const varying = arena.Take<T>(tile * order * W);
    for (int64_t t = 0; t < p.length; t += tile) {
      const int64_t length = Min(tile, p.length - t);
      for (int64_t v = 0; v < end - begin; ++v) {
        Column &c = columns[v];
        T *const rows = c.rows + order * W;
        c.x.Pack(t, length, rows);
        if (!IsConstant()) PackCoefficients(c, t, length, varying);
        const T *const a = IsConstant() ? c.constant : varying;
        const int64_t step = IsConstant() ? 0 : order * W;
        if constexpr (W == 1) SingleSteps(rows, length, a, step);
        else Steps(rows, length, a, step);
        c.y.Unpack(t, length, rows);
        memmove(c.rows, c.rows + length * W, static_cast<size_t>(order * W) * sizeof(T));
      }
    }
  }
};

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
    // A vector mostly of repetitions would cost more than its few sequences one by one.
    return 4 * p.batch * p.channels <= W ? RunFilter<S, 1>(p) : RunFilter<S, W>(p);
  });
}

}  // namespace convscan::CONVSCAN_ISA
