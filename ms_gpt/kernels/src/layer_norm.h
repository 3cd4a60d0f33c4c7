// LayerNorm of one row.
#pragma once

#include "common.h"

namespace ms_gpt {

struct RowStatistics {
  float mean, inverse;
};

// y (D) = the row x (D) with mean 0 and variance 1, times gamma, plus beta. Returns its mean and 1 / standard deviation.
inline RowStatistics normalise_row(int64_t size, const float *x, const float *gamma, const float *beta, float epsilon,
                                   float *y) {
  float total = 0.0f, squares = 0.0f;
#pragma omp simd reduction(+ : total)
  for (int64_t j = 0; j < size; ++j) total += x[j];
  const float mean = total / size;
#pragma omp simd reduction(+ : squares)
  for (int64_t j = 0; j < size; ++j) squares += (x[j] - mean) * (x[j] - mean);
  const float inverse = 1.0f / std::sqrt(squares / size + epsilon);
#pragma omp simd
  for (int64_t j = 0; j < size; ++j) y[j] = (x[j] - mean) * inverse * gamma[j] + beta[j];
  return {mean, inverse};
}

}  // namespace ms_gpt
