// Products with the Vandermonde matrix a[n]^l and its transpose, which is never stored.
//
// Time is cut into rows of `tile` steps: l = j tile + t. A power is then a product of two, a^l = (a^tile)^j a^t, and
// the whole sum over terms a product of two small real matrices,
//
//   y[j,t] = sum_n  Re(c a^(tile j)) Re(a^t) - Im(c a^(tile j)) Im(a^t),
//
// two multiply-adds for each term and step, as many as reading the stored matrix would take. Both factors are powers in
// double precision, about sqrt(L) of each, rounded once: the error of a float32 result does not grow with l. Nothing
// takes a logarithm, so that a = 0 is a number like any other.
#include "convscan.h"
#include "core/arena.h"
#include "core/parallel.h"
#include "core/vector.h"
#include "core/workspace.h"
#include "ssm/powers.h"

namespace convscan::CONVSCAN_ISA {
namespace {

// The register tile: rows of the left factor times vectors of the right one fill the registers.
constexpr int kTileRows = 4, kTileVectors = kVectorRegisters >= 32 ? 6 : 3;
template <class T>
constexpr int64_t kPanel = int64_t{kTileVectors} * kLanes<T>;
// Rows and steps of a task's tables: with kTerms terms, 160 KiB in single precision.
constexpr int64_t kMaxTile = 128, kMaxRows = 192;
// Below this many products, waking threads takes longer than multiplying.
constexpr int64_t kSmallProblem = 1 << 17;

template <class T>
using Sums = Vec<T>[kTileRows][kTileVectors];

// sums += left right, where left[r,k] is at left[r * row + k] and right[k] at right + k * panel_stride.
template <class T>
CONVSCAN_INLINE void MultiplyTile(int64_t depth, const T *left, int64_t row, const T *right, int64_t panel_stride,
                                  Sums<T> &sums) {
  for (int64_t k = 0; k < depth; ++k) {
    Vec<T> panel[kTileVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kTileVectors; ++v) panel[v] = Load<kLanes<T>>(right + k * panel_stride + v * kLanes<T>);
#pragma GCC unroll 4
    for (int r = 0; r < kTileRows; ++r) {
      const Vec<T> x = Broadcast<T>(left[r * row + k]);
#pragma GCC unroll 8
      for (int v = 0; v < kTileVectors; ++v) sums[r][v] += x * panel[v];
    }
  }
}

// The number as T, without the subnormal ones: they cost some processors a hundred cycles each and add nothing.
template <class T>
CONVSCAN_INLINE T Narrow(double value) {
  constexpr double kSmallest = sizeof(T) == 4 ? 0x1p-126 : 0x1p-1022;
  return value > -kSmallest && value < kSmallest ? T(0) : static_cast<T>(value);
}

// The numbers as T: their real parts, then their imaginary ones, times `sign`.
template <class T>
CONVSCAN_INLINE void NarrowTerms(const Terms &terms, double sign, T *parts) {
  for (int64_t i = 0; i < terms.size; ++i) parts[i] = Narrow<T>(terms.re[i]);
  for (int64_t i = 0; i < terms.size; ++i) parts[terms.size + i] = Narrow<T>(sign * terms.im[i]);
}

// Steps of a tile for this many exponents: about the square root, in whole panels.
template <class T>
int64_t TileSteps(int64_t exponents) {
  int64_t steps = kPanel<T>;
  while (steps + kPanel<T> <= kMaxTile && steps * steps < exponents) steps += kPanel<T>;
  return steps;
}

// ---- y[l] = Re sum_n c[n] l (l-1) ... (l-order+1) a[n]^(l-order) ----

template <class T>
struct ProductTables {
  T *right;  // [2 size][tile]: real parts of a^t, then imaginary ones
  T *left;   // [rows][2 size]: those of c a^(tile j), the imaginary ones negated
};

template <class T>
ProductTables<T> TakeProductTables(Arena &arena, int64_t tile) {
  T *const right = arena.Take<T>(2 * kTerms * tile);
  return {right, arena.Take<T>(kMaxRows * 2 * kTerms)};
}

// y[m + s] = or += the weighted sums, s < steps. Most steps are a whole panel without weights.
template <class T>
CONVSCAN_INLINE void AddSums(int order, bool is_first, int64_t m, int64_t steps, const Vec<T> (&sums)[kTileVectors],
                             T *y) {
  constexpr int W = kLanes<T>;
  T part[kPanel<T>];
  for (int v = 0; v < kTileVectors; ++v) {
    if (order == 0 && steps == kPanel<T>) {
      Store<W>(y + m + v * W, is_first ? sums[v] : Load<W>(y + m + v * W) + sums[v]);
    } else {
      Store<W>(part + v * W, sums[v]);
    }
  }
  if (order == 0 && steps == kPanel<T>) return;
  for (int64_t s = 0; s < steps; ++s) {
    const T weighted = part[s] * static_cast<T>(FallingFactorial(m + s + order, order));
    y[m + s] = is_first ? weighted : y[m + s] + weighted;
  }
}

// right[2 size][tile]: real parts of base^t, then imaginary ones; leaves base^tile in power. Stored in vectors along t:
// one number after the other would touch as many lines of memory as there are rows for every step.
template <class T>
void FillPowers(const Terms &base, int64_t tile, Terms &power, T *right) {
  constexpr int W = kLanes<T>;
  T parts[W][2 * kTerms];
  power.Fill(1);
  for (int64_t t = 0; t < tile; t += W) {
    for (int i = 0; i < W; ++i) {
      NarrowTerms(power, 1, parts[i]);
      power.Multiply(base);
    }
    for (int64_t k = 0; k < 2 * base.size; k += W) {
      Vec<T> square[W];
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) square[i] = Load<W>(parts[i] + k);
      Transpose<T>(square);
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) Store<W>(right + (k + i) * tile + t, square[i]);
    }
  }
}

