// Layer norm of some rows: float32, two passes.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>

#include "parallel.h"
#include "products.h"

namespace blenderbot_jax {

constexpr int64_t kRowsAtOnce = 4;  // that a thread takes
constexpr int64_t kNormalized = 2;  // numbers in a nanosecond, about

inline void Normalize(const float* row, const float* scale, const float* bias, int64_t width, float epsilon, float* out) {
  __m512 sum = _mm512_setzero_ps(), squares = _mm512_setzero_ps();
  for (int64_t i = 0; i < width; i += 16) sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(FirstLanes(width - i), row + i));
  const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / static_cast<float>(width));
  for (int64_t i = 0; i < width; i += 16) {
    const __mmask16 lanes = FirstLanes(width - i);
    const __m512 centred = _mm512_maskz_sub_ps(lanes, _mm512_maskz_loadu_ps(lanes, row + i), mean);
    squares = _mm512_fmadd_ps(centred, centred, squares);
  }
  const float variance = _mm512_reduce_add_ps(squares) / static_cast<float>(width);
  const __m512 factor = _mm512_set1_ps(1 / std::sqrt(variance + epsilon));
  for (int64_t i = 0; i < width; i += 16) {
    const __mmask16 lanes = FirstLanes(width - i);
    const __m512 normal = _mm512_mul_ps(_mm512_sub_ps(_mm512_maskz_loadu_ps(lanes, row + i), mean), factor);
    const __m512 scaled = _mm512_fmadd_ps(normal, _mm512_maskz_loadu_ps(lanes, scale + i),
                                          _mm512_maskz_loadu_ps(lanes, bias + i));
    _mm512_mask_storeu_ps(out + i, lanes, scaled);
  }
}

// Rows [rows, width], each normalised.
inline void NormalizeRows(xla::ffi::ThreadPool& pool, const float* x, const float* scale, const float* bias, int64_t rows,
                          int64_t width, float epsilon, float* out) {
  ForEach(pool, (rows + kRowsAtOnce - 1) / kRowsAtOnce, rows * width / kNormalized, [&](int64_t part) {
    for (int64_t row = part * kRowsAtOnce; row < std::min(rows, (part + 1) * kRowsAtOnce); ++row) {
      Normalize(x + row * width, scale, bias, width, epsilon, out + row * width);
    }
  });
}

}  // namespace blenderbot_jax
