// The small dense products, compiled once per instruction set like the kernels that use them. Entries are multiples of
// 1/128 so that every sum is exact: results are compared for equality, whatever the order of summation.
#include "core/matmul.h"

#include "check.h"

namespace convscan::CONVSCAN_ISA {
namespace {

using tests::Random;

constexpr int64_t kSizes[] = {0, 1, 2, 3, 5, 6, 7, 8, 11, 12, 13, 15, 16, 17, 23, 25, 31, 33, 40, 64, 67};
constexpr int kTrials = 200;
constexpr double kUntouched = 77;

// A row-major matrix whose rows are `row` apart, with a number between them that no product may use or change.
template <class T>
struct Matrix {
  std::vector<T> entries;
  int64_t rows, columns, row;

  Matrix(int64_t rows, int64_t columns, int64_t gap, Random *random)
      : entries(static_cast<size_t>(rows * (columns + gap)), static_cast<T>(random ? NAN : kUntouched)),
        rows(rows),
        columns(columns),
        row(columns + gap) {
    for (int64_t i = 0; random && i < rows; ++i)
      for (int64_t j = 0; j < columns; ++j) At(i, j) = static_cast<T>(random->Value());
  }
  T &At(int64_t i, int64_t j) { return entries[static_cast<size_t>(i * row + j)]; }
  T *data() { return entries.data(); }
};

template <bool kAccumulate, class T>
void CheckProducts(Random &random) {
  const int64_t rows = random.Pick(kSizes), columns = random.Pick(kSizes), depth = random.Pick(kSizes);
  const int64_t gap = random.Below(3);
  tests::context = "matmul " + std::to_string(rows) + " x " + std::to_string(columns) + " x " + std::to_string(depth);
  Matrix<T> a(rows, depth, gap, &random), transposed_a(depth, rows, gap, nullptr);
  Matrix<T> b(depth, columns, gap, &random), transposed_b(columns, depth, gap, nullptr);
  TransposeTile(rows, depth, a.data(), a.row, transposed_a.data(), transposed_a.row);
  TransposeTile(depth, columns, b.data(), b.row, transposed_b.data(), transposed_b.row);
  Matrix<T> c(rows, columns, gap, nullptr), with_a(c), with_b(c), scratch(depth, columns, gap, nullptr);
  Multiply<kAccumulate>(rows, columns, depth, RowMajor<T>(a.data(), a.row), b.data(), b.row, c.data(), c.row);
  Multiply<kAccumulate>(rows, columns, depth, RowMajor<T>(transposed_a.data(), transposed_a.row).Transposed(), b.data(),
                        b.row, with_a.data(), c.row);
  MultiplyTransposed<kAccumulate>(rows, columns, depth, RowMajor<T>(a.data(), a.row), transposed_b.data(),
                                  transposed_b.row, with_b.data(), c.row, scratch.data(), scratch.row);
  bool right = true;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < c.row; ++j) {
      double sum = j < columns && !kAccumulate ? 0 : kUntouched;
      for (int64_t k = 0; j < columns && k < depth; ++k)
        sum += static_cast<double>(a.At(i, k)) * static_cast<double>(b.At(k, j));
      for (Matrix<T> *result : {&c, &with_a, &with_b}) right = right && static_cast<double>(result->At(i, j)) == sum;
    }
  CHECK(right);
}

}  // namespace

void TestMatmul() {
  Random random(9);
  for (int trial = 0; trial < kTrials; ++trial) {
    CheckProducts<false, float>(random);
    CheckProducts<true, float>(random);
    CheckProducts<false, double>(random);
    CheckProducts<true, double>(random);
  }
}

}  // namespace convscan::CONVSCAN_ISA
