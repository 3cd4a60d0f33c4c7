// One step of generation: attention to the cache, a whole block of one new token in each row, and the likeliest token.
#include "gelu.h"
#include "layer_norm.h"
#include "step.h"

using namespace ms_gpt;

namespace {

// y (R, O) = x (R, I) w + b, and then GELU, or the sum with a residual (R, O). Called by all threads of a team, each of
// which computes some columns; they wait for each other at the end.
void project_rows(int64_t rows, int64_t in, int64_t out, const float *x, const float *w, const float *b,
                  const float *residual, bool bends, float *y) {
  const Range mine = share(out, omp_get_thread_num(), omp_get_num_threads(), kColumns);
  for (int64_t i = 0; i < rows; ++i) {
    float *to = y + i * out;
    const float *from = residual ? residual + i * out : nullptr;
#pragma omp simd
    for (int64_t j = mine.begin; j < mine.end; ++j) to[j] = from ? from[j] + b[j] : b[j];
  }
  kAddProducts[rows - 1](in, out, mine.begin, mine.end, x, w, y);
  for (int64_t i = 0; bends && i < rows; ++i) {
    float *to = y + i * out;
#pragma omp simd
    for (int64_t j = mine.begin; j < mine.end; ++j) to[j] = gelu_of(to[j]);
  }
#pragma omp barrier
}

// The same for LayerNorm, by rows.
void normalise_rows(int64_t rows, int64_t size, const float *x, const float *gamma, const float *beta, float epsilon,
                    float *y) {
#pragma omp for schedule(static)
  for (int64_t i = 0; i < rows; ++i) normalise_row(size, x + i * size, gamma, beta, epsilon, y + i * size);
}

}  // namespace

// packed (B, T, 3 H K), keys (B, H, S, K), values (B, H, S, K), bias (1 or B, 1, T, S), places (T): columns of the new
// tokens, is_real (B, T), settings -> out (B, T, H K).
KERNEL(attention_step) {
  const Step step(params, shapes, shapes[0][1], 1);
  if (!step.fits()) return 1;
#pragma omp parallel
  {
    std::vector<float> buffer(step.tokens * step.seen);
#pragma omp for schedule(static)
    for (int64_t task = 0; task < step.batch * step.heads; ++task) {
      step.attend(task, FLOATS(0), buffer.data(), FLOATS(7));
    }
  }
  return 0;
}

// x (B, 1, D) with B of at most kFewRows, then as above; norms (2): epsilon, and whether LayerNorm comes after each sum
// (GPT-1) and not before each half; weights and biases of ln_1, c_attn, c_proj, ln_2, c_fc, c_proj -> y (B, 1, D).
KERNEL(block_step) {
  const Step step(params, shapes, 1, 1);
  const int64_t rows = shapes[0][0], size = shapes[0][2], inner = shapes[16][1], heads = step.heads * step.batch;
  if (!step.fits() || rows > kFewRows) return 1;
  const float *x = FLOATS(0), epsilon = FLOATS(7)[0];
  const bool is_after = FLOATS(7)[1] != 0.0f;
  float *y = FLOATS(20);
  std::vector<float> memory(rows * (2 * size + 4 * step.width + inner));
  float *normed = memory.data(), *sum = normed + rows * size, *packed = sum + rows * size;
  float *seen = packed + rows * 3 * step.width, *hidden = seen + rows * step.width;
#pragma omp parallel
  {
    std::vector<float> buffer(step.seen);
    if (!is_after) normalise_rows(rows, size, x, FLOATS(8), FLOATS(9), epsilon, normed);
    project_rows(rows, size, 3 * step.width, is_after ? x : normed, FLOATS(10), FLOATS(11), nullptr, false, packed);
#pragma omp for schedule(static)
    for (int64_t task = 0; task < heads; ++task) step.attend(task, packed, buffer.data(), seen);
    project_rows(rows, step.width, size, seen, FLOATS(12), FLOATS(13), x, false, sum);
    // The norm behind attention: ln_2 before the MLP, or GPT-1's ln_1 after the sum, which the MLP's is then added to.
    const int norm = is_after ? 8 : 14;
    normalise_rows(rows, size, sum, FLOATS(norm), FLOATS(norm + 1), epsilon, normed);
    project_rows(rows, size, inner, normed, FLOATS(16), FLOATS(17), nullptr, true, hidden);
    project_rows(rows, inner, size, hidden, FLOATS(18), FLOATS(19), is_after ? normed : sum, false,
                 is_after ? sum : y);
    if (is_after) normalise_rows(rows, size, sum, FLOATS(14), FLOATS(15), epsilon, y);
  }
  return 0;
}

// logits (B, V) -> the first of each row's largest, int32 (B)
KERNEL(argmax) {
  const float *logits = FLOATS(0);
  int32_t *chosen = INTS(1);
  const int64_t rows = shapes[0][0], size = shapes[0][1];
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < rows; ++i) {
    const float *row = logits + i * size;
    chosen[i] = std::find(row, row + size - 1, largest(row, size)) - row;
  }
  return 0;
}
