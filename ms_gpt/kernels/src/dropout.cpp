// Dropout by layers.Dropout's rule. It is linear, so its gradient is itself.
#include "common.h"

using namespace ms_gpt;

namespace {

void drop(int64_t rows, int64_t columns, const float *x, const DropoutMask &mask, float *y) {
#pragma omp parallel for schedule(static) if (rows * columns > kSmall)
  for (int64_t i = 0; i < rows; ++i) {
    const DropoutRow factor = mask.row(i);
    const float *from = x + i * columns;
    float *to = y + i * columns;
#pragma omp simd
    for (int64_t j = 0; j < columns; ++j) to[j] = from[j] * factor(j);
  }
}

}  // namespace

// x (R, C), key (), constants (2): salt and threshold, scale (1) -> y (R, C)
KERNEL(dropout) {
  const int64_t columns = shapes[0][ndims[0] - 1], rows = size_of(shapes[0], ndims[0]) / columns;
  drop(rows, columns, FLOATS(0), DropoutMask(INTS(1)[0], INTS(2), FLOATS(3)[0], rows, columns), FLOATS(4));
  return 0;
}

// dy (R, C), key, constants, scale -> dx (R, C)
KERNEL(dropout_grad) { return dropout(count, params, ndims, shapes, nullptr, nullptr, nullptr); }
