// Products of two large matrices, either of them maybe transposed: what training multiplies, forward and back.
//
// Both sides are copied into the order in which they are read: the first in panels, the second, by each thread as it comes
// to them, in blocks.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "packing.h"
#include "parallel.h"
#include "products.h"

namespace blenderbot_jax {

// A matrix [rows, columns] that lies row by row, or, transposed, column by column.
struct Matrix {
  const float* values;
  int64_t rows, columns;
  bool transposed;
};

// A matrix panel by panel.
inline const float* PackPanels(xla::ffi::ThreadPool& pool, const Matrix& a, const Panels& panels, float* room) {
  if (!a.transposed) return Pack(pool, a.values, panels, a.columns, room);
  ForEach(pool, panels.count, a.rows * a.columns / kPacked, [&](int64_t p) {
    const int64_t first = p * panels.height, height = panels.Height(p);
    CopyRows(a.values + first, a.rows, a.columns, height, room + first * a.columns, height);
  });
  return room;
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
  const int64_t inner = a.columns, block_count = (b.columns + kColumns - 1) / kColumns;
  const float* rows = PackPanels(pool, a, panels, room);
  const int64_t parts = (inner + Float32::kShallow - 1) / Float32::kShallow, deepest = (inner + parts - 1) / parts;
  const int64_t size = BlocksAtOnce(pool, block_count);
  ForEach(pool, (block_count + size - 1) / size, a.rows * inner * b.columns / kMultiplied, [&](int64_t r) {
    const int64_t first = r * size, count = std::min(size, block_count - first);
    float* packed = Scratch(count * deepest * kColumns);
    for (int64_t begin = 0, depth; begin < inner; begin += depth) {
      depth = std::min(deepest, inner - begin);
      PackBlocks(b, begin, depth, first, count, packed);
      const Run<Float32> run{packed, first, count, depth * kColumns};
      MultiplyRun(rows, panels, inner, begin, depth, run, b.columns, out, Added);
    }
  });
}

}  // namespace blenderbot_jax
