// What XLA programs call: shapes checked, types told apart. The functions by which Python finds them are at the end.
#include <algorithm>
#include <cstdint>
#include <optional>

#include "attention.h"
#include "dense.h"
#include "norms.h"
#include "products.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace blenderbot_jax {
namespace {

using Floats = ffi::Buffer<ffi::F32>;
using Result = ffi::Result<Floats>;

// Every dimension but the last.
int64_t RowsOf(const ffi::AnyBuffer::Dimensions& dimensions) {
  int64_t rows = 1;
  for (size_t i = 0; i + 1 < dimensions.size(); ++i) rows *= dimensions[i];
  return rows;
}

// The columns of a product, if its kernel's blocks [blocks, inner, 32, ...] fit its rows and results [..., columns].
std::optional<int64_t> Columns(const ffi::AnyBuffer::Dimensions& blocks, int64_t inner, const Floats& out, int64_t rows) {
  const int64_t columns = out.dimensions().back();
  const bool fit = blocks[1] == inner && blocks[2] == kColumns && blocks[0] * kColumns >= columns;
  return fit && RowsOf(out.dimensions()) == rows ? std::optional(columns) : std::nullopt;
}

ffi::Error Misfit() { return ffi::Error::InvalidArgument("a kernel does not fit the rows or the result"); }

// x [..., inner]; kernels in blocks [blocks, inner, 32] of float32 or bfloat16 -> x times each, [..., features]; room as x.
ffi::Error Products(ffi::ThreadPool pool, Floats x, ffi::RemainingArgs kernels, Result room, ffi::RemainingRets results) {
  const int64_t rows = RowsOf(x.dimensions()), inner = x.dimensions().back();
  if (kernels.size() != results.size()) return Misfit();
  if (rows == 0) return ffi::Error::Success();
  const Panels panels(rows);
  const float* packed = Pack(pool, x.typed_data(), panels, inner, room->typed_data());
  for (size_t i = 0; i < kernels.size(); ++i) {
    const auto blocks = kernels.get<ffi::AnyBuffer>(i);
    auto out = results.get<Floats>(i);
    if (!blocks || !out || blocks->dimensions().size() != 3) return Misfit();
    const auto columns = Columns(blocks->dimensions(), inner, **out, rows);
    if (!columns) return Misfit();
    const int64_t count = blocks->dimensions()[0];
    if (blocks->element_type() == ffi::F32) {
      Multiply<Float32>(pool, packed, panels, inner, blocks->typed_data<float>(), count, *columns, (*out)->typed_data());
    } else if (blocks->element_type() == ffi::BF16) {
      Multiply<BFloat16>(pool, packed, panels, inner, static_cast<const uint16_t*>(blocks->untyped_data()), count,
                         *columns, (*out)->typed_data());
    } else {
      return Misfit();
    }
  }
  return ffi::Error::Success();
}

// x [..., inner]; blocks [blocks, inner / 4, 32, 4] and scales [features] of each kernel -> x times each, [..., features].
// Room to work in: the rows in 8 bits [rows, inner / 4], their scales [rows] and sums [rows].
ffi::Error ProductsInt8(ffi::ThreadPool pool, Floats x, ffi::RemainingArgs kernels, Result room, Result row_scales,
                        ffi::Result<ffi::Buffer<ffi::S32>> row_sums, ffi::RemainingRets results) {
  const int64_t rows = RowsOf(x.dimensions()), inner = x.dimensions().back();
  if (kernels.size() != 2 * results.size()) return Misfit();
  if (rows == 0) return ffi::Error::Success();
  const Panels panels(rows);
  const QuantizedRows quantized{room->typed_data(), row_scales->typed_data(), row_sums->typed_data()};
  QuantizeRows(pool, x.typed_data(), panels, inner, quantized);
  for (size_t i = 0; i < results.size(); ++i) {
    const auto blocks = kernels.get<ffi::Buffer<ffi::U8>>(2 * i);
    const auto scales = kernels.get<Floats>(2 * i + 1);
    auto out = results.get<Floats>(i);
    if (!blocks || !scales || !out || blocks->dimensions().size() != 4 || blocks->dimensions()[3] != 4) return Misfit();
    const auto columns = Columns(blocks->dimensions(), (inner + 3) / 4, **out, rows);
    if (!columns || scales->dimensions().back() != *columns) return Misfit();
    MultiplyInt8(pool, quantized, panels, inner, blocks->typed_data(), scales->typed_data(), blocks->dimensions()[0],
                 *columns, (*out)->typed_data());
  }
  return ffi::Error::Success();
}

// a [m, k] or [k, m] times b [k, n] or [n, k] -> out [m, n]; room as a.
ffi::Error DenseProduct(ffi::ThreadPool pool, Floats a, Floats b, Result room, Result out, bool transposed_a,
                        bool transposed_b) {
  if (a.dimensions().size() != 2 || b.dimensions().size() != 2 || out->dimensions().size() != 2) return Misfit();
  const auto whole = [](const Floats& of, bool transposed) {
    const int64_t first = of.dimensions()[0], second = of.dimensions()[1];
    return Matrix{of.typed_data(), transposed ? second : first, transposed ? first : second, transposed};
  };
  const Matrix left = whole(a, transposed_a), right = whole(b, transposed_b);
  const bool fit = left.columns == right.rows && out->dimensions()[0] == left.rows && out->dimensions()[1] == right.columns;
  if (!fit || room->element_count() != a.element_count()) return Misfit();
  if (left.rows == 0 || left.columns == 0 || right.columns == 0) {
    std::fill_n(out->typed_data(), out->element_count(), 0.0f);  // sums of nothing, or no sums
    return ffi::Error::Success();
  }
  MultiplyDense(pool, left, right, room->typed_data(), out->typed_data());
  return ffi::Error::Success();
}

// The sizes of a cache [G, N, C * J, H], and of rows [..., N * H] that are its beams' at one time or at several.
std::optional<Shape> ShapeOf(const Floats& rows, const ffi::AnyBuffer::Dimensions& cache, int64_t J) {
  if (cache.size() != 4 || J < 1 || cache[2] % J || rows.dimensions().back() != cache[1] * cache[3]) return std::nullopt;
  const int64_t count = RowsOf(rows.dimensions()), beams = cache[0] * J;
  if (beams == 0 || count % beams) return std::nullopt;
  return Shape{cache[0], cache[1], count / beams, J, cache[2] / J, cache[3]};
}

// queries [..., N * H], keys and values [G, N, C * J, H] in float32 or bfloat16, owners [G, J, C] -> out as queries.
ffi::Error Attention(ffi::ThreadPool pool, Floats queries, ffi::AnyBuffer keys, ffi::AnyBuffer values,
                     ffi::Buffer<ffi::S32> owners, ffi::Buffer<ffi::S32> length, Result out) {
  const auto owned = owners.dimensions();
  const auto shape = owned.size() == 3 ? ShapeOf(queries, keys.dimensions(), owned[1]) : std::nullopt;
  const bool alike = keys.element_type() == values.element_type() && keys.element_count() == values.element_count();
  if (!shape || !alike || owned[0] != shape->G || owned[2] != shape->C || shape->H > 16 * kChunks) {
    return ffi::Error::InvalidArgument("queries, keys, values and owners do not fit each other");
  }
  const int64_t chunks = (shape->H + 15) / 16, written = length.typed_data()[0];
  if (keys.element_type() == ffi::F32) {
    Attend(chunks, pool, *shape, queries.typed_data(), keys.typed_data<float>(), values.typed_data<float>(),
           owners.typed_data(), written, out->typed_data());
  } else if (keys.element_type() == ffi::BF16) {
    Attend(chunks, pool, *shape, queries.typed_data(), static_cast<const uint16_t*>(keys.untyped_data()),
           static_cast<const uint16_t*>(values.untyped_data()), owners.typed_data(), written, out->typed_data());
  } else {
    return ffi::Error::InvalidArgument("keys and values are in float32 or bfloat16");
  }
  return ffi::Error::Success();
}

// rows [..., N * H] into slots [G, N, C * J, H], in place.
ffi::Error Append(ffi::ThreadPool pool, Floats rows, ffi::AnyBuffer before, ffi::Buffer<ffi::S32> length,
                  ffi::Result<ffi::AnyBuffer> slots, int64_t writers) {
  const auto shape = ShapeOf(rows, slots->dimensions(), writers);
  const int64_t written = length.typed_data()[0];
  if (!shape || before.untyped_data() != slots->untyped_data()) {
    return ffi::Error::InvalidArgument("rows and slots do not fit each other");
  }
  if (written < 0 || written + shape->T > shape->C) return ffi::Error::InvalidArgument("the cache is full");
  if (slots->element_type() == ffi::F32) {
    Write(pool, *shape, rows.typed_data(), written, slots->typed_data<float>());
  } else if (slots->element_type() == ffi::BF16) {
    Write(pool, *shape, rows.typed_data(), written, static_cast<uint16_t*>(slots->untyped_data()));
  } else {
    return ffi::Error::InvalidArgument("keys and values are in float32 or bfloat16");
  }
  return ffi::Error::Success();
}

// x [..., width], scale and bias [width] -> out as x.
ffi::Error LayerNorm(ffi::ThreadPool pool, Floats x, Floats scale, Floats bias, Result out, float epsilon) {
  const int64_t width = x.dimensions().back();
  if (scale.element_count() != static_cast<size_t>(width) || bias.element_count() != static_cast<size_t>(width)) {
    return ffi::Error::InvalidArgument("scale and bias do not fit the rows");
  }
  NormalizeRows(pool, x.typed_data(), scale.typed_data(), bias.typed_data(), RowsOf(x.dimensions()), width, epsilon,
                out->typed_data());
  return ffi::Error::Success();
}

}  // namespace
}  // namespace blenderbot_jax

