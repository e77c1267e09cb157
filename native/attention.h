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

// What a thread does in a nanosecond, about: numbers of keys, with those of values; numbers written to slots.
constexpr int64_t kAttended = 2, kWritten = 1;

// exp of numbers up to 0, within two units in the last place: a power of two times a polynomial around 0. NaN stays NaN.
inline __m512 Exp(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-104.0f), x);  // below, the result is 0 in float32; of a NaN the second is taken
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

// The sum of each of 16 registers: pairs are halved and joined, four times over.
inline __m512 SumEach(__m512 (&v)[16]) {
  for (int i = 0; i < 8; ++i) {  // lanes of i and of i + 8 take turns from here on
    v[i] = _mm512_add_ps(_mm512_unpacklo_ps(v[i], v[i + 8]), _mm512_unpackhi_ps(v[i], v[i + 8]));
  }
  for (int i = 0; i < 4; ++i) {
    v[i] = _mm512_add_ps(_mm512_unpacklo_ps(v[i], v[i + 4]), _mm512_unpackhi_ps(v[i], v[i + 4]));
  }
  // Each quarter of a register now holds four partial sums, of i, i + 4, i + 8 and i + 12 in some order.
  for (int i = 0; i < 2; ++i) {
    const __m512 low = _mm512_shuffle_f32x4(v[i], v[i + 2], 0x44), high = _mm512_shuffle_f32x4(v[i], v[i + 2], 0xEE);
    v[i] = _mm512_add_ps(low, high);
  }
  const __m512 even = _mm512_shuffle_f32x4(v[0], v[1], 0x88), odd = _mm512_shuffle_f32x4(v[0], v[1], 0xDD);
  const __m512 sums = _mm512_add_ps(even, odd);
  // Lane 4 k + j of the sums belongs to register k + 4 j.
  const __m512i order = _mm512_setr_epi32(0, 8, 4, 12, 1, 9, 5, 13, 2, 10, 6, 14, 3, 11, 7, 15);
  return _mm512_permutexvar_ps(order, sums);
}

// Sizes of one call: G histories, N heads of H numbers, T times, J beams that share a history's slots, C places of a history.
struct Shape {
  int64_t G, N, T, J, C, H;
  // Where a row of N heads [G, J, T] lies.
  int64_t Row(int64_t g, int64_t j, int64_t t) const { return ((g * J + j) * T + t) * N * H; }
  // Where a slot [G, N, C * J] of a head lies.
  int64_t Slot(int64_t g, int64_t n, int64_t slot) const { return ((g * N + n) * C * J + slot) * H; }
};

// What one query finds in `count` slots: the softmax of its products with their keys, times their values.
// `chunks` registers hold a head; `scores` has room for `count` rounded up to 16.
template <int chunks, typename Slot>
void Look(const float* query, const Slot* keys, const Slot* values, const int32_t* slots, int64_t count, int64_t width,
          float* scores, float* out) {
  __mmask16 lanes[chunks];
  __m512 q[chunks], gathered[2][chunks];
  const __m512 scale = _mm512_set1_ps(1 / std::sqrt(static_cast<float>(width)));
  for (int c = 0; c < chunks; ++c) {
    lanes[c] = FirstLanes(width - 16 * c);
    q[c] = _mm512_mul_ps(LoadLanes(query + 16 * c, lanes[c]), scale);
    gathered[0][c] = gathered[1][c] = _mm512_setzero_ps();
  }
  __m512 largest = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  for (int64_t i = 0; i < count; i += 16) {
    __m512 products[16];
#pragma GCC unroll 16
    for (int64_t k = 0; k < 16; ++k) {
      const int64_t place = slots[std::min(i + k, count - 1)] * width;
      const Slot* key = keys + place;
      for (int c = 0; c < chunks; ++c) _mm_prefetch(values + place + 16 * c, _MM_HINT_T0);  // which come next
      products[k] = _mm512_mul_ps(q[0], LoadLanes(key, lanes[0]));
      for (int c = 1; c < chunks; ++c) products[k] = _mm512_fmadd_ps(q[c], LoadLanes(key + 16 * c, lanes[c]), products[k]);
    }
    const __m512 sums = SumEach(products);
    largest = _mm512_max_ps(largest, sums);  // what stands beyond `count` is the last one again
    _mm512_storeu_ps(scores + i, sums);
  }
  largest = _mm512_set1_ps(_mm512_reduce_max_ps(largest));
  __m512 sums = _mm512_setzero_ps();
  for (int64_t i = 0; i < count; i += 16) {
    const __m512 weights = _mm512_maskz_mov_ps(FirstLanes(count - i), Exp(_mm512_sub_ps(_mm512_loadu_ps(scores + i), largest)));
    _mm512_storeu_ps(scores + i, weights);
    sums = _mm512_add_ps(sums, weights);
  }
  for (int64_t i = 0; i < count; i += 2) {
#pragma GCC unroll 2
    for (int64_t k = 0; k < 2; ++k) {  // an odd one out has a weight of 0 beside it
      const Slot* value = values + slots[std::min(i + k, count - 1)] * width;
      const __m512 weight = _mm512_set1_ps(scores[i + k]);
      for (int c = 0; c < chunks; ++c) {
        gathered[k][c] = _mm512_fmadd_ps(weight, LoadLanes(value + 16 * c, lanes[c]), gathered[k][c]);
      }
    }
  }
  const __m512 total = _mm512_set1_ps(_mm512_reduce_add_ps(sums));
  for (int c = 0; c < chunks; ++c) {
    const __m512 both = _mm512_add_ps(gathered[0][c], gathered[1][c]);
    _mm512_mask_storeu_ps(out + 16 * c, lanes[c], _mm512_div_ps(both, total));
  }
}

