// GELU and its gradient.
#include "gelu.h"

using namespace ms_gpt;

// x -> y, both of any one shape
KERNEL(gelu) {
  const float *x = FLOATS(0);
  float *y = FLOATS(1);
  const int64_t size = size_of(shapes[0], ndims[0]);
#pragma omp parallel for simd schedule(static) if (size > kSmall)
  for (int64_t i = 0; i < size; ++i) y[i] = gelu_of(x[i]);
  return 0;
}

// x, dy -> dx
KERNEL(gelu_grad) {
  const float *x = FLOATS(0), *dy = FLOATS(1);
  float *dx = FLOATS(2);
  const int64_t size = size_of(shapes[0], ndims[0]);
#pragma omp parallel for simd schedule(static) if (size > kSmall)
  for (int64_t i = 0; i < size; ++i) {
    const float square = x[i] * x[i];
    const float s = sigmoid(kSlope * x[i] * (1.0f + kCubic * square));
    dx[i] = dy[i] * s * (1.0f + x[i] * (1.0f - s) * kSlope * (1.0f + 3.0f * kCubic * square));
  }
  return 0;
}
