// Conv1D: y = x w + b, and its gradients.
#include "common.h"

using namespace ms_gpt;

namespace {

constexpr int64_t kRows = 256;
// So few rows take as long as reading the weights does, and oneDNN would copy the weights first.
constexpr int64_t kFewRows = 16, kColumns = 512;

// y (R, O) += x (R, I) w (I, O) for a few rows: each number of w is read once, in the order of memory.
void few_rows(int64_t rows, int64_t in, int64_t out, const float *x, const float *w, float *y) {
#pragma omp parallel
  {
    auto [begin, end] = share(out, omp_get_thread_num(), omp_get_num_threads(), 16);
    const int64_t step = rows > 2 ? kColumns : out;
    for (int64_t from = begin; from < end; from += step) {
      const int64_t to = std::min(from + step, end);
      int64_t k = 0;
      for (; k + 4 <= in; k += 4) {
        const float *w0 = w + k * out, *w1 = w0 + out, *w2 = w1 + out, *w3 = w2 + out;
        for (int64_t i = 0; i < rows; ++i) {
          const float *a = x + i * in + k;
          const float x0 = a[0], x1 = a[1], x2 = a[2], x3 = a[3];
          float *to_row = y + i * out;
#pragma omp simd
          for (int64_t j = from; j < to; ++j) to_row[j] += x0 * w0[j] + x1 * w1[j] + (x2 * w2[j] + x3 * w3[j]);
        }
      }
      for (; k < in; ++k) {
        for (int64_t i = 0; i < rows; ++i) {
          const float x0 = x[i * in + k];
#pragma omp simd
          for (int64_t j = from; j < to; ++j) y[i * out + j] += x0 * w[k * out + j];
        }
      }
    }
  }
}

inline float dot(const float *a, const float *b, int64_t size) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t k = 0; k < size; ++k) sum += a[k] * b[k];
  return sum;
}

}  // namespace

// x (R, I), w (I, O), b (O) -> y (R, O)
KERNEL(linear) {
  const float *x = FLOATS(0), *w = FLOATS(1), *b = FLOATS(2);
  float *y = FLOATS(3);
  const int64_t in = shapes[1][0], out = shapes[1][1], rows = size_of(shapes[0], ndims[0]) / in;
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < rows; ++i) std::copy_n(b, out, y + i * out);
  if (rows <= kFewRows) {
    few_rows(rows, in, out, x, w, y);
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
    auto [from, to] = share(out, omp_get_thread_num(), omp_get_num_threads(), 16);
    std::fill(db + from, db + to, 0.0f);
    for (int64_t i = 0; i < rows; ++i) {
#pragma omp simd
      for (int64_t j = from; j < to; ++j) db[j] += dy[i * out + j];
    }
  }
  return 0;
}

// x (R, D), table (V, D) -> y (R, V)
KERNEL(project) {
  const float *x = FLOATS(0), *table = FLOATS(1);
  const int64_t width = shapes[1][1], size = shapes[1][0], rows = size_of(shapes[0], ndims[0]) / width;
  float *y = FLOATS(2);
  if (rows <= kFewRows) {
#pragma omp parallel for schedule(static)
    for (int64_t j = 0; j < size; ++j) {
      for (int64_t i = 0; i < rows; ++i) y[i * size + j] = dot(x + i * width, table + j * width, width);
    }
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
