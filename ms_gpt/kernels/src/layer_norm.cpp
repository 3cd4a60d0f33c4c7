// LayerNorm over the last axis, of a Tensor or of the sum of two, and its gradient.
#include "layer_norm.h"

using namespace ms_gpt;

namespace {

// Normalise each row of x, or of x + residual, which then goes to sum. Statistics: mean and 1 / standard deviation.
void normalise(int64_t rows, int64_t size, const float *x, const float *residual, const float *gamma,
               const float *beta, float epsilon, float *sum, float *y, float *statistics) {
#pragma omp parallel for schedule(static) if (rows * size > kSmall)
  for (int64_t i = 0; i < rows; ++i) {
    const float *from = x + i * size;
    if (residual) {
      float *to = sum + i * size;
      const float *other = residual + i * size;
#pragma omp simd
      for (int64_t j = 0; j < size; ++j) to[j] = from[j] + other[j];
      from = to;
    }
    const RowStatistics found = normalise_row(size, from, gamma, beta, epsilon, y + i * size);
    statistics[2 * i] = found.mean;
    statistics[2 * i + 1] = found.inverse;
  }
}

// The gradient of what was normalised, dsum (if there is one) added, and of gamma and beta.
void differentiate(int64_t rows, int64_t size, const float *sum, const float *statistics, const float *gamma,
                   const float *dy, const float *dsum, float *dx, float *dgamma, float *dbeta) {
  std::vector<float> partial(2 * size * omp_get_max_threads());
#pragma omp parallel
  {
    float *part_gamma = partial.data() + 2 * size * omp_get_thread_num(), *part_beta = part_gamma + size;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < rows; ++i) {
      const float *from = sum + i * size, *d = dy + i * size;
      const float mean = statistics[2 * i], inverse = statistics[2 * i + 1];
      float total = 0.0f, along = 0.0f;
#pragma omp simd reduction(+ : total, along)
      for (int64_t j = 0; j < size; ++j) {
        const float normed = (from[j] - mean) * inverse;
        part_gamma[j] += d[j] * normed;
        part_beta[j] += d[j];
        total += d[j] * gamma[j];
        along += d[j] * gamma[j] * normed;
      }
      total /= size;
      along /= size;
      float *to = dx + i * size;
#pragma omp simd
      for (int64_t j = 0; j < size; ++j) {
        to[j] = inverse * (d[j] * gamma[j] - total - (from[j] - mean) * inverse * along);
      }
      if (dsum) {
        const float *other = dsum + i * size;
#pragma omp simd
        for (int64_t j = 0; j < size; ++j) to[j] += other[j];
      }
    }
  }
  // In the order of the threads, so that a run repeats.
  std::copy_n(partial.data(), size, dgamma);
  std::copy_n(partial.data() + size, size, dbeta);
  for (size_t k = 2 * size; k < partial.size(); k += 2 * size) {
    for (int64_t j = 0; j < size; ++j) {
      dgamma[j] += partial[k + j];
      dbeta[j] += partial[k + size + j];
    }
  }
}

}  // namespace

// x (R, D), gamma (D), beta (D), epsilon (1) -> y (R, D), statistics (R, 2)
KERNEL(layer_norm) {
  const int64_t size = shapes[1][0], rows = size_of(shapes[0], ndims[0]) / size;
  normalise(rows, size, FLOATS(0), nullptr, FLOATS(1), FLOATS(2), FLOATS(3)[0], nullptr, FLOATS(4), FLOATS(5));
  return 0;
}

// x (R, D), statistics (R, 2), gamma (D), dy (R, D) -> dx (R, D), dgamma (D), dbeta (D)
KERNEL(layer_norm_grad) {
  const int64_t size = shapes[2][0], rows = size_of(shapes[0], ndims[0]) / size;
  differentiate(rows, size, FLOATS(0), FLOATS(1), FLOATS(2), FLOATS(3), nullptr, FLOATS(4), FLOATS(5), FLOATS(6));
  return 0;
}

// x (R, D), residual (R, D), gamma (D), beta (D), epsilon (1) -> sum (R, D), y (R, D), statistics (R, 2)
KERNEL(add_layer_norm) {
  const int64_t size = shapes[2][0], rows = size_of(shapes[0], ndims[0]) / size;
  normalise(rows, size, FLOATS(0), FLOATS(1), FLOATS(2), FLOATS(3), FLOATS(4)[0], FLOATS(5), FLOATS(6), FLOATS(7));
  return 0;
}

// sum (R, D), statistics (R, 2), gamma (D), dy (R, D), dsum (R, D) -> dx (R, D), dgamma (D), dbeta (D)
KERNEL(add_layer_norm_grad) {
  const int64_t size = shapes[2][0], rows = size_of(shapes[0], ndims[0]) / size;
  differentiate(rows, size, FLOATS(0), FLOATS(1), FLOATS(2), FLOATS(3), FLOATS(4), FLOATS(5), FLOATS(6), FLOATS(7));
  return 0;
}
