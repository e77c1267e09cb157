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
constexpr int64_t kRun = 4;       // blocks that a thread takes at a time, one after the other
constexpr int64_t kAhead = 3072;  // bytes
// What a thread does in a nanosecond, about: sums of a product, bytes read from memory, numbers of rows packed.
constexpr int64_t kMultiplied = 30, kRead = 10, kPacked = 2;

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
    // As _mm512_dpbusd_epi32, around which GCC 12 copies every sum.
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(_mm512_set1_epi32(four)));
    return sum;
  }
};

// What is fetched while a panel is multiplied: `step` bytes from `from` on for every unit.
struct Ahead {
  const char* from;
  int64_t step;
};

// Sums of one panel of `rows` rows, units by row, with one block of weights. By itself, so that all sums stay in registers.
template <typename Kind, int rows>
__attribute__((noinline)) void MultiplyPanel(const float* panel, const typename Kind::Weight* block, int64_t units,
                                             Ahead ahead, typename Kind::Sum (&sums)[kRows][2]) {
  typename Kind::Sum local[rows][2];
#pragma GCC unroll 12
  for (int m = 0; m < rows; ++m) local[m][0] = local[m][1] = Kind::Zero();
  for (int64_t unit = 0; unit < units; ++unit) {
    constexpr int64_t half = 16 * Kind::kPerUnit;
    _mm_prefetch(ahead.from, _MM_HINT_T0);
    _mm_prefetch(ahead.from + 64, _MM_HINT_T0);
    const auto left = Kind::Load(block), right = Kind::Load(block + half);
#pragma GCC unroll 12
    for (int m = 0; m < rows; ++m) {
      local[m][0] = Kind::Add(local[m][0], panel[m], left);
      local[m][1] = Kind::Add(local[m][1], panel[m], right);
    }
    panel += rows;
    block += 2 * half;
    ahead.from += ahead.step;
  }
#pragma GCC unroll 12
  for (int m = 0; m < rows; ++m) sums[m][0] = local[m][0], sums[m][1] = local[m][1];
}

