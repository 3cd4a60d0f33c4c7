// Attention of new tokens to a cache of keys and values, which they are written to first.
#pragma once

#include "few_rows.h"
#include "softmax.h"

namespace ms_gpt {

// Caches (B, H, S, K), a bias (1 or B, 1, T, S), the columns of the T new tokens, and for each of these (B, T) whether
// it is real: 0 for padding, whose keys and values are 0.
struct Step {
  float *keys, *values;
  const float *bias, *is_real;
  const int32_t *places;
  float scale;
  int64_t batch, tokens, heads, length, head_size, width, bias_step, seen;

  // The first of the inputs in this order: keys, values, bias, places, is_real, settings (H, 2).
  Step(void **params, int64_t **shapes, int64_t tokens, int first)
      : keys(FLOATS(first)), values(FLOATS(first + 1)), bias(FLOATS(first + 2)), is_real(FLOATS(first + 4)),
        places(INTS(first + 3)), scale(FLOATS(first + 5)[0]), batch(shapes[first][0]), tokens(tokens),
        heads(shapes[first][1]), length(shapes[first][2]), head_size(shapes[first][3]), width(heads * head_size),
        bias_step(shapes[first + 2][0] == 1 ? 0 : tokens * length),
        seen(*std::max_element(places, places + tokens) + 1) {}

  bool fits() const { return seen <= length && *std::min_element(places, places + tokens) >= 0; }

  // What one head of one row (task = b H + h) sees: from packed (B, T, 3 H K) to out (B, T, H K). The buffer has room
  // for T times `seen` numbers.
  void attend(int64_t task, const float *packed, float *buffer, float *out) const {
    const int64_t b = task / heads, h = task % heads;
    const float *query = packed + b * tokens * 3 * width + h * head_size;
    float *key = keys + task * length * head_size, *value = values + task * length * head_size;
    out += b * tokens * width + h * head_size;
    for (int64_t i = 0; i < tokens; ++i) {
      const float *from = query + i * 3 * width;
      const bool real = is_real[b * tokens + i] != 0.0f;
      for (int64_t j = 0; j < head_size; ++j) {
        key[places[i] * head_size + j] = real ? from[width + j] : 0.0f;
        value[places[i] * head_size + j] = real ? from[2 * width + j] : 0.0f;
      }
    }
    if (tokens == 1) {
      dot_products<1>(head_size, seen, 0, seen, query, key, buffer);
      weigh(b, 0, scale, buffer);
      std::fill_n(out, head_size, 0.0f);
      add_products<1>(seen, head_size, 0, head_size, buffer, value, out);
      return;
    }
    gemm('n', 't', tokens, seen, head_size, scale, query, 3 * width, key, head_size, 0.0f, buffer, seen);
    for (int64_t i = 0; i < tokens; ++i) weigh(b, i, 1.0f, buffer + i * seen);
    gemm('n', 'n', tokens, head_size, seen, 1.0f, buffer, seen, value, head_size, 0.0f, out, width);
  }

 private:
  void weigh(int64_t b, int64_t i, float factor, float *row) const {
    const float *hidden = bias + b * bias_step + i * length;
    const DropoutRow nothing{nullptr, 0, 0, 1.0f};
    float unused[2];
#pragma omp simd
    for (int64_t j = 0; j < seen; ++j) row[j] = row[j] * factor + hidden[j];
    softmax(row, seen, false, nothing, unused);
  }
};

}  // namespace ms_gpt