// The slots of a beam's first `places` places, but for those that are hidden: place p lies in slot p * J + owner[p].
inline int64_t OwnSlots(const int32_t* owner, int64_t places, int64_t J, int32_t* slots) {
  int64_t count = 0;
  for (int64_t p = 0; p < places; p += 16) {
    const __mmask16 some = FirstLanes(places - p);
    const __m512i owners = _mm512_maskz_loadu_epi32(some, owner + p);
    const __mmask16 seen = _mm512_mask_cmpge_epi32_mask(some, owners, _mm512_setzero_si512());
    const __m512i place = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int32_t>(p)),
                                           _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    const __m512i slot = _mm512_add_epi32(_mm512_mullo_epi32(place, _mm512_set1_epi32(static_cast<int32_t>(J))), owners);
    _mm512_mask_compressstoreu_epi32(slots + count, seen, slot);
    count += __builtin_popcount(seen);
  }
  return count;
}

// A query of time t sees the places below length + t + 1 whose owner is not below 0. One that sees none looks at all places
// alike, as a softmax over scores that are all the same does.
template <int chunks, typename Slot>
void Attend(xla::ffi::ThreadPool& pool, const Shape& s, const float* queries, const Slot* keys, const Slot* values,
            const int32_t* owners, int64_t length, float* out) {
  const int64_t numbers = s.G * s.J * s.T * s.N * s.H * std::min(length + s.T, s.C);  // of keys, and as many of values
  ForEach(pool, s.G * s.N, numbers / kAttended, [&](int64_t unit) {
    const int64_t g = unit / s.N, n = unit % s.N, history = s.Slot(g, n, 0);
    std::vector<int32_t> slots(s.C + 15);
    std::vector<float> scores(s.C + 15), blind(s.H, 0.0f);
    for (int64_t j = 0; j < s.J; ++j) {
      const int32_t* owner = owners + (g * s.J + j) * s.C;
      for (int64_t t = 0; t < s.T; ++t) {
        int64_t count = OwnSlots(owner, std::min(length + t + 1, s.C), s.J, slots.data());
        const float* query = queries + s.Row(g, j, t) + n * s.H;
        if (count == 0) {
          query = blind.data();
          for (; count < s.C; ++count) slots[count] = static_cast<int32_t>(count * s.J);
        }
        Look<chunks>(query, keys + history, values + history, slots.data(), count, s.H, scores.data(),
                     out + s.Row(g, j, t) + n * s.H);
      }
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

inline void Store(float* to, __mmask16 lanes, __m512 values) { _mm512_mask_storeu_ps(to, lanes, values); }

inline void Store(uint16_t* to, __mmask16 lanes, __m512 values) {  // to bfloat16, to the nearest, of two to the even one
  const __m512i bits = _mm512_castps_si512(values);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
  _mm256_mask_storeu_epi16(to, lanes, _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
}

// Writes rows [G, J, T, N * H] into the slots of places `length` and on, [G, N, C * J, H].
template <typename Slot>
void Write(xla::ffi::ThreadPool& pool, const Shape& s, const float* rows, int64_t length, Slot* slots) {
  ForEach(pool, s.G * s.J, s.G * s.J * s.T * s.N * s.H / kWritten, [&](int64_t beam) {
    const int64_t g = beam / s.J, j = beam % s.J;
    for (int64_t t = 0; t < s.T; ++t) {
      for (int64_t n = 0; n < s.N; ++n) {
        const float* from = rows + s.Row(g, j, t) + n * s.H;
        Slot* to = slots + s.Slot(g, n, (length + t) * s.J + j);
        for (int64_t h = 0; h < s.H; h += 16) Store(to + h, FirstLanes(s.H - h), LoadLanes(from + h, FirstLanes(s.H - h)));
      }
    }
  });
}

}  // namespace blenderbot_jax
