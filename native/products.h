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

#include "packing.h"
#include "parallel.h"

namespace blenderbot_jax {

constexpr int64_t kColumns = 32;  // of a block: two registers of 16
constexpr int64_t kRun = 4;       // blocks that a thread takes at a time, one after the other
constexpr int64_t kAhead = 3072;  // bytes
constexpr int64_t kManyPanels = 16;  // more of them do not stay in a processor's second cache
constexpr int64_t kMostBlocks = 12;  // that a panel meets one after the other
constexpr int64_t kTurns = 4;        // of each thread, at least
// What a thread does in a nanosecond, about: sums of a product, bytes read from memory.
constexpr int64_t kMultiplied = 30, kRead = 10;

// A kind of kernel: `Weight` is its element in memory, `kPerUnit` how many of them meet 4 bytes of a row. A part of a block
// `kDepth` units deep stays in a processor's second cache while panel after panel passes by; of `kMostBlocks` blocks, parts
// `kShallow` units deep do.
struct Float32 {
  using Weight = float;
  using Sum = __m512;
  static constexpr int64_t kPerUnit = 1, kDepth = 1280, kShallow = 384;
  static Sum Zero() { return _mm512_setzero_ps(); }
  static __m512 Load(const Weight* w) { return _mm512_loadu_ps(w); }
  static Sum Add(Sum sum, float x, __m512 w) { return _mm512_fmadd_ps(_mm512_set1_ps(x), w, sum); }
};

// Widened in the register: half the bytes, sums in float32.
struct BFloat16 : Float32 {
  using Weight = uint16_t;
  static constexpr int64_t kDepth = 2560, kShallow = 768;
  static __m512 Load(const Weight* w) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
};

// Weights are kept 128 higher, unsigned, which the instruction wants of one side.
struct Int8 {
  using Weight = uint8_t;
  using Sum = __m512i;
  static constexpr int64_t kPerUnit = 4, kDepth = INT64_MAX, kShallow = INT64_MAX;  // sums are finished once, when whole
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

// Sums of a panel and a block to where they belong: out [rows, features] = finish(sums, what an earlier part of the inner
// size left there, row, column, lanes).
template <typename Sum, typename Finish>
inline void StoreSums(const Sum (&sums)[kRows][2], int64_t height, int64_t row, int64_t column, int64_t features, bool onto,
                      float* out, const Finish& finish) {
  for (int64_t m = 0; m < height; ++m) {
    for (int side = 0; side < 2; ++side) {
      const __mmask16 lanes = FirstLanes(features - column - 16 * side);
      float* place = out + (row + m) * features + column + 16 * side;
      const __m512 before = onto ? _mm512_maskz_loadu_ps(lanes, place) : _mm512_setzero_ps();
      _mm512_mask_storeu_ps(place, lanes, finish(sums[m][side], before, row + m, column + 16 * side, lanes));
    }
  }
}

// Sums on top of what an earlier part left.
inline __m512 Added(__m512 sums, __m512 before, int64_t, int64_t, __mmask16) { return _mm512_add_ps(sums, before); }

// Some neighbouring blocks, or the same part of each: block i lies i * `stride` weights after the first.
template <typename Kind>
struct Run {
  const typename Kind::Weight* weights;
  int64_t first, count, stride;
};

// All panels with the units from `begin` on of a run of blocks: each panel stays in the first cache while it meets block
// after block, and the blocks stay in the second (Goto and van de Geijn 2008, "Anatomy of high-performance matrix
// multiplication"). `x` holds the rows panel by panel, within one unit by unit.
template <typename Kind, typename Finish>
void MultiplyRun(const float* x, const Panels& panels, int64_t units, int64_t begin, int64_t depth, const Run<Kind>& run,
                 int64_t features, float* out, const Finish& finish) {
  typename Kind::Sum sums[kRows][2];
  for (int64_t p = 0; p < panels.count; ++p) {
    const int64_t row = p * panels.height, height = panels.Height(p);
    const float* panel = x + row * units + begin * height;
    const float* next = p + 1 < panels.count ? panel + height * units : panel;
    for (int64_t i = 0; i < run.count; ++i) {
      // A piece of the next panel is fetched beside each block.
      const Ahead ahead{reinterpret_cast<const char*>(next + i * height * depth / run.count),
                        height * static_cast<int64_t>(sizeof(float)) / run.count};
      MultiplyPanel<Kind>(height, panel, run.weights + i * run.stride, depth, ahead, sums);
      StoreSums(sums, height, row, (run.first + i) * kColumns, features, begin > 0, out, finish);
    }
  }
}

// How many blocks a thread takes at once where panels are many: what it works on fits its second cache, and every thread
// has several turns, so that none waits long for another.
inline int64_t BlocksAtOnce(const xla::ffi::ThreadPool& pool, int64_t block_count) {
  return std::clamp<int64_t>(block_count / (kTurns * pool.num_threads()), 1, kMostBlocks);
}

// out [rows, features] = finish(panel's sums, what is there so far, row, column, lanes); `x` holds the rows panel by panel,
// within one unit by unit.
//
// Weights come from memory while something else is multiplied: for a single panel some kilobytes ahead, where the processor,
// which stops at a page's end, has not been; for several panels the next part of the run, a piece with each. Many panels do
// not stay in a cache themselves, so they come in the outer loop.
template <typename Kind, typename Finish>
void MultiplyPanels(xla::ffi::ThreadPool& pool, const float* x, const Panels& panels, const typename Kind::Weight* blocks,
                    int64_t block_count, int64_t units, int64_t features, float* out, const Finish& finish) {
  constexpr int64_t unit_size = Kind::kPerUnit * kColumns, unit_bytes = unit_size * sizeof(typename Kind::Weight);
  const bool many = panels.count > kManyPanels;
  const int64_t size = panels.count == 1 ? 1 : many ? BlocksAtOnce(pool, block_count) : kRun;
  const int64_t bytes = block_count * units * unit_bytes;
  // By arithmetic, or by reading the weights from memory.
  const int64_t nanoseconds = std::max(panels.rows * bytes / (4 * kMultiplied), bytes / kRead);
  ForEach(pool, (block_count + size - 1) / size, nanoseconds, [&](int64_t r) {
    if (many) {
      const int64_t first = r * size, count = std::min(size, block_count - first);
      for (int64_t begin = 0, depth; begin < units; begin += depth) {
        depth = std::min(Kind::kShallow, units - begin);
        const Run<Kind> run{blocks + (first * units + begin) * unit_size, first, count, units * unit_size};
        MultiplyRun(x, panels, units, begin, depth, run, features, out, finish);
      }
      return;
    }
    typename Kind::Sum sums[kRows][2];
    const int64_t end = std::min((r + 1) * size, block_count) * units;  // in units, as if all blocks were one column
    for (int64_t at = r * size * units, depth; at < end; at += depth) {
      const int64_t b = at / units, begin = at % units;
      depth = std::min(Kind::kDepth, units - begin);
      const auto* part = blocks + at * unit_size;
      const char* next = reinterpret_cast<const char*>(at + depth < end ? part + depth * unit_size : part);
      for (int64_t p = 0; p < panels.count; ++p) {
        const int64_t first = p * panels.height, height = panels.Height(p);
        const Ahead ahead = panels.count == 1 ? Ahead{reinterpret_cast<const char*>(part) + kAhead, unit_bytes}
                                              : Ahead{next + p * depth * unit_bytes / panels.count, unit_bytes / panels.count};
        MultiplyPanel<Kind>(height, x + first * units + begin * height, part, depth, ahead, sums);
        StoreSums(sums, height, first, b * kColumns, features, begin > 0, out, finish);
      }
    }
  });
}

// Packed rows times a kernel in float32 or bfloat16.
template <typename Kind>
void Multiply(xla::ffi::ThreadPool& pool, const float* packed, const Panels& panels, int64_t inner,
              const typename Kind::Weight* blocks, int64_t block_count, int64_t features, float* out) {
  MultiplyPanels<Kind>(pool, packed, panels, blocks, block_count, inner, features, out, Added);
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
