// What the kernels share: their signature, matrix products, a vectorised exp and the hash behind dropout.
//
// MindSpore calls a kernel with pointers to its inputs and, after them, its outputs, all dense and row-major.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

// oneDNN comes with MindSpore. This build of it runs on the thread that calls it, so the threads are ours.
extern "C" int dnnl_sgemm(char transa, char transb, int64_t m, int64_t n, int64_t k, float alpha, const float *a,
                          int64_t lda, const float *b, int64_t ldb, float beta, float *c, int64_t ldc);

#define KERNEL(name) \
  extern "C" int name(int count, void **params, int *ndims, int64_t **shapes, const char **, void *, void *)

#define FLOATS(i) static_cast<float *>(params[i])
#define INTS(i) static_cast<int32_t *>(params[i])

namespace ms_gpt {

// Waking the threads for fewer elements than this costs more than it saves.
constexpr int64_t kSmall = 16384;

inline int64_t size_of(const int64_t *shape, int ndim) {
  int64_t size = 1;
  for (int i = 0; i < ndim; ++i) size *= shape[i];
  return size;
}

// The largest of at least one number.
inline float largest(const float *numbers, int64_t size) {
  float top = numbers[0];
#pragma omp simd reduction(max : top)
  for (int64_t j = 0; j < size; ++j) top = numbers[j] > top ? numbers[j] : top;
  return top;
}

struct Range {
  int64_t begin, end;
};

// The part of 0..total that one of several threads works on, in whole steps of `unit`.
inline Range share(int64_t total, int part, int parts, int64_t unit = 1) {
  int64_t units = (total + unit - 1) / unit;
  return {std::min(total, units * part / parts * unit), std::min(total, units * (part + 1) / parts * unit)};
}

// c (m, n) = op(a) op(b) + beta c on the calling thread; 't' transposes what is stored.
inline void gemm(char ta, char tb, int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda,
                 const float *b, int64_t ldb, float beta, float *c, int64_t ldc) {
  if (m > 0 && n > 0) dnnl_sgemm(ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

// The same on all threads, which share out the longer side of c.
inline void parallel_gemm(char ta, char tb, int64_t m, int64_t n, int64_t k, const float *a, int64_t lda,
                          const float *b, int64_t ldb, float beta, float *c, int64_t ldc) {
#pragma omp parallel
  {
    const int part = omp_get_thread_num(), parts = omp_get_num_threads();
    if (m >= n) {
      const Range mine = share(m, part, parts, 16);
      const int64_t from = mine.begin, to = mine.end;
      gemm(ta, tb, to - from, n, k, 1.0f, ta == 't' ? a + from : a + from * lda, lda, b, ldb, beta, c + from * ldc,
           ldc);
    } else {
      const Range mine = share(n, part, parts, 16);
      const int64_t from = mine.begin, to = mine.end;
      gemm(ta, tb, m, to - from, k, 1.0f, a, lda, tb == 't' ? b + from * ldb : b + from, ldb, beta, c + from, ldc);
    }
  }
}

// e**x to about 1e-7, in a form that compilers vectorise: 2**n times a polynomial on [-ln 2 / 2, ln 2 / 2].
inline float fast_exp(float argument) {
  float x = argument > 88.0f ? 88.0f : argument;
  x = x < -87.0f ? -87.0f : x;
  const float n = std::nearbyint(x * 1.44269504f);
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float y = 1.9875691500e-4f;
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * r * r + r + 1.0f;
  int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return argument < -87.0f ? 0.0f : y * power;
}

// layers.mix: scatter the bits of a counter. Shifts are arithmetic and products wrap, as MindSpore's do.
inline int32_t mix(int32_t x) {
  x ^= x >> 16;
  x = static_cast<int32_t>(static_cast<uint32_t>(x) * 0x7FEB352Du);
  x ^= x >> 15;
  x = static_cast<int32_t>(static_cast<uint32_t>(x) * 0x846CA68Bu);
  return x ^ (x >> 16);
}

// One row of a mask; a copy of all that it reads, so that the compiler knows that nobody else writes it.
struct DropoutRow {
  const int32_t *column;
  uint32_t number;
  int32_t threshold;
  float scale;
  float operator()(int64_t j) const {
    return static_cast<int32_t>(number * static_cast<uint32_t>(column[j])) >= threshold ? scale : 0.0f;
  }
};

// layers.Dropout's mask, as a factor: 0 for a dropped element, else `scale`.
struct DropoutMask {
  int32_t start, threshold;
  int64_t rows;
  float scale;
  std::vector<int32_t> column;

  // key: this step's number; constants: salt and threshold. A scale of 1 keeps all.
  DropoutMask(int32_t key, const int32_t *constants, float scale, int64_t rows, int64_t columns)
      : start(key ^ constants[0]), threshold(constants[1]), rows(rows), scale(scale), column(columns) {
    for (int64_t j = 0; is_on() && j < columns; ++j) column[j] = mix(start + static_cast<int32_t>(rows + j)) | 1;
  }
  bool is_on() const { return scale != 1.0f; }
  DropoutRow row(int64_t i) const {
    return {column.data(), static_cast<uint32_t>(mix(start + static_cast<int32_t>(i)) | 1), threshold, scale};
  }
};

}  // namespace ms_gpt
