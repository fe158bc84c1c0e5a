// Products with the Cauchy matrix 1 / (z[w] - lambda[n])^power, which is never stored.
//
// Vectors run along the points w; each reciprocal is made once, in registers, and meets the coefficients of every right
// hand side. Sums over terms are carried in blocks, and the blocks added in double precision, so that the error of
// a float32 result does not grow with the number of terms. The transpose of the matrix is a Cauchy matrix too, with
// points and terms exchanged: gradients run here as well.
#include "convscan.h"
#include "core/arena.h"
#include "core/parallel.h"
#include "core/vector.h"
#include "core/workspace.h"

namespace convscan::CONVSCAN_ISA {
namespace {

// Points of a task, terms of a block, right hand sides that share a reciprocal.
constexpr int64_t kPoints = 256, kBlock = 128;
constexpr int kSides = 4;
// Below this many reciprocals, waking threads takes longer than dividing.
constexpr int64_t kSmallProblem = 1 << 14;

// Interleaved complex numbers, taken apart.
template <class T>
struct Parts {
  T *re, *im;

  void Gather(const void *numbers, int64_t offset, int64_t stride, int64_t count) const {
    const T *const from = static_cast<const T *>(numbers) + 2 * offset;
    for (int64_t i = 0; i < count; ++i) {
      re[i] = from[2 * i * stride];
      im[i] = from[2 * i * stride + 1];
    }
  }
};

template <class T>
Parts<T> TakeParts(Arena &arena, int64_t count) {
  T *const re = arena.Take<T>(count);
  return {re, arena.Take<T>(count)};
}

template <class T>
struct CauchyTables {
  Parts<T> z, lambda, v[kSides];
  Parts<double> total[kSides];
};

template <class T>
CauchyTables<T> TakeTables(Arena &arena) {
  CauchyTables<T> tables;
  tables.z = TakeParts<T>(arena, kPoints);
  tables.lambda = TakeParts<T>(arena, kBlock);
  for (Parts<T> &v : tables.v) v = TakeParts<T>(arena, kBlock);
  for (Parts<double> &total : tables.total) total = TakeParts<double>(arena, kPoints);
  return tables;
}

// Adds a block of `terms` to the totals of all points from w on that V vectors hold, for S right hand sides.
template <class T, int S, int V>
void AddBlock(const CauchyTables<T> &tables, int64_t w, int64_t terms, int power) {
  constexpr int W = kLanes<T>;
  Vec<T> z_re[V], z_im[V], sum_re[S][V] = {}, sum_im[S][V] = {};
#pragma GCC unroll 2
  for (int i = 0; i < V; ++i) {
    z_re[i] = Load<W>(tables.z.re + w + i * W);
    z_im[i] = Load<W>(tables.z.im + w + i * W);
  }
  for (int64_t n = 0; n < terms; ++n) {
    const Vec<T> lambda_re = Broadcast<T>(tables.lambda.re[n]), lambda_im = Broadcast<T>(tables.lambda.im[n]);
#pragma GCC unroll 2
    for (int i = 0; i < V; ++i) {
      const Vec<T> re = z_re[i] - lambda_re, im = z_im[i] - lambda_im;
      const Vec<T> inverse = T(1) / (re * re + im * im);
      const Vec<T> once_re = re * inverse, once_im = -im * inverse;
      Vec<T> all_re = once_re, all_im = once_im;
      for (int k = 1; k < power; ++k) {
        const Vec<T> product = SubtractProduct(all_re * once_re, all_im, once_im);
        all_im = all_re * once_im + all_im * once_re;
        all_re = product;
      }
#pragma GCC unroll 4
      for (int s = 0; s < S; ++s) {
        const Vec<T> v_re = Broadcast<T>(tables.v[s].re[n]), v_im = Broadcast<T>(tables.v[s].im[n]);
        sum_re[s][i] += v_re * all_re;
        sum_re[s][i] -= v_im * all_im;
        sum_im[s][i] += v_re * all_im;
        sum_im[s][i] += v_im * all_re;
      }
    }
  }
  for (int s = 0; s < S; ++s)
    for (int i = 0; i < V; ++i)
      for (int lane = 0; lane < W; ++lane) {
        tables.total[s].re[w + i * W + lane] += static_cast<double>(sum_re[s][i][lane]);
        tables.total[s].im[w + i * W + lane] += static_cast<double>(sum_im[s][i][lane]);
      }
}

// Right hand sides [side, side + S) at `count` points from w on; the tables hold the points.
template <class T, int S>
void AddSides(const convscan_cauchy &p, int64_t row, int64_t side, int64_t w, int64_t count,
              const CauchyTables<T> &tables) {
  constexpr int V = S <= 2 ? 2 : 1;  // vectors at once: as many as keep sums and reciprocals in 16 registers
  for (const Parts<double> &total : tables.total) {
    __builtin_memset(total.re, 0, sizeof(double) * kPoints);
    __builtin_memset(total.im, 0, sizeof(double) * kPoints);
  }
  for (int64_t n = 0; n < p.terms; n += kBlock) {
    const int64_t terms = Min(kBlock, p.terms - n);
    tables.lambda.Gather(p.lambda, row * p.lambda_row_stride + n * p.lambda_term_stride, p.lambda_term_stride, terms);
    for (int s = 0; s < S; ++s)
      tables.v[s].Gather(p.v, (side + s) * p.v_side_stride + row * p.v_row_stride + n * p.v_term_stride,
                         p.v_term_stride, terms);
    for (int64_t i = 0; i < count; i += V * kLanes<T>) AddBlock<T, S, V>(tables, i, terms, p.power);
  }
  for (int s = 0; s < S; ++s) {
    T *const k = static_cast<T *>(p.k) + 2 * ((side + s) * p.k_side_stride + row * p.k_row_stride + w);
    for (int64_t i = 0; i < count; ++i) {
      k[2 * i] = static_cast<T>(tables.total[s].re[i]);
      k[2 * i + 1] = static_cast<T>(tables.total[s].im[i]);
    }
  }
}

template <class T>
convscan_status Cauchy(const convscan_cauchy &p) {
  Arena counting(nullptr);
  TakeTables<T>(counting);
  const int64_t tiles = CeilDiv(p.points, kPoints);
  bool failed = false;
  ParallelFor(p.rows * tiles, p.rows * p.points * p.terms < kSmallProblem ? 1 : p.threads, [&](int64_t task) {
    void *const memory = Workspace(counting.Used());
    if (memory == nullptr) {
      __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
      return;
    }
    Arena arena(memory);
    const CauchyTables<T> tables = TakeTables<T>(arena);
    const int64_t row = task / tiles, w = task % tiles * kPoints, count = Min(kPoints, p.points - w);
    // Points behind the last one divide by something, and are not stored.
    for (int64_t i = count; i < kPoints; ++i) tables.z.re[i] = tables.z.im[i] = T(1);
    tables.z.Gather(p.z, row * p.z_row_stride + w * p.z_point_stride, p.z_point_stride, count);
    int64_t side = 0;
    for (; side + kSides <= p.sides; side += kSides) AddSides<T, kSides>(p, row, side, w, count, tables);
    if (p.sides - side == 3) AddSides<T, 3>(p, row, side, w, count, tables);
    if (p.sides - side == 2) AddSides<T, 2>(p, row, side, w, count, tables);
    if (p.sides - side == 1) AddSides<T, 1>(p, row, side, w, count, tables);
  });
  return failed ? CONVSCAN_OUT_OF_MEMORY : CONVSCAN_OK;
}

}  // namespace

convscan_status CauchyProduct(const convscan_cauchy &problem) {
  return problem.dtype == CONVSCAN_COMPLEX64 ? Cauchy<float>(problem) : Cauchy<double>(problem);
}

}  // namespace convscan::CONVSCAN_ISA
