// What XLA programs call: shapes checked, types told apart. The functions by which Python finds them are at the end.
#include <cstdint>
#include <optional>

#include "attention.h"
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

// x [..., inner], blocks [blocks, inner, 32] in float32 or bfloat16 -> out [..., features]; room as x.
ffi::Error Product(ffi::ThreadPool pool, Floats x, ffi::AnyBuffer blocks, Result out, Result room) {
  const auto outer = x.dimensions(), packed = blocks.dimensions();
  const int64_t rows = RowsOf(outer), inner = outer.back(), features = out->dimensions().back();
  if (packed.size() != 3 || packed[1] != inner || packed[2] != kColumns || packed[0] * kColumns < features) {
    return ffi::Error::InvalidArgument("a product's blocks do not fit its rows");
  }
  if (rows == 0) return ffi::Error::Success();
  if (blocks.element_type() == ffi::F32) {
    Multiply<Float32>(pool, x.typed_data(), rows, inner, blocks.typed_data<float>(), packed[0], features,
                      room->typed_data(), out->typed_data());
  } else if (blocks.element_type() == ffi::BF16) {
    Multiply<BFloat16>(pool, x.typed_data(), rows, inner, static_cast<uint16_t*>(blocks.untyped_data()), packed[0],
                       features, room->typed_data(), out->typed_data());
  } else {
    return ffi::Error::InvalidArgument("a product's blocks are in float32 or bfloat16");
  }
  return ffi::Error::Success();
}

// x [..., inner], blocks [blocks, inner / 4, 32, 4], scales [features] -> out [..., features]; room [rows, inner / 4],
// row_scales [rows] and row_sums [rows] are room to work in.
ffi::Error ProductInt8(ffi::ThreadPool pool, Floats x, ffi::Buffer<ffi::U8> blocks, Floats scales, Result out, Result room,
                       Result row_scales, ffi::Result<ffi::Buffer<ffi::S32>> row_sums) {
  const auto outer = x.dimensions(), packed = blocks.dimensions();
  const int64_t rows = RowsOf(outer), inner = outer.back(), features = out->dimensions().back();
  if (packed.size() != 4 || packed[1] != (inner + 3) / 4 || packed[2] != kColumns || packed[0] * kColumns < features) {
    return ffi::Error::InvalidArgument("a product's blocks do not fit its rows");
  }
  if (rows == 0) return ffi::Error::Success();
  MultiplyInt8(pool, x.typed_data(), rows, inner, blocks.typed_data(), scales.typed_data(), packed[0], features,
               room->typed_data(), row_scales->typed_data(), row_sums->typed_data(), out->typed_data());
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
  if (!shape || owned[0] != shape->G || owned[2] != shape->C || shape->H > 16 * kChunks) {
    return ffi::Error::InvalidArgument("queries, keys and owners do not fit each other");
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

}  // namespace
}  // namespace blenderbot_jax

#define EXPORTED extern "C" __attribute__((visibility("default")))

XLA_FFI_DEFINE_HANDLER(product_handler, blenderbot_jax::Product,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                           .Arg<blenderbot_jax::Floats>()
                           .Arg<ffi::AnyBuffer>()
                           .Ret<blenderbot_jax::Floats>()
                           .Ret<blenderbot_jax::Floats>());
XLA_FFI_DEFINE_HANDLER(product_int8_handler, blenderbot_jax::ProductInt8,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                           .Arg<blenderbot_jax::Floats>()
                           .Arg<ffi::Buffer<ffi::U8>>()
                           .Arg<blenderbot_jax::Floats>()
                           .Ret<blenderbot_jax::Floats>()
                           .Ret<blenderbot_jax::Floats>()
                           .Ret<blenderbot_jax::Floats>()
                           .Ret<ffi::Buffer<ffi::S32>>());
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

EXPORTED XLA_FFI_Error* blenderbot_jax_product(XLA_FFI_CallFrame* frame) { return product_handler(frame); }
EXPORTED XLA_FFI_Error* blenderbot_jax_product_int8(XLA_FFI_CallFrame* frame) { return product_int8_handler(frame); }
EXPORTED XLA_FFI_Error* blenderbot_jax_attention(XLA_FFI_CallFrame* frame) { return attention_handler(frame); }
EXPORTED XLA_FFI_Error* blenderbot_jax_append(XLA_FFI_CallFrame* frame) { return append_handler(frame); }

// Whether this processor has the instructions that all of the above is compiled to.
EXPORTED int blenderbot_jax_runs_here() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
}
