// Products of two large matrices, either of them maybe transposed: what training multiplies, forward and back.
//
// Both sides are copied into the order in which they are read. Of the second a thread takes some blocks of 32 columns, as
// deep as its second cache holds them; a panel of up to 12 rows of the first then stays in the first cache while it meets
// these blocks one after the other (Goto and van de Geijn 2008, "Anatomy of high-performance matrix multiplication").
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "parallel.h"
#include "products.h"

namespace blenderbot_jax {

constexpr int64_t kDeepest = 384;  // of a panel and of the blocks that it meets: 18 KB and 48 KB each
constexpr int64_t kMostBlocks = 12;
constexpr int64_t kTurns = 4;  // of each thread, at least, so that none waits long for another

// A matrix [rows, columns] that lies row by row, or, transposed, column by column.
struct Matrix {
  const float* values;
  int64_t rows, columns;
  bool transposed;
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

// A matrix panel by panel; within a panel the numbers of its rows by column.
inline void PackPanels(xla::ffi::ThreadPool& pool, const Matrix& a, const Panels& panels, float* room) {
  ForEach(pool, panels.count, a.rows * a.columns / kPacked, [&](int64_t p) {
    const int64_t first = p * panels.height, height = panels.Height(p);
    float* to = room + first * a.columns;
    if (a.transposed) {
      CopyRows(a.values + first, a.rows, a.columns, height, to, height);
    } else {
      CopyTransposed(a.values + first * a.columns, a.columns, height, a.columns, to, height);
    }
  });
}

// Rows `begin` and on of some blocks of columns, `depth` rows each, block by block; missing columns become zero.
inline void PackBlocks(const Matrix& b, int64_t begin, int64_t depth, int64_t first, int64_t count, float* room) {
  for (int64_t block = 0; block < count; ++block) {
    const int64_t column = (first + block) * kColumns, width = std::min(kColumns, b.columns - column);
    float* to = room + block * depth * kColumns;
    if (!b.transposed) {
      CopyRows(b.values + begin * b.columns + column, b.columns, depth, width, to, kColumns);
      continue;
    }
    if (width < kColumns) std::fill_n(to, depth * kColumns, 0.0f);
    for (int64_t lane = 0; lane < width; lane += 16) {
      CopyTransposed(b.values + (column + lane) * b.rows + begin, b.rows, std::min<int64_t>(16, width - lane), depth,
                     to + lane, kColumns);
    }
  }
}

// Sums of a panel and a block to where they belong, rows `stride` apart; on top of what is there, if it is not the first part.
inline void AddSums(const __m512 (&sums)[kRows][2], int64_t height, int64_t columns, bool onto, float* out, int64_t stride) {
  for (int64_t m = 0; m < height; ++m) {
    for (int side = 0; side < 2; ++side) {
      const __mmask16 lanes = FirstLanes(columns - 16 * side);
      float* place = out + m * stride + 16 * side;
      const __m512 before = onto ? _mm512_maskz_loadu_ps(lanes, place) : _mm512_setzero_ps();
      _mm512_mask_storeu_ps(place, lanes, _mm512_add_ps(sums[m][side], before));
    }
  }
}

// Room for some floats that a thread keeps from call to call, so that its pages are there already.
inline float* Scratch(int64_t count) {
  constexpr int64_t kLine = 64 / sizeof(float);
  thread_local std::vector<float> kept;
  if (static_cast<int64_t>(kept.size()) < count + kLine) kept.resize(count + kLine);
  void* place = kept.data();
  size_t space = kept.size() * sizeof(float);
  return static_cast<float*>(std::align(64, count * sizeof(float), place, space));
}

// out [a.rows, b.columns] = a times b; `room` holds a's numbers in another order.
inline void MultiplyDense(xla::ffi::ThreadPool& pool, const Matrix& a, const Matrix& b, float* room, float* out) {
  const Panels panels(a.rows);
  const int64_t inner = a.columns, blocks = (b.columns + kColumns - 1) / kColumns;
  PackPanels(pool, a, panels, room);
  const int64_t parts = (inner + kDeepest - 1) / kDeepest, deepest = (inner + parts - 1) / parts;
  const int64_t run = std::clamp<int64_t>(blocks / (kTurns * pool.num_threads()), 1, kMostBlocks);
  ForEach(pool, (blocks + run - 1) / run, a.rows * inner * b.columns / kMultiplied, [&](int64_t r) {
    const int64_t first = r * run, count = std::min(run, blocks - first);
    float* packed = Scratch(count * deepest * kColumns);
    __m512 sums[kRows][2];
    for (int64_t begin = 0; begin < inner; begin += deepest) {
      const int64_t depth = std::min(deepest, inner - begin);
      PackBlocks(b, begin, depth, first, count, packed);
      for (int64_t p = 0; p < panels.count; ++p) {
        const int64_t top = p * panels.height, height = panels.Height(p);
        const float* panel = room + top * inner + begin * height;
        const int64_t next = p + 1 < panels.count ? height * inner : 0;  // floats to the panel after it
        for (int64_t i = 0; i < count; ++i) {
          // A piece of the next panel is fetched beside each block.
          const Ahead ahead{reinterpret_cast<const char*>(panel + next + i * height * depth / count),
                            height * static_cast<int64_t>(sizeof(float)) / count};
          MultiplyPanel<Float32>(height, panel, packed + i * depth * kColumns, depth, ahead, sums);
          const int64_t column = (first + i) * kColumns;
          AddSums(sums, height, b.columns - column, begin > 0, out + top * b.columns + column, b.columns);
        }
      }
    }
  });
}

}  // namespace blenderbot_jax
