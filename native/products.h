// Products of some rows with a kernel that lies in blocks of 32 columns, each in one piece of memory.
//
// A step of decoding multiplies few rows with large kernels, so what counts is that every weight comes from memory once, in
// order, and that each is used for up to 12 rows while it is in a register. All kinds of kernel share the loop: 4 bytes of
// a row (one float, or four 8-bit integers) meet two registers of weights.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "parallel.h"

namespace blenderbot_jax {

constexpr int64_t kColumns = 32;  // of a block: two registers of 16
constexpr int64_t kRows = 12;     // of a panel: 24 sums and 2 registers of weights out of 32

// A kind of kernel: `Weight` is its element in memory, `kPerUnit` how many of them meet 4 bytes of a row. A part of a block
// `kDepth` units deep stays in a processor's second cache while panel after panel passes by.
struct Float32 {
  using Weight = float;
  using Sum = __m512;
  static constexpr int64_t kPerUnit = 1, kDepth = 1280;
  static Sum Zero() { return _mm512_setzero_ps(); }
  static __m512 Load(const Weight* w) { return _mm512_loadu_ps(w); }
  static Sum Add(Sum sum, float x, __m512 w) { return _mm512_fmadd_ps(_mm512_set1_ps(x), w, sum); }
};

// Widened in the register: half the bytes, sums in float32.
struct BFloat16 : Float32 {
  using Weight = uint16_t;
  static constexpr int64_t kDepth = 2560;
  static __m512 Load(const Weight* w) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
};

// Weights are kept 128 higher, unsigned, which the instruction wants of one side.
struct Int8 {
  using Weight = uint8_t;
  using Sum = __m512i;
  static constexpr int64_t kPerUnit = 4, kDepth = INT64_MAX;  // sums are finished once, from whole numbers
  static constexpr int32_t kOffset = 128;
  static Sum Zero() { return _mm512_setzero_si512(); }
  static __m512i Load(const Weight* w) { return _mm512_loadu_si512(w); }
  static Sum Add(Sum sum, float x, __m512i w) {
    int32_t four;
    std::memcpy(&four, &x, sizeof four);
    return _mm512_dpbusd_epi32(sum, w, _mm512_set1_epi32(four));
  }
};

// Sums of one panel of `rows` rows, units by row, with one block of weights. By itself, so that all sums stay in registers.
template <typename Kind, int rows>
__attribute__((noinline)) void MultiplyPanel(const float* panel, const typename Kind::Weight* block, int64_t units,
                          typename Kind::Sum (&sums)[kRows][2]) {
  typename Kind::Sum local[rows][2];
#pragma GCC unroll 12
  for (int m = 0; m < rows; ++m) local[m][0] = local[m][1] = Kind::Zero();
  for (int64_t unit = 0; unit < units; ++unit) {
    constexpr int64_t half = 16 * Kind::kPerUnit;
    // Ahead of what the processor fetches by itself, which ends with a page.
    _mm_prefetch(reinterpret_cast<const char*>(block + 48 * half), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(block + 49 * half), _MM_HINT_T0);
    const auto left = Kind::Load(block), right = Kind::Load(block + half);
#pragma GCC unroll 12
    for (int m = 0; m < rows; ++m) {
      local[m][0] = Kind::Add(local[m][0], panel[m], left);
      local[m][1] = Kind::Add(local[m][1], panel[m], right);
    }
    panel += rows;
    block += 2 * half;
  }
#pragma GCC unroll 12
  for (int m = 0; m < rows; ++m) sums[m][0] = local[m][0], sums[m][1] = local[m][1];
}

template <typename Kind, int rows = kRows>
inline void MultiplyPanel(int64_t count, const float* panel, const typename Kind::Weight* block, int64_t units,
                          typename Kind::Sum (&sums)[kRows][2]) {
  if constexpr (rows > 0) {
    if (count == rows) return MultiplyPanel<Kind, rows>(panel, block, units, sums);
    MultiplyPanel<Kind, rows - 1>(count, panel, block, units, sums);
  }
}

// Rows in panels of nearly equal height.
struct Panels {
  explicit Panels(int64_t rows) : rows(rows), count((rows + kRows - 1) / kRows), height((rows + count - 1) / count) {}
  int64_t Height(int64_t panel) const { return std::min(height, rows - panel * height); }
  int64_t rows, count, height;
};

inline __mmask16 FirstLanes(int64_t count) {
  return count >= 16 ? 0xFFFF : count <= 0 ? 0 : static_cast<__mmask16>((1u << count) - 1);
}

// out [rows, features] = finish(panel's sums, what is there so far, row, column, lanes); `x` holds the rows panel by panel,
// within one unit by unit.
template <typename Kind, typename Finish>
void MultiplyPanels(xla::ffi::ThreadPool& pool, const float* x, const Panels& panels, const typename Kind::Weight* blocks,
                    int64_t block_count, int64_t units, int64_t features, float* out, const Finish& finish) {
  constexpr int64_t unit_size = Kind::kPerUnit * kColumns;
  ForEach(pool, block_count, [&](int64_t b) {
    typename Kind::Sum sums[kRows][2];
    for (int64_t begin = 0; begin < units; begin += std::min(Kind::kDepth, units)) {
      const int64_t depth = std::min(Kind::kDepth, units - begin);
      const auto* block = blocks + (b * units + begin) * unit_size;
      for (int64_t p = 0; p < panels.count; ++p) {
        const int64_t first = p * panels.height, height = panels.Height(p);
        MultiplyPanel<Kind>(height, x + first * units + begin * height, block, depth, sums);
        for (int64_t m = 0; m < height; ++m) {
          for (int side = 0; side < 2; ++side) {
            const int64_t column = b * kColumns + 16 * side;
            const __mmask16 lanes = FirstLanes(features - column);
            float* place = out + (first + m) * features + column;
            const __m512 before = begin == 0 ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(lanes, place);
            _mm512_mask_storeu_ps(place, lanes, finish(sums[m][side], before, first + m, column, lanes));
          }
        }
      }
    }
  });
}

// Products with a kernel in float32 or bfloat16. `panels` has room for rows x inner floats.
template <typename Kind>
void Multiply(xla::ffi::ThreadPool& pool, const float* x, int64_t row_count, int64_t inner,
              const typename Kind::Weight* blocks, int64_t block_count, int64_t features, float* room, float* out) {
  const Panels panels(row_count);
  if (row_count > 1) {
    ForEach(pool, panels.count, [&](int64_t p) {
      const int64_t first = p * panels.height, height = panels.Height(p);
      float* to = room + first * inner;
      for (int64_t i = 0; i < inner; ++i) {
        for (int64_t m = 0; m < height; ++m) *to++ = x[(first + m) * inner + i];
      }
    });
  }
  const auto added = [](__m512 sums, __m512 before, int64_t, int64_t, __mmask16) { return _mm512_add_ps(sums, before); };
  MultiplyPanels<Kind>(pool, row_count > 1 ? room : x, panels, blocks, block_count, inner, features, out, added);
}

// One row to 8 bits, symmetric, in steps of `height` units. Returns the scale; `sum` becomes the sum of the integers.
inline float Quantize(const float* row, int64_t inner, int64_t units, int64_t height, float* to, int32_t* sum) {
  __m512 largest = _mm512_setzero_ps();
  for (int64_t i = 0; i < inner; i += 16) {
    largest = _mm512_max_ps(largest, _mm512_abs_ps(_mm512_maskz_loadu_ps(FirstLanes(inner - i), row + i)));
  }
  const float scale = std::max(_mm512_reduce_max_ps(largest), 1e-30f) / 127;
  __m512i total = _mm512_setzero_si512();
  for (int64_t i = 0; i < 4 * units; i += 16) {
    const __m512 values = _mm512_maskz_loadu_ps(FirstLanes(inner - i), row + i);
    const __m512i whole = _mm512_cvtps_epi32(_mm512_div_ps(values, _mm512_set1_ps(scale)));
    total = _mm512_add_epi32(total, whole);
    alignas(16) float four[4];
    _mm_store_si128(reinterpret_cast<__m128i*>(four), _mm512_cvtsepi32_epi8(whole));
    for (int64_t unit = i / 4; unit < std::min(i / 4 + 4, units); ++unit) to[unit * height] = four[unit - i / 4];
  }
  *sum = _mm512_reduce_add_epi32(total);
  return scale;
}

// Products with a kernel in 8 bits: rows are rounded to 8 bits too, sums are whole numbers.
// `room` has room for rows x units, `row_scales` and `row_sums` for one number a row.
inline void MultiplyInt8(xla::ffi::ThreadPool& pool, const float* x, int64_t row_count, int64_t inner,
                         const uint8_t* blocks, const float* scales, int64_t block_count, int64_t features, float* room,
                         float* row_scales, int32_t* row_sums, float* out) {
  const Panels panels(row_count);
  const int64_t units = (inner + 3) / 4;
  ForEach(pool, panels.count, [&](int64_t p) {
    const int64_t first = p * panels.height, height = panels.Height(p);
    for (int64_t m = 0; m < height; ++m) {
      row_scales[first + m] = Quantize(x + (first + m) * inner, inner, units, height, room + first * units + m,
                                       row_sums + first + m);
    }
  });
  const auto scaled = [=](__m512i sums, __m512, int64_t row, int64_t column, __mmask16 lanes) {
    const __m512i without = _mm512_sub_epi32(sums, _mm512_set1_epi32(Int8::kOffset * row_sums[row]));
    const __m512 columns = _mm512_maskz_loadu_ps(lanes, scales + column);
    return _mm512_mul_ps(_mm512_cvtepi32_ps(without), _mm512_mul_ps(_mm512_set1_ps(row_scales[row]), columns));
  };
  MultiplyPanels<Int8>(pool, room, panels, blocks, block_count, units, features, out, scaled);
}

}  // namespace blenderbot_jax