template <typename Kind, int rows = kRows>
inline void MultiplyPanel(int64_t count, const float* panel, const typename Kind::Weight* block, int64_t units, Ahead ahead,
                          typename Kind::Sum (&sums)[kRows][2]) {
  if constexpr (rows > 0) {
    if (count == rows) return MultiplyPanel<Kind, rows>(panel, block, units, ahead, sums);
    MultiplyPanel<Kind, rows - 1>(count, panel, block, units, ahead, sums);
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
//
// Weights come from memory while something else is multiplied: for a single panel some kilobytes ahead, where the processor,
// which stops at a page's end, has not been; for several panels the next part of the run, a piece with each.
template <typename Kind, typename Finish>
void MultiplyPanels(xla::ffi::ThreadPool& pool, const float* x, const Panels& panels, const typename Kind::Weight* blocks,
                    int64_t block_count, int64_t units, int64_t features, float* out, const Finish& finish) {
  constexpr int64_t unit_size = Kind::kPerUnit * kColumns, unit_bytes = unit_size * sizeof(typename Kind::Weight);
  const int64_t run = panels.count == 1 ? 1 : kRun, bytes = block_count * units * unit_bytes;
  // By arithmetic, or by reading the weights from memory.
  const int64_t nanoseconds = std::max(panels.rows * bytes / (4 * kMultiplied), bytes / kRead);
  ForEach(pool, (block_count + run - 1) / run, nanoseconds, [&](int64_t r) {
    typename Kind::Sum sums[kRows][2];
    const int64_t end = std::min((r + 1) * run, block_count) * units;  // in units, as if all blocks were one column
    for (int64_t at = r * run * units, depth; at < end; at += depth) {
      const int64_t b = at / units, begin = at % units;
      depth = std::min(Kind::kDepth, units - begin);
      const auto* part = blocks + at * unit_size;
      const char* next = reinterpret_cast<const char*>(at + depth < end ? part + depth * unit_size : part);
      for (int64_t p = 0; p < panels.count; ++p) {
        const int64_t first = p * panels.height, height = panels.Height(p);
        const Ahead ahead = panels.count == 1 ? Ahead{reinterpret_cast<const char*>(part) + kAhead, unit_bytes}
                                              : Ahead{next + p * depth * unit_bytes / panels.count, unit_bytes / panels.count};
        MultiplyPanel<Kind>(height, x + first * units + begin * height, part, depth, ahead, sums);
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

// Rows [rows, inner] panel by panel, as products in float32 or bfloat16 read them; a single row is a panel as it is.
inline const float* Pack(xla::ffi::ThreadPool& pool, const float* x, const Panels& panels, int64_t inner, float* room) {
  if (panels.rows == 1) return x;
  ForEach(pool, panels.count, panels.rows * inner / kPacked, [&](int64_t p) {
    const int64_t first = p * panels.height, height = panels.Height(p);
    const float* from = x + first * inner;
    float* to = room + first * inner;
    const int64_t even_rows = height - height % 4, even_inner = inner - inner % 4;
    for (int64_t i = 0; i < even_inner; i += 4) {  // four rows, four numbers of each
      for (int64_t m = 0; m < even_rows; m += 4) {
        __m128 four[4];
        for (int k = 0; k < 4; ++k) four[k] = _mm_loadu_ps(from + (m + k) * inner + i);
        _MM_TRANSPOSE4_PS(four[0], four[1], four[2], four[3]);
        for (int k = 0; k < 4; ++k) _mm_storeu_ps(to + (i + k) * height + m, four[k]);
      }
    }
    for (int64_t i = 0; i < inner; ++i) {
      for (int64_t m = i < even_inner ? even_rows : 0; m < height; ++m) to[i * height + m] = from[m * inner + i];
    }
  });
  return room;
}

// Packed rows times a kernel in float32 or bfloat16.
template <typename Kind>
void Multiply(xla::ffi::ThreadPool& pool, const float* packed, const Panels& panels, int64_t inner,
              const typename Kind::Weight* blocks, int64_t block_count, int64_t features, float* out) {
  const auto added = [](__m512 sums, __m512 before, int64_t, int64_t, __mmask16) { return _mm512_add_ps(sums, before); };
  MultiplyPanels<Kind>(pool, packed, panels, blocks, block_count, inner, features, out, added);
}

// One row to 8 bits, symmetric, in steps of `height` units. Returns the scale, NaN for a row with a NaN or an infinity; `sum`
// becomes the sum of the integers.
inline float Quantize(const float* row, int64_t inner, int64_t units, int64_t height, float* to, int32_t* sum) {
  __m512 largest = _mm512_setzero_ps(), poison = _mm512_setzero_ps();
  for (int64_t i = 0; i < inner; i += 16) {
    const __m512 values = _mm512_maskz_loadu_ps(FirstLanes(inner - i), row + i);
    largest = _mm512_max_ps(largest, _mm512_abs_ps(values));
    poison = _mm512_add_ps(poison, _mm512_sub_ps(values, values));  // 0, but for what no integer stands for
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
  return scale + _mm512_reduce_add_ps(poison);
}

// Rows in 8 bits, panel by panel: four numbers to a unit.
struct QuantizedRows {
  float* packed;  // [rows, units]
  float* scales;  // [rows]
  int32_t* sums;  // [rows], of the whole numbers
};

inline void QuantizeRows(xla::ffi::ThreadPool& pool, const float* x, const Panels& panels, int64_t inner,
                         const QuantizedRows& to) {
  const int64_t units = (inner + 3) / 4;
  ForEach(pool, panels.count, panels.rows * inner / kPacked, [&](int64_t p) {
    const int64_t first = p * panels.height, height = panels.Height(p);
    for (int64_t m = 0; m < height; ++m) {
      const int64_t row = first + m;
      to.scales[row] = Quantize(x + row * inner, inner, units, height, to.packed + first * units + m, to.sums + row);
    }
  });
}

// Rows in 8 bits times a kernel in 8 bits: sums are whole numbers, scaled once at the end.
inline void MultiplyInt8(xla::ffi::ThreadPool& pool, const QuantizedRows& rows, const Panels& panels, int64_t inner,
                         const uint8_t* blocks, const float* scales, int64_t block_count, int64_t features, float* out) {
  const auto scaled = [=](__m512i sums, __m512, int64_t row, int64_t column, __mmask16 lanes) {
    const __m512i without = _mm512_sub_epi32(sums, _mm512_set1_epi32(Int8::kOffset * rows.sums[row]));
    const __m512 columns = _mm512_maskz_loadu_ps(lanes, scales + column);
    return _mm512_mul_ps(_mm512_cvtepi32_ps(without), _mm512_mul_ps(_mm512_set1_ps(rows.scales[row]), columns));
  };
  MultiplyPanels<Int8>(pool, rows.packed, panels, blocks, block_count, (inner + 3) / 4, features, out, scaled);
}

}  // namespace blenderbot_jax