#define EXPORTED extern "C" __attribute__((visibility("default")))

XLA_FFI_DEFINE_HANDLER(products_handler, blenderbot_jax::Products,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                           .Arg<blenderbot_jax::Floats>()
                           .RemainingArgs()
                           .Ret<blenderbot_jax::Floats>()
                           .RemainingRets());
XLA_FFI_DEFINE_HANDLER(products_int8_handler, blenderbot_jax::ProductsInt8,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                           .Arg<blenderbot_jax::Floats>()
                           .RemainingArgs()
                           .Ret<blenderbot_jax::Floats>()
                           .Ret<blenderbot_jax::Floats>()
                           .Ret<ffi::Buffer<ffi::S32>>()
                           .RemainingRets());
XLA_FFI_DEFINE_HANDLER(dense_product_handler, blenderbot_jax::DenseProduct,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                           .Arg<blenderbot_jax::Floats>()
                           .Arg<blenderbot_jax::Floats>()
                           .Ret<blenderbot_jax::Floats>()
                           .Ret<blenderbot_jax::Floats>()
                           .Attr<bool>("transposed_a")
                           .Attr<bool>("transposed_b"));
XLA_FFI_DEFINE_HANDLER(attention_handler, blenderbot_jax::Attention,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                           .Arg<blenderbot_jax::Floats>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::Buffer<ffi::S32>>()
                           .Arg<ffi::Buffer<ffi::S32>>()
                           .Ret<blenderbot_jax::Floats>());
