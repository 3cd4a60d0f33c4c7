// Causal self-attention from packed queries, keys and values. The weights exist for one block of queries at a time, and
// are computed again for the gradient.
#include "softmax.h"

using namespace ms_gpt;

namespace {

constexpr int64_t kBlock = 64;

// The packed projection (B, T, 3 H K), and a bias (1 or B, 1, T, T) that hides at least what comes after each query.
struct Inputs {
  const float *packed, *bias;
  int64_t batch, length, width, heads, head_size, bias_step;
  float scale;

  Inputs(void **params, int64_t **shapes, int64_t heads) : heads(heads) {
    packed = FLOATS(0);
    bias = FLOATS(1);
    batch = shapes[0][0];
    length = shapes[0][1];
    width = shapes[0][2] / 3;
    head_size = width / heads;
    scale = FLOATS(4)[0];
    bias_step = shapes[1][0] == 1 ? 0 : length * length;
  }
  // Where one head's queries (part 0), keys (1) or values (2) of one row begin; tokens lie 3 * width apart.
  int64_t offset(int64_t b, int64_t h, int part) const {
    return b * length * 3 * width + part * width + h * head_size;
  }
  // The scores of queries [from, to) against keys [0, to), a row of them every `to` numbers.
  void scores(int64_t b, int64_t h, int64_t from, int64_t to, float *out) const {
    gemm('n', 't', to - from, to, head_size, scale, packed + offset(b, h, 0) + from * 3 * width, 3 * width,
         packed + offset(b, h, 1), 3 * width, 0.0f, out, to);
    for (int64_t i = from; i < to; ++i) {
      float *row = out + (i - from) * to;
      const float *hidden = bias + b * bias_step + i * length;
#pragma omp simd
      for (int64_t j = 0; j <= i; ++j) row[j] += hidden[j];
    }
  }
};

// Turn scores into weights, and the gradient of the weights into that of the scores.
inline void softmax_grad(float *row, float *drow, int64_t size, const float *statistics, bool drops,
                         const DropoutRow factor) {
  const float top = statistics[0], portion = statistics[1];
  float along = 0.0f;
#pragma omp simd reduction(+ : along)
  for (int64_t j = 0; j < size; ++j) {
    const float weight = fast_exp(row[j] - top) * portion;
    drow[j] *= drops ? factor(j) * weight : weight;
    along += drow[j];
    row[j] = weight;
  }
#pragma omp simd
  for (int64_t j = 0; j < size; ++j) {
    drow[j] -= row[j] * along;
    row[j] *= drops ? factor(j) : 1.0f;
  }
}

}  // namespace

// packed (B, T, 3 H K), bias, key (), constants (2), settings (H, 2): each
// head's scale of the scores and of dropout, all alike
//   -> out (B, T, H K), statistics (B, H, T, 2)
KERNEL(attention) {
  const Inputs in(params, shapes, shapes[4][0]);
  float *out = FLOATS(5), *statistics = FLOATS(6);
  const DropoutMask mask(INTS(2)[0], INTS(3), FLOATS(4)[1], in.batch * in.heads * in.length, in.length);
  const int64_t blocks = (in.length + kBlock - 1) / kBlock;
#pragma omp parallel
  {
    std::vector<float> buffer(kBlock * in.length);
#pragma omp for schedule(static)
    for (int64_t task = 0; task < in.batch * in.heads * blocks; ++task) {
      const int64_t head = task / blocks, b = head / in.heads, h = head % in.heads;
      const int64_t from = task % blocks * kBlock, to = std::min(from + kBlock, in.length);
      float *weights = buffer.data();
      in.scores(b, h, from, to, weights);
      for (int64_t i = from; i < to; ++i) {
        float *row = weights + (i - from) * to;
        const int64_t number = head * in.length + i;
        softmax(row, i + 1, mask.is_on(), mask.row(number), statistics + 2 * number);
        std::fill(row + i + 1, row + to, 0.0f);
      }
      gemm('n', 'n', to - from, in.head_size, to, 1.0f, weights, to, in.packed + in.offset(b, h, 2), 3 * in.width,
           0.0f, out + (b * in.length + from) * in.width + h * in.head_size, in.width);
    }
  }
  return 0;
}

// packed, bias, key, constants, settings, statistics, dout (B, T, H K) -> dpacked (B, T, 3 H K)
KERNEL(attention_grad) {
  const Inputs in(params, shapes, shapes[4][0]);
  const float *statistics = FLOATS(5), *dout = FLOATS(6);
  float *dpacked = FLOATS(7);
  const DropoutMask mask(INTS(2)[0], INTS(3), FLOATS(4)[1], in.batch * in.heads * in.length, in.length);
#pragma omp parallel
  {
    std::vector<float> buffer(2 * kBlock * in.length);
#pragma omp for schedule(static)
    for (int64_t head = 0; head < in.batch * in.heads; ++head) {
      const int64_t b = head / in.heads, h = head % in.heads, step = 3 * in.width;
      const float *query = in.packed + in.offset(b, h, 0), *key = query + in.width, *value = key + in.width;
      float *dquery = dpacked + in.offset(b, h, 0), *dkey = dquery + in.width, *dvalue = dkey + in.width;
      float *weights = buffer.data(), *dweights = weights + kBlock * in.length;
      // From the last block, which sees all keys and so sets what the others add to.
      const int64_t last = (in.length - 1) / kBlock * kBlock;
      for (int64_t from = last; from >= 0; from -= kBlock) {
        const int64_t to = std::min(from + kBlock, in.length), queries = to - from;
        const float *d = dout + (b * in.length + from) * in.width + h * in.head_size;
        const float add = from == last ? 0.0f : 1.0f;
        in.scores(b, h, from, to, weights);
        gemm('n', 't', queries, to, in.head_size, 1.0f, d, in.width, value, step, 0.0f, dweights, to);
        for (int64_t i = from; i < to; ++i) {
          float *row = weights + (i - from) * to, *drow = dweights + (i - from) * to;
          const int64_t number = head * in.length + i;
          softmax_grad(row, drow, i + 1, statistics + 2 * number, mask.is_on(), mask.row(number));
          std::fill(row + i + 1, row + to, 0.0f);
          std::fill(drow + i + 1, drow + to, 0.0f);
        }
        gemm('t', 'n', to, in.head_size, queries, 1.0f, weights, to, d, in.width, add, dvalue, step);
        gemm('n', 'n', queries, in.head_size, to, in.scale, dweights, to, key, step, 0.0f, dquery + from * step, step);
        gemm('t', 'n', to, in.head_size, queries, in.scale, dweights, to, query + from * step, step, add, dkey, step);
      }
    }
  }
  return 0;
}
