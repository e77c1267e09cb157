// The order in which products read their rows: in panels of up to 12, within one number by number.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>

#include "parallel.h"

namespace blenderbot_jax {

constexpr int64_t kRows = 12;   // of a panel: 24 sums and 2 registers of weights out of 32
constexpr int64_t kPacked = 2;  // numbers that a thread packs in a nanosecond, about

inline __mmask16 FirstLanes(int64_t count) {
  return count >= 16 ? 0xFFFF : count <= 0 ? 0 : static_cast<__mmask16>((1u << count) - 1);
}

// Rows in panels of nearly equal height.
struct Panels {
  explicit Panels(int64_t rows) : rows(rows), count((rows + kRows - 1) / kRows), height((rows + count - 1) / count) {}
  int64_t Height(int64_t panel) const { return std::min(height, rows - panel * height); }
  int64_t rows, count, height;
};

// Rows become columns.
inline void Transpose(__m512 (&r)[16]) {
  __m512 t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
    r[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xEE);
    r[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    r[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xEE);
  }
  // r[4 g + j] has, in its quarter q, column 4 q + j of rows 4 g to 4 g + 3.
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512 low = _mm512_shuffle_f32x4(r[j], r[4 + j], 0x44), high = _mm512_shuffle_f32x4(r[j], r[4 + j], 0xEE);
    const __m512 low2 = _mm512_shuffle_f32x4(r[8 + j], r[12 + j], 0x44),
                 high2 = _mm512_shuffle_f32x4(r[8 + j], r[12 + j], 0xEE);
    t[j] = _mm512_shuffle_f32x4(low, low2, 0x88);
    t[4 + j] = _mm512_shuffle_f32x4(low, low2, 0xDD);
    t[8 + j] = _mm512_shuffle_f32x4(high, high2, 0x88);
    t[12 + j] = _mm512_shuffle_f32x4(high, high2, 0xDD);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) r[i] = t[i];
}

// Copies `rows` of up to 16 numbers each, `stride` apart, so that rows become columns: place (row, i) lies at i * step + row.
inline void CopyTransposed(const float* from, int64_t stride, int64_t rows, int64_t numbers, float* to, int64_t step) {
  const __mmask16 filled = FirstLanes(rows);
  for (int64_t i = 0; i < numbers; i += 16) {
    __m512 r[16];
#pragma GCC unroll 16
    for (int k = 0; k < 16; ++k) {
      r[k] = _mm512_maskz_loadu_ps(k < rows ? FirstLanes(numbers - i) : 0, from + std::min<int64_t>(k, rows - 1) * stride + i);
    }
    Transpose(r);
    const int64_t some = std::min<int64_t>(16, numbers - i);
    for (int k = 0; k < some; ++k) _mm512_mask_storeu_ps(to + (i + k) * step, filled, r[k]);
  }
}

// Copies numbers [depth, width] of rows `stride` apart to rows `step` apart; what is beyond `width` becomes zero.
inline void CopyRows(const float* from, int64_t stride, int64_t depth, int64_t width, float* to, int64_t step) {
  for (int64_t i = 0; i < depth; ++i) {
    for (int64_t lane = 0; lane < step; lane += 16) {
      const __m512 numbers = _mm512_maskz_loadu_ps(FirstLanes(width - lane), from + i * stride + lane);
      _mm512_mask_storeu_ps(to + i * step + lane, FirstLanes(step - lane), numbers);
    }
  }
}

// Rows [rows, inner] panel by panel, as products in float32 or bfloat16 read them; a single row is a panel as it is.
inline const float* Pack(xla::ffi::ThreadPool& pool, const float* x, const Panels& panels, int64_t inner, float* room) {
  if (panels.rows == 1) return x;
  ForEach(pool, panels.count, panels.rows * inner / kPacked, [&](int64_t p) {
    const int64_t first = p * panels.height, height = panels.Height(p);
    CopyTransposed(x + first * inner, inner, height, inner, room + first * inner, height);
  });
  return room;
}

}  // namespace blenderbot_jax
