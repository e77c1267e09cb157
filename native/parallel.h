// A loop shared between the threads of an XLA program.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>

#include "xla/ffi/api/ffi.h"

namespace blenderbot_jax {

constexpr int kPauses = 100;  // about 5 microseconds
// What a thread must have to do before another is woken, which takes as long; nanoseconds.
constexpr int64_t kWorthwhile = 40'000;

// Calls body(i) for every i below count, on the calling thread and on those of the pool that are free, and returns when all
// calls have. A helper that comes late finds nothing left to claim, so the caller waits only for what has been begun, and
// loops of several callers cannot block each other. `nanoseconds` is about what one thread would take for all of it: a small
// model's loops end before a helper wakes up.
template <typename Body>
void ForEach(xla::ffi::ThreadPool& pool, int64_t count, int64_t nanoseconds, const Body& body) {
  struct Progress {
    std::atomic<int64_t> claimed{0}, finished{0};
  };
  auto progress = std::make_shared<Progress>();
  auto work = [progress, count, &body] {
    for (int64_t i = progress->claimed++; i < count; i = progress->claimed++) {
      body(i);
      progress->finished.fetch_add(1, std::memory_order_release);
    }
  };
  const int64_t helpers = std::min({pool.num_threads(), count, nanoseconds / kWorthwhile}) - 1;
  for (int64_t helper = 0; helper < helpers; ++helper) pool.Schedule(decltype(work)(work));
  work();
  // There may be more threads than processors: one that has waited for long lets another go on.
  for (int pauses = kPauses; progress->finished.load(std::memory_order_acquire) < count;) {
    if (pauses > 0) {
      --pauses;
      _mm_pause();
    } else {
      std::this_thread::yield();
    }
  }
}

}  // namespace blenderbot_jax
