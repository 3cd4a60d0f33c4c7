// The sum of two Tensors of one shape.
#include "common.h"

using namespace ms_gpt;

// x, y -> x + y
KERNEL(add) {
  const float *x = FLOATS(0), *y = FLOATS(1);
  float *sum = FLOATS(2);
  const int64_t size = size_of(shapes[0], ndims[0]);
#pragma omp parallel for simd schedule(static) if (size > kSmall)
  for (int64_t i = 0; i < size; ++i) sum[i] = x[i] + y[i];
  return 0;
}
