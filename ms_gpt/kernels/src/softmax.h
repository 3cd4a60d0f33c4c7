// Softmax of a row of attention scores.
#pragma once

#include "common.h"

namespace ms_gpt {

// Turn scores into weights, dropped or not; keep the largest score and 1 / the sum of exponentials, apart, since their
// logarithms would be lost in a large score. (Functions of their own: compilers do not vectorise these loops in place.)
inline void softmax(float *row, int64_t size, bool drops, const DropoutRow factor, float *statistics) {
  const float top = largest(row, size);
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < size; ++j) {
    const float weight = fast_exp(row[j] - top);
    row[j] = weight;
    sum += weight;
  }
  const float portion = 1.0f / sum;
#pragma omp simd
  for (int64_t j = 0; j < size; ++j) row[j] *= drops ? factor(j) * portion : portion;
  statistics[0] = top;
  statistics[1] = portion;
}

}  // namespace ms_gpt