// The exponents [first, end) of one row of the problem, by at most kMaxRows rows of `tile`.
template <class T>
void ProductTask(const convscan_vandermonde &p, int64_t row, int64_t tile, int64_t first, int64_t end,
                 const ProductTables<T> &tables) {
  T *const y = static_cast<T *>(p.y) + row * p.y_row_stride + p.order;
  const int64_t rows = CeilDiv(CeilDiv(end - first, tile), kTileRows) * kTileRows;
  for (int64_t n = 0; n < p.terms; n += kTerms) {
    const int64_t count = Min(kTerms, p.terms - n);
    Terms base(count), power(count), anchor(count);
    base.Gather(p.a_dtype, p.a, row * p.a_row_stride + n * p.a_term_stride, p.a_term_stride, count);
    anchor.Gather(p.dtype, p.c, row * p.c_row_stride + n * p.c_term_stride, p.c_term_stride, count);
    anchor.MultiplyPower(base, first);
    FillPowers(base, tile, power, tables.right);
    const int64_t depth = 2 * base.size;
    for (int64_t j = 0; j < rows; ++j) {
      NarrowTerms(anchor, -1, tables.left + j * depth);
      anchor.Multiply(power);
    }
    for (int64_t t = 0; t < tile; t += kPanel<T>)
      for (int64_t j = 0; j < rows; j += kTileRows) {
        Sums<T> sums{};
        MultiplyTile<T>(depth, tables.left + j * depth, depth, tables.right + t, tile, sums);
        for (int r = 0; r < kTileRows; ++r) {
          const int64_t m = first + (j + r) * tile + t;
          if (m < end) AddSums<T>(p.order, n == 0, m, Min(kPanel<T>, end - m), sums[r], y);
        }
      }
  }
}

template <class T>
convscan_status Product(const convscan_vandermonde &p) {
  const int64_t exponents = Max(0, p.length - p.order);
  for (int64_t row = 0; row < p.rows; ++row) {
    T *const y = static_cast<T *>(p.y) + row * p.y_row_stride;
    __builtin_memset(y, 0, sizeof(T) * static_cast<size_t>(p.terms == 0 ? p.length : Min(p.order, p.length)));
  }
  if (exponents == 0 || p.terms == 0) return CONVSCAN_OK;
  const int64_t tile = TileSteps<T>(exponents), rows = CeilDiv(exponents, tile);
  // Even chunks: each makes its own table of a^t.
  const int64_t chunk = tile * CeilDiv(rows, CeilDiv(rows, kMaxRows)), chunks = CeilDiv(exponents, chunk);
  Arena counting(nullptr);
  TakeProductTables<T>(counting, tile);
  bool failed = false;
  ParallelFor(p.rows * chunks, p.rows * p.terms * exponents < kSmallProblem ? 1 : p.threads, [&](int64_t task) {
    void *const memory = Workspace(counting.Used());
    if (memory == nullptr) {
      __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
      return;
    }
    Arena arena(memory);
    const int64_t first = task % chunks * chunk;
    ProductTask<T>(p, task / chunks, tile, first, Min(first + chunk, exponents), TakeProductTables<T>(arena, tile));
  });
  return failed ? CONVSCAN_OUT_OF_MEMORY : CONVSCAN_OK;
}

// ---- w[n] = sum_l g[l] l (l-1) ... (l-order+1) a[n]^(l-order) ----

// Rows of tiles whose products with the powers are kept at a time.
constexpr int64_t kAdjointRows = 4 * kTileRows;

template <class T>
struct AdjointTables {
  T *right;     // [tile][columns]: real parts of a^t, then imaginary ones, then zeros to a whole panel
  T *left;      // [kAdjointRows][tile]: the weighted g
  T *products;  // [kAdjointRows][columns]
};

