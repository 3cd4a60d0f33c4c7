// Dropout by layers.Dropout's rule. It is linear, so its gradient is itself.
#include "common.h"

using namespace ms_gpt;

// x (R, C), key (), constants (2): salt and threshold, scale (1) -> y (R, C)
KERNEL(dropout) {
  const float *x = FLOATS(0);
  float *y = FLOATS(4);
  const int64_t columns = shapes[0][ndims[0] - 1], rows = size_of(shapes[0], ndims[0]) / columns;
  const DropoutMask mask(INTS(1)[0], INTS(2), FLOATS(3)[0], rows, columns);
#pragma omp parallel for schedule(static) if (rows * columns > kSmall)
  for (int64_t i = 0; i < rows; ++i) {
    const DropoutRow factor = mask.row(i);
    const float *from = x + i * columns;
    float *to = y + i * columns;
#pragma omp simd
    for (int64_t j = 0; j < columns; ++j) to[j] = from[j] * factor(j);
  }
  return 0;
}
