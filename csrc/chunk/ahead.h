// Rows in memory that will be wanted soon, asked for a few cache lines at a time while something else is computed.
//
// A head's rows lie as far apart as all heads are wide, mostly each in a page of its own: no prefetcher follows them, and to
// ask for all at once only fills the processor's queue of misses. Between the blocks of a product there is time.
#pragma once

#include "chunk/rows.h"

namespace convscan::CONVSCAN_ISA {

class Ahead {
 public:
  // Forgets what was not asked for.
  void Clear() { count_ = at_ = 0, row_ = 0, byte_ = 0, lines_ = 0; }

  // `steps` steps of `channels` channels.
  template <class S>
  void Add(const Rows<S> &rows, int64_t steps, int64_t channels) {
    if (count_ == kMost || steps <= 0 || channels <= 0 || !rows.IsDense()) return;
    const int64_t bytes = channels * static_cast<int64_t>(sizeof(S));
    parts_[count_++] = {reinterpret_cast<const char *>(rows.Data()),
                        rows.Step() * static_cast<int64_t>(sizeof(S)), steps, bytes};
    lines_ += steps * CeilDiv(bytes, kLine);
  }

  // Lets `times` calls of Ask ask for all of it.
  void Spread(int64_t times) { share_ = CeilDiv(lines_, Max(1, times)); }

  CONVSCAN_INLINE void Ask() {
    for (int64_t n = share_; n > 0 && at_ < count_; --n) {
      const Part &part = parts_[at_];
      __builtin_prefetch(part.data + row_ * part.step + byte_, 0, 2);
      byte_ += kLine;
      if (byte_ < part.bytes) continue;
      byte_ = 0;
      if (++row_ < part.rows) continue;
      row_ = 0;
      ++at_;
    }
  }

 private:
  static constexpr int kMost = 4;
  static constexpr int64_t kLine = 64;
  struct Part {
    const char *data;
    int64_t step, rows, bytes;
  };

  Part parts_[kMost];
  int count_ = 0, at_ = 0;
  int64_t row_ = 0, byte_ = 0, lines_ = 0, share_ = 0;
};

}  // namespace convscan::CONVSCAN_ISA
