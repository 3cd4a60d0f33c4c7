// The tanh form of GELU, x sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3)).
#pragma once

#include "common.h"

namespace ms_gpt {

constexpr float kSlope = 1.5957691216057308f, kCubic = 0.044715f;

inline float sigmoid(float x) { return 1.0f / (1.0f + fast_exp(-x)); }

inline float gelu_of(float x) { return x * sigmoid(kSlope * x * (1.0f + kCubic * x * x)); }

}  // namespace ms_gpt