XLA_FFI_DEFINE_HANDLER(append_handler, blenderbot_jax::Append,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                           .Arg<blenderbot_jax::Floats>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::Buffer<ffi::S32>>()
                           .Ret<ffi::AnyBuffer>()
                           .Attr<int64_t>("writers"));
XLA_FFI_DEFINE_HANDLER(layer_norm_handler, blenderbot_jax::LayerNorm,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                           .Arg<blenderbot_jax::Floats>()
                           .Arg<blenderbot_jax::Floats>()
                           .Arg<blenderbot_jax::Floats>()
                           .Ret<blenderbot_jax::Floats>()
                           .Attr<float>("epsilon"));

EXPORTED XLA_FFI_Error* blenderbot_jax_products(XLA_FFI_CallFrame* frame) { return products_handler(frame); }
EXPORTED XLA_FFI_Error* blenderbot_jax_products_int8(XLA_FFI_CallFrame* frame) { return products_int8_handler(frame); }
EXPORTED XLA_FFI_Error* blenderbot_jax_dense_product(XLA_FFI_CallFrame* frame) { return dense_product_handler(frame); }
EXPORTED XLA_FFI_Error* blenderbot_jax_attention(XLA_FFI_CallFrame* frame) { return attention_handler(frame); }
EXPORTED XLA_FFI_Error* blenderbot_jax_append(XLA_FFI_CallFrame* frame) { return append_handler(frame); }
EXPORTED XLA_FFI_Error* blenderbot_jax_layer_norm(XLA_FFI_CallFrame* frame) { return layer_norm_handler(frame); }

// Whether it has products of bfloat16 numbers, which XLA then uses.
EXPORTED int blenderbot_jax_multiplies_bfloat16() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512bf16");
}

// Whether this processor has the instructions that all of the above is compiled to.
EXPORTED int blenderbot_jax_runs_here() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
}
