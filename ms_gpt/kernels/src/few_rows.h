// Matrix products of a few rows, as decoding has them: the time goes into reading the weights, which oneDNN would copy
// first.
#pragma once

#include "common.h"

namespace ms_gpt {

// Floats in a vector of this CPU, and how many of these it holds: a wider one would be cut up and go through memory.
#if defined(__AVX512F__)
constexpr int64_t kWidth = 16, kRegisters = 32;
#elif defined(__AVX__)
constexpr int64_t kWidth = 8, kRegisters = 16;
#elif defined(__x86_64__)
constexpr int64_t kWidth = 4, kRegisters = 16;
#else
constexpr int64_t kWidth = 4, kRegisters = 32;
#endif
constexpr int64_t kFewRows = 8;    // so many rows' sums fit the registers
constexpr int64_t kDepth = 16;     // rows of weights that are read side by side
constexpr int64_t kColumns = 32;   // columns of weights that one thread reads at a time, two lines of its cache
constexpr int64_t kSums = std::max(kFewRows, kWidth);  // dot products side by side

// The vectors across columns whose sums for this many rows leave registers for weights and inputs.
constexpr int64_t across(int64_t rows) {
  int64_t vectors = kColumns / kWidth;
  while (vectors > 1 && vectors * rows > kRegisters - 4) vectors /= 2;
  return vectors;
}

typedef float Vector __attribute__((vector_size(kWidth * sizeof(float)), aligned(4), may_alias));

inline const Vector &at(const float *address) { return *reinterpret_cast<const Vector *>(address); }
inline Vector &at(float *address) { return *reinterpret_cast<Vector *>(address); }

// Turn kSums vectors, one behind the other, into the sum of each: neighbours are added until there is one left of each.
inline void add_up(float *numbers) {
  for (int64_t size = kSums * kWidth / 2; size >= kSums; size /= 2) {
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) numbers[i] = numbers[2 * i] + numbers[2 * i + 1];
  }
}

// y (R, begin..end) += x (R, I) w (I, O): each number of w is read once for all R rows, nearly in the order of memory.
template <int R>
void add_products(int64_t in, int64_t out, int64_t begin, int64_t end, const float *x, const float *w, float *y) {
  constexpr int64_t V = across(R), kTile = V * kWidth;
  const int64_t tiled = begin + (end - begin) / kTile * kTile;
  for (int64_t first = 0; first < in; first += kDepth) {
    const int64_t last = std::min(first + kDepth, in);
    for (int64_t j = begin; j < tiled; j += kTile) {
      Vector sums[R][V];
#pragma GCC unroll 8
      for (int i = 0; i < R; ++i) {
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) sums[i][v] = at(y + i * out + j + v * kWidth);
      }
      for (int64_t k = first; k < last; ++k) {
        const float *weights = w + k * out + j;
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) {
          const Vector weight = at(weights + v * kWidth);
#pragma GCC unroll 8
          for (int i = 0; i < R; ++i) sums[i][v] += x[i * in + k] * weight;
        }
      }
#pragma GCC unroll 8
      for (int i = 0; i < R; ++i) {
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) at(y + i * out + j + v * kWidth) = sums[i][v];
      }
    }
    for (int64_t k = first; k < last; ++k) {
      for (int i = 0; i < R; ++i) {
        for (int64_t j = tiled; j < end; ++j) y[i * out + j] += x[i * in + k] * w[k * out + j];
      }
    }
  }
}

// y (R, begin..begin + C) = x (R, D) times C rows of table (V, D).
template <int R, int C>
inline void dot_rows(int64_t width, int64_t size, int64_t begin, const float *x, const float *table, float *y) {
  const int64_t whole = width / kWidth * kWidth;
  const float *rows = table + begin * width;
  Vector sums[kSums] = {};
  for (int64_t k = 0; k < whole; k += kWidth) {
#pragma GCC unroll 16
    for (int j = 0; j < C; ++j) {
#pragma GCC unroll 8
      for (int i = 0; i < R; ++i) sums[i * C + j] += at(x + i * width + k) * at(rows + j * width + k);
    }
  }
  float products[kSums * kWidth];
#pragma GCC unroll 16
  for (int j = 0; j < kSums; ++j) at(products + j * kWidth) = sums[j];
  add_up(products);
  for (int i = 0; i < R; ++i) {
    for (int j = 0; j < C; ++j) {
      float sum = products[i * C + j];
      for (int64_t k = whole; k < width; ++k) sum += x[i * width + k] * rows[j * width + k];
      y[i * size + begin + j] = sum;
    }
  }
}

// y (R, begin..end) = x (R, D) times the rows begin..end of table (V, D), several of them side by side.
template <int R>
void dot_products(int64_t width, int64_t size, int64_t begin, int64_t end, const float *x, const float *table,
                  float *y) {
  constexpr int kSide = kSums / R;
  int64_t j = begin;
  for (; j + kSide <= end; j += kSide) dot_rows<R, kSide>(width, size, j, x, table, y);
  for (; j < end; ++j) dot_rows<R, 1>(width, size, j, x, table, y);
}

typedef void (*Few)(int64_t, int64_t, int64_t, int64_t, const float *, const float *, float *);
constexpr Few kAddProducts[] = {add_products<1>, add_products<2>, add_products<3>, add_products<4>,
                                add_products<5>, add_products<6>, add_products<7>, add_products<8>};
constexpr Few kDotProducts[] = {dot_products<1>, dot_products<2>, dot_products<3>, dot_products<4>,
                                dot_products<5>, dot_products<6>, dot_products<7>, dot_products<8>};

}  // namespace ms_gpt