template <class T>
AdjointTables<T> TakeAdjointTables(Arena &arena, int64_t tile, int64_t columns) {
  T *const right = arena.Take<T>(tile * columns);
  T *const left = arena.Take<T>(kAdjointRows * tile);
  return {right, left, arena.Take<T>(kAdjointRows * columns)};
}

// Terms [n, n + count) of one row of the problem.
template <class T>
void AdjointTask(const convscan_vandermonde_adjoint &p, int64_t row, int64_t n, int64_t count, int64_t tile,
                 int64_t columns, const AdjointTables<T> &tables) {
  const int64_t exponents = Max(0, p.length - p.order);
  Terms base(count), power(count), anchor(count), total(count);
  base.Gather(p.a_dtype, p.a, row * p.a_row_stride + n * p.a_term_stride, p.a_term_stride, count);
  power.Fill(1);
  for (int64_t t = 0; t < tile; ++t) {
    T *const entries = tables.right + t * columns;
    NarrowTerms(power, 1, entries);
    for (int64_t i = 2 * power.size; i < columns; ++i) entries[i] = 0;
    power.Multiply(base);
  }
  anchor.Fill(1);
  total.Fill(0);
  const T *const g = static_cast<const T *>(p.g) + row * p.g_row_stride + p.order * p.g_time_stride;
  for (int64_t first = 0; first < exponents; first += kAdjointRows * tile) {
    const int64_t steps = Min(kAdjointRows * tile, exponents - first);
    for (int64_t s = 0; s < kAdjointRows * tile; ++s) {
      const T sample = s < steps ? g[(first + s) * p.g_time_stride] : T(0);
      tables.left[s] = p.order == 0 || s >= steps
                           ? sample
                           : sample * static_cast<T>(FallingFactorial(first + s + p.order, p.order));
    }
    const int64_t rows = CeilDiv(steps, tile);
    for (int64_t column = 0; column < columns; column += kPanel<T>)
      for (int64_t j = 0; j < rows; j += kTileRows) {
        Sums<T> sums{};
        MultiplyTile<T>(tile, tables.left + j * tile, tile, tables.right + column, columns, sums);
        for (int r = 0; r < kTileRows; ++r)
          for (int v = 0; v < kTileVectors; ++v)
            Store<kLanes<T>>(tables.products + (j + r) * columns + column + v * kLanes<T>, sums[r][v]);
      }
    for (int64_t j = 0; j < rows; ++j) {
      const T *const re = tables.products + j * columns, *const im = re + total.size;
      for (int64_t i = 0; i < count; ++i) {
        total.re[i] += anchor.re[i] * re[i] - anchor.im[i] * im[i];
        total.im[i] += anchor.re[i] * im[i] + anchor.im[i] * re[i];
      }
      anchor.Multiply(power);
    }
  }
  T *const w = static_cast<T *>(p.w) + 2 * (row * p.w_row_stride + n);
  for (int64_t i = 0; i < count; ++i) {
    w[2 * i] = static_cast<T>(total.re[i]);
    w[2 * i + 1] = static_cast<T>(total.im[i]);
  }
}

template <class T>
convscan_status Adjoint(const convscan_vandermonde_adjoint &p) {
  const int64_t tile = TileSteps<T>(Max(0, p.length - p.order)), blocks = CeilDiv(p.terms, kTerms);
  const int64_t columns = CeilDiv(2 * Terms::SizeFor(Min(kTerms, p.terms)), kPanel<T>) * kPanel<T>;
  Arena counting(nullptr);
  TakeAdjointTables<T>(counting, tile, columns);
  bool failed = false;
  ParallelFor(p.rows * blocks, p.rows * p.terms * p.length < kSmallProblem ? 1 : p.threads, [&](int64_t task) {
    void *const memory = Workspace(counting.Used());
    if (memory == nullptr) {
      __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
      return;
    }
    Arena arena(memory);
    const int64_t n = task % blocks * kTerms;
    AdjointTask<T>(p, task / blocks, n, Min(kTerms, p.terms - n), tile, columns,
                   TakeAdjointTables<T>(arena, tile, columns));
  });
  return failed ? CONVSCAN_OUT_OF_MEMORY : CONVSCAN_OK;
}

}  // namespace

convscan_status Vandermonde(const convscan_vandermonde &problem) {
  return problem.dtype == CONVSCAN_COMPLEX64 ? Product<float>(problem) : Product<double>(problem);
}

convscan_status VandermondeAdjoint(const convscan_vandermonde_adjoint &problem) {
  return problem.dtype == CONVSCAN_COMPLEX64 ? Adjoint<float>(problem) : Adjoint<double>(problem);
}

}  // namespace convscan::CONVSCAN_ISA
