// The tanh form of GELU, x sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3)), and its gradient.
#include "common.h"

using namespace ms_gpt;

namespace {

constexpr float kSlope = 1.5957691216057308f, kCubic = 0.044715f;

inline float sigmoid(float x) { return 1.0f / (1.0f + fast_exp(-x)); }

}  // namespace

// x -> y, both of any one shape
KERNEL(gelu) {
  const float *x = FLOATS(0);
  float *y = FLOATS(1);
  const int64_t size = size_of(shapes[0], ndims[0]);
#pragma omp parallel for simd schedule(static) if (size > kSmall)
  for (int64_t i = 0; i < size; ++i) y[i] = x[i] * sigmoid(kSlope * x[i] * (1.0f + kCubic * x[i] * x[i]));
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
