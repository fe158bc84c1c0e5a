// Aligned pieces of one block of memory.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "core/vector.h"

namespace convscan::CONVSCAN_ISA {

// Hands out pieces of a thread's workspace, aligned to cache lines; run once with a null base, it counts them.
class Arena {
 public:
  explicit Arena(void *base) : base_(static_cast<char *>(base)) {}

  template <class T>
  T *Take(int64_t count) {
    T *const taken = base_ == nullptr ? nullptr : reinterpret_cast<T *>(base_ + used_);
    used_ += CeilDiv(count * static_cast<int64_t>(sizeof(T)), kLine) * kLine;
    return taken;
  }
  size_t Used() const { return static_cast<size_t>(used_); }

 private:
  static constexpr int64_t kLine = 64;
  char *base_;
  int64_t used_ = 0;
};

}  // namespace convscan::CONVSCAN_ISA
