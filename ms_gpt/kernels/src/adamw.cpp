// Clipping by the global norm and AdamW with bias correction, for all parameters at once and in place.
#include "common.h"

using namespace ms_gpt;

// step (), learning rate (), settings (4): beta1, beta2, epsilon, largest norm (0: none); decay (P);
// then P parameters, P first moments, P second moments and P gradients -> the gradients' norm ()
KERNEL(adamw) {
  const float step = static_cast<float>(INTS(0)[0] + 1), rate = FLOATS(1)[0];
  const float *settings = FLOATS(2), *decay = FLOATS(3);
  const float beta1 = settings[0], beta2 = settings[1], epsilon = settings[2], largest = settings[3];
  const int64_t tensors = (count - 5) / 4;
  const int first = 4, threads = omp_get_max_threads();
  auto at = [&](int group, int64_t k) { return FLOATS(first + group * tensors + k); };
  auto size = [&](int64_t k) { return size_of(shapes[first + k], ndims[first + k]); };

  std::vector<double> squares(threads);
#pragma omp parallel num_threads(threads)
  for (int64_t k = 0; k < tensors; ++k) {
    const float *gradient = at(3, k);
    const Range mine = share(size(k), omp_get_thread_num(), omp_get_num_threads(), 1024);
    // In blocks: one running sum over millions of squares loses digits in float32.
    for (int64_t i = mine.begin; i < mine.end; i += 1024) {
      float part = 0.0f;
      const int64_t end = std::min(i + 1024, mine.end);
#pragma omp simd reduction(+ : part)
      for (int64_t j = i; j < end; ++j) part += gradient[j] * gradient[j];
      squares[omp_get_thread_num()] += part;
    }
  }
  double total = 0.0;
  for (double part : squares) total += part;
  const float norm = static_cast<float>(std::sqrt(total));
  FLOATS(count - 1)[0] = norm;
  // Written so that a norm that is no number is no scale either, as with the plain operations.
  const float wanted = largest > 0.0f ? largest / (norm + 1e-6f) : 1.0f, scale = wanted > 1.0f ? 1.0f : wanted;
  const float correction1 = 1.0f - std::pow(beta1, step), correction2 = std::sqrt(1.0f - std::pow(beta2, step));
  const float size1 = rate * correction2 / correction1, epsilon2 = epsilon * correction2;

#pragma omp parallel num_threads(threads)
  for (int64_t k = 0; k < tensors; ++k) {
    float *parameter = at(0, k), *moment1 = at(1, k), *moment2 = at(2, k);
    const float *gradient = at(3, k), shrink = rate * decay[k];
    const Range mine = share(size(k), omp_get_thread_num(), omp_get_num_threads(), 16);
#pragma omp simd
    for (int64_t i = mine.begin; i < mine.end; ++i) {
      const float g = gradient[i] * scale;
      const float m = beta1 * moment1[i] + (1.0f - beta1) * g;
      const float v = beta2 * moment2[i] + (1.0f - beta2) * g * g;
      moment1[i] = m;
      moment2[i] = v;
      parameter[i] -= size1 * m / (std::sqrt(v) + epsilon2) + shrink * parameter[i];
    }
  }
  return 0;
}
