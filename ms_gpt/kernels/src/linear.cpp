// Conv1D: y = x w + b, and its gradients.
#include "few_rows.h"

using namespace ms_gpt;

namespace {

constexpr int64_t kRows = 256;

// Call one of the above for all columns, on all threads.
void few_rows(const Few *functions, int64_t rows, int64_t in, int64_t out, const float *x, const float *w, float *y) {
#pragma omp parallel
  {
    const Range mine = share(out, omp_get_thread_num(), omp_get_num_threads(), kColumns);
    functions[rows - 1](in, out, mine.begin, mine.end, x, w, y);
  }
}

}  // namespace

// x (R, I), w (I, O), b (O) -> y (R, O)
KERNEL(linear) {
  const float *x = FLOATS(0), *w = FLOATS(1), *b = FLOATS(2);
  float *y = FLOATS(3);
  const int64_t in = shapes[1][0], out = shapes[1][1], rows = size_of(shapes[0], ndims[0]) / in;
#pragma omp parallel for schedule(static) if (rows * out > kSmall)
  for (int64_t i = 0; i < rows; ++i) std::copy_n(b, out, y + i * out);
  if (rows > 0 && rows <= kFewRows) {
    few_rows(kAddProducts, rows, in, out, x, w, y);
  } else {
    parallel_gemm('n', 'n', rows, out, in, x, in, w, out, 1.0f, y, out);
  }
  return 0;
}

// x (R, I), w (I, O), dy (R, O) -> dx (R, I), dw (I, O), db (O)
KERNEL(linear_grad) {
  const float *x = FLOATS(0), *w = FLOATS(1), *dy = FLOATS(2);
  float *dx = FLOATS(3), *dw = FLOATS(4), *db = FLOATS(5);
  const int64_t in = shapes[1][0], out = shapes[1][1], rows = size_of(shapes[0], ndims[0]) / in;
  parallel_gemm('n', 't', rows, in, out, dy, out, w, out, 0.0f, dx, in);
  // In blocks of rows: a long way down the columns of x is slow where they lie a power of two apart.
  for (int64_t i = 0; i < rows; i += kRows) {
    parallel_gemm('t', 'n', in, out, std::min(kRows, rows - i), x + i * in, in, dy + i * out, out, i ? 1.0f : 0.0f, dw,
                  out);
  }
#pragma omp parallel
  {
    const Range mine = share(out, omp_get_thread_num(), omp_get_num_threads(), 16);
    std::fill(db + mine.begin, db + mine.end, 0.0f);
    for (int64_t i = 0; i < rows; ++i) {
#pragma omp simd
      for (int64_t j = mine.begin; j < mine.end; ++j) db[j] += dy[i * out + j];
    }
  }
  return 0;
}

// x (R, D), table (V, D) -> y (R, V)
KERNEL(project) {
  const float *x = FLOATS(0), *table = FLOATS(1);
  const int64_t width = shapes[1][1], size = shapes[1][0], rows = size_of(shapes[0], ndims[0]) / width;
  float *y = FLOATS(2);
  if (rows > 0 && rows <= kFewRows) {
    few_rows(kDotProducts, rows, width, size, x, table, y);
  } else {
    parallel_gemm('n', 't', rows, size, width, x, width, table, width, 0.0f, y, size);
  }
  return 0;
}

// x (R, D), table (V, D), dy (R, V) -> dx (R, D), dtable (V, D)
KERNEL(project_grad) {
  const float *x = FLOATS(0), *table = FLOATS(1), *dy = FLOATS(2);
  const int64_t width = shapes[1][1], size = shapes[1][0], rows = size_of(shapes[0], ndims[0]) / width;
  parallel_gemm('n', 'n', rows, width, size, dy, size, table, width, 0.0f, FLOATS(3), width);
  parallel_gemm('t', 'n', size, width, rows, dy, size, x, width, 0.0f, FLOATS(4), width);
  return 0;
}
