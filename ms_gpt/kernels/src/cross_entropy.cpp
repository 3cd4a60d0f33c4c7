// The negative log-likelihood of one class in each row, and its gradient. Rows labelled -100 do not count.
#include "common.h"

using namespace ms_gpt;

static constexpr int32_t kIgnored = -100;

// logits (N, C), labels (N) -> nll (N), log of the sum of exponentials (N)
KERNEL(cross_entropy) {
  const float *logits = FLOATS(0);
  const int32_t *labels = INTS(1);
  float *nll = FLOATS(2), *log_sums = FLOATS(3);
  const int64_t rows = shapes[0][0], classes = shapes[0][1];
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < rows; ++i) {
    const float *row = logits + i * classes;
    nll[i] = log_sums[i] = 0.0f;
    if (labels[i] == kIgnored) continue;
    if (labels[i] < 0 || labels[i] >= classes) {
      nll[i] = NAN;
      continue;
    }
    const float top = largest(row, classes);
    // In blocks: one float running over tens of thousands of terms would lose digits.
    double sum = 0.0;
    for (int64_t from = 0; from < classes; from += 1024) {
      const int64_t to = std::min(from + 1024, classes);
      float part = 0.0f;
#pragma omp simd reduction(+ : part)
      for (int64_t j = from; j < to; ++j) part += fast_exp(row[j] - top);
      sum += part;
    }
    const double log_sum = std::log(sum);
    log_sums[i] = static_cast<float>(top + log_sum);
    nll[i] = static_cast<float>(log_sum - (static_cast<double>(row[labels[i]]) - top));
  }
  return 0;
}

// logits (N, C), labels (N), log sums (N), dnll (N) -> dlogits (N, C)
KERNEL(cross_entropy_grad) {
  const float *logits = FLOATS(0), *log_sums = FLOATS(2), *dnll = FLOATS(3);
  const int32_t *labels = INTS(1);
  float *dlogits = FLOATS(4);
  const int64_t rows = shapes[0][0], classes = shapes[0][1];
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < rows; ++i) {
    const float *row = logits + i * classes;
    float *to = dlogits + i * classes;
    const float d = dnll[i], log_sum = log_sums[i];
    if (labels[i] < 0 || labels[i] >= classes || d == 0.0f) {
      std::fill_n(to, classes, 0.0f);
      continue;
    }
#pragma omp simd
    for (int64_t j = 0; j < classes; ++j) to[j] = d * fast_exp(row[j] - log_sum);
    to[labels[i]] -= d;
  }
  return 0;
}
