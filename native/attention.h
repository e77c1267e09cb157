// Attention of a step of decoding: every query looks only at the slots that are its own.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "parallel.h"
#include "products.h"

namespace blenderbot_jax {

// exp of numbers up to 0, within two units in the last place: a power of two times a polynomial around 0.
inline __m512 Exp(__m512 x) {
  x = _mm512_max_ps(x, _mm512_set1_ps(-104.0f));  // below, the result is 0 in float32
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT);
  // ln 2 in two parts, the first of few digits, so that n times it is exact.
  const __m512 high = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  const __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), high);
  __m512 sum = _mm512_set1_ps(1.0f / 5040);
  for (const float term : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) {
    sum = _mm512_fmadd_ps(sum, r, _mm512_set1_ps(term));
  }
  return _mm512_scalef_ps(sum, n);
}

inline __m512 LoadLanes(const float* values, __mmask16 lanes) { return _mm512_maskz_loadu_ps(lanes, values); }

inline __m512 LoadLanes(const uint16_t* values, __mmask16 lanes) {  // bfloat16
  const __m256i half = _mm256_maskz_loadu_epi16(lanes, values);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

// What one query finds in `count` slots: the softmax of its products with their keys, times their values.
// `chunks` registers hold a head; `scores` has room for `count` and 15 more.
template <int chunks, typename Slot>
void Look(const float* query, const Slot* keys, const Slot* values, const int32_t* slots, int64_t count, int64_t width,
          float* scores, float* out) {
  __mmask16 lanes[chunks];
  __m512 q[chunks], gathered[chunks];
  const __m512 scale = _mm512_set1_ps(1 / std::sqrt(static_cast<float>(width)));
  for (int c = 0; c < chunks; ++c) {
    lanes[c] = FirstLanes(width - 16 * c);
    q[c] = _mm512_mul_ps(LoadLanes(query + 16 * c, lanes[c]), scale);
    gathered[c] = _mm512_setzero_ps();
  }
  float largest = -std::numeric_limits<float>::infinity();
  for (int64_t i = 0; i < count; ++i) {
    const Slot* key = keys + slots[i] * width;
    __m512 product = _mm512_mul_ps(q[0], LoadLanes(key, lanes[0]));
    for (int c = 1; c < chunks; ++c) product = _mm512_fmadd_ps(q[c], LoadLanes(key + 16 * c, lanes[c]), product);
    scores[i] = _mm512_reduce_add_ps(product);
    largest = std::max(largest, scores[i]);
  }
  __m512 sums = _mm512_setzero_ps();
  for (int64_t i = 0; i < count; i += 16) {
    const __mmask16 some = FirstLanes(count - i);
    const __m512 below = _mm512_sub_ps(_mm512_maskz_loadu_ps(some, scores + i), _mm512_set1_ps(largest));
    const __m512 weights = _mm512_maskz_mov_ps(some, Exp(below));
    _mm512_storeu_ps(scores + i, weights);
    sums = _mm512_add_ps(sums, weights);
  }
  for (int64_t i = 0; i < count; ++i) {
    const Slot* value = values + slots[i] * width;
    const __m512 weight = _mm512_set1_ps(scores[i]);
    for (int c = 0; c < chunks; ++c) gathered[c] = _mm512_fmadd_ps(weight, LoadLanes(value + 16 * c, lanes[c]), gathered[c]);
  }
  const __m512 total = _mm512_set1_ps(_mm512_reduce_add_ps(sums));
  for (int c = 0; c < chunks; ++c) _mm512_mask_storeu_ps(out + 16 * c, lanes[c], _mm512_div_ps(gathered[c], total));
}

// Sizes of one call: G histories, N heads, Q queries by time and then by beam, J beams that share a history's slots,
// C places of a history, H the width of a head.
struct Shape {
  int64_t G, N, Q, J, C, H;
};

// Query i of history g is beam i % J at time i / J. It sees the places below length + time + 1, and at place p the slot
// p * J + owners[g, i % J, p]; owners below 0 are hidden from it. A query that sees nothing looks at all places alike.
template <int chunks, typename Slot>
void Attend(xla::ffi::ThreadPool& pool, const Shape& s, const float* queries, const Slot* keys, const Slot* values,
            const int32_t* owners, int64_t length, float* out) {
  ForEach(pool, s.G * s.N, [&](int64_t unit) {
    const int64_t g = unit / s.N, history = unit * s.C * s.J * s.H;
    std::vector<int32_t> slots(s.C);
    std::vector<float> scores(s.C + 15), blind(s.H, 0.0f);
    for (int64_t i = 0; i < s.Q; ++i) {
      const int32_t* owner = owners + (g * s.J + i % s.J) * s.C;
      const int64_t places = std::min(length + i / s.J + 1, s.C);
      int64_t count = 0;
      for (int64_t p = 0; p < places; ++p) {
        slots[count] = static_cast<int32_t>(p * s.J) + owner[p];
        count += owner[p] >= 0;
      }
      const bool sees = count > 0;
      if (!sees) {
        count = s.C;
        for (int64_t p = 0; p < s.C; ++p) slots[p] = static_cast<int32_t>(p * s.J);
      }
      const int64_t query = (unit * s.Q + i) * s.H;
      Look<chunks>(sees ? queries + query : blind.data(), keys + history, values + history, slots.data(), count, s.H,
                   scores.data(), out + query);
    }
  });
}

constexpr int kChunks = 8;  // registers for a head, at most

template <typename Slot, int chunks = kChunks>
void Attend(int64_t needed, xla::ffi::ThreadPool& pool, const Shape& shape, const float* queries, const Slot* keys,
            const Slot* values, const int32_t* owners, int64_t length, float* out) {
  if constexpr (chunks > 0) {
    if (needed == chunks) return Attend<chunks>(pool, shape, queries, keys, values, owners, length, out);
    Attend<Slot, chunks - 1>(needed, pool, shape, queries, keys, values, owners, length, out);
  }
}

}  // namespace blenderbot_jax
