// What convolution by FFT and its gradients share: how time is cut into blocks and channels into tasks, filters and their
// spectra.
#pragma once

#include "conv/signal.h"
#include "core/arena.h"
#include "core/kernels.h"
#include "core/storage.h"
#include "core/workspace.h"
#include "fft/rows.h"
#include "fft/transform.h"

namespace convscan::CONVSCAN_ISA {

// What a sample costs, in multiply-adds, at the least.
inline constexpr int64_t kWorkPerSample = 8;
// Beyond this, what a problem touches is not in the caches when it is wanted.
inline constexpr int64_t kCacheBytes = int64_t{16} << 20;
// A panel is at least a line of channels wide, and more while it and what it keeps of its channels take no more than this: of
// most arrays every time step lies in a page of its own, so a panel takes several lines of it while it is there (on a Zen 5,
// ms with one, two and four lines: 6.5, 4.8, 4.1 for 8192 x 1024, K = 128; 4.7, 3.9, 3.7 for 4096 x 1024, K = L; but 4.3, 4.0,
// 4.0 for 16384 x 256, where two lines take 2 MiB).
inline constexpr int64_t kPanelBytes = int64_t{2176} << 10;

// A length of M for `taps` and `length`, checked or chosen; and the outputs P of a block, 0 when M does not fit.
template <class T>
struct Blocks {
  int64_t points, outputs;

  Blocks(int64_t length, int64_t taps, int64_t transform_length) {
    const int64_t span = length + taps - 1;
    points = transform_length > 0 ? transform_length : TransformLength<T>(CeilDiv(span, 2));
    if (2 * points >= span) {
      outputs = length;
    } else {
      outputs = (2 * points - (taps - 1)) / kChunk * kChunk;
      if (outputs < taps - 1 || outputs < kChunk) outputs = 0;  // a block's history must lie in the block before
    }
  }
};

// The channels of one task: `width` neighbours.
struct Groups {
  int64_t channels, width;

  int64_t Count() const { return CeilDiv(channels, width); }
  int64_t First(int64_t group) const { return group * width; }
  int64_t Size(int64_t group) const { return Min(width, channels - First(group)); }
};

// Filters to spectra, scaled for the way back. Where the taps of neighbouring filters share cache lines, they are copied, a
// line or more of filters at a time.
template <class S>
class Filters {
 public:
  using T = Compute<S>;
  using C = ComplexVec<T>;

  // `group` neighbouring channels have one filter.
  Filters(const void *h, int64_t batch_stride, int64_t tap_stride, int64_t filter_stride, int64_t group, int64_t taps,
          int64_t origin, const Transform<T> &transform)
      : h_(static_cast<const S *>(h)),
        batch_stride_(batch_stride),
        tap_stride_(tap_stride),
        filter_stride_(filter_stride),
        group_(group),
        taps_(taps),
        origin_(origin),
        transform_(transform) {}

  int64_t Group() const { return group_; }
  int64_t IndexOf(int64_t channel) const { return channel / group_; }
  bool ShareLines() const { return group_ == 1 && filter_stride_ == 1 && tap_stride_ != 1 && taps_ > 1; }
  // Filters copied together, of `channels` of one task, and the elements that they take.
  static int64_t CopiedOf(int64_t channels) { return Min(channels, kChunk); }
  int64_t Copies(int64_t channels) const { return CopiedOf(channels) * Pitch(); }

  // The taps of channel first + c, of a task of `channels`, times 1 / M; they are copied where there is room for them when c
  // reaches a new line of them.
  Taps<S> TapsOf(int64_t batch, int64_t first, int64_t channels, int64_t c, S *copies) const {
    const S *h = h_ + batch * batch_stride_ + IndexOf(first + c) * filter_stride_;
    int64_t stride = tap_stride_;
    if (copies != nullptr) {
      const int64_t copied = CopiedOf(channels);
      if (c % copied == 0) RowsFromColumns(h, stride, taps_, Min(copied, channels - c), copies, Pitch());
      h = copies + c % copied * Pitch();
      stride = 1;
    }
    const int64_t points = transform_.Points();
    return {h, stride, taps_, origin_, 2 * points, T{1} / static_cast<T>(points)};
  }

  // Their spectrum.
  void Transform(int64_t batch, int64_t first, int64_t channels, int64_t c, S *copies, C *spectrum,
                 const Ahead &ahead = {}) const {
    const Taps<S> taps = TapsOf(batch, first, channels, c, copies);
    transform_.FirstStep(taps, taps.UpperIsZero(transform_.Points()), spectrum);
    transform_.Spectrum(spectrum, ahead);
  }

  // The taps that the filter of a channel will be read from, where they are contiguous.
  void WantTaps(int64_t batch, int64_t channel, Ahead &ahead) const {
    if (tap_stride_ == 1)
      ahead.Want(h_ + batch * batch_stride_ + IndexOf(channel) * filter_stride_,
                 taps_ * static_cast<int64_t>(sizeof(S)));
  }

 private:
  // From row to row of copied taps: not a power of two, so that rows do not compete for the same cache sets.
  int64_t Pitch() const { return (CeilDiv(taps_, kChunk) + 1) * kChunk; }

  const S *h_;
  const int64_t batch_stride_, tap_stride_, filter_stride_, group_, taps_, origin_;
  const convscan::CONVSCAN_ISA::Transform<T> &transform_;
};

// Spectra that were made before: of one filter for all channels (step 0), or of one for each.
struct KeptSpectra {
  const char *address = nullptr;
  int64_t step = 0;  // in bytes
  bool is_bfloat16 = false, is_conjugate = false;
  const void *pattern = nullptr;  // of what they have that is not zero
};

// The bytes of one kept spectrum.
template <class S>
int64_t SpectrumBytes(int64_t points, convscan_spectrum_storage storage) {
  return 2 * points *
         static_cast<int64_t>(storage == CONVSCAN_SPECTRUM_BFLOAT16 ? sizeof(BFloat16) : sizeof(Compute<S>));
}

template <class Problem>
const Problem &SizesOf(const Problem &p) {
  return p;
}
inline const convscan_filter_gradient &SizesOf(const convscan_conv_gradient &p) { return p.filter; }

// Sets up the transform of a problem of any kind and runs it.
template <class S, template <class> class Runner, class Problem, class... Rest>
convscan_status RunBlocks(const Problem &p, int64_t transform_length, const Rest &...rest) {
  using T = Compute<S>;
  const Blocks<T> blocks(LongestSequence(SizesOf(p)), SizesOf(p).taps, transform_length);
  Steps<T> steps;
  if (blocks.outputs <= 0 || !steps.Cut(blocks.points)) return CONVSCAN_UNSUPPORTED;
  const Transform<T> transform(blocks.points);
  if (!transform.IsValid()) return CONVSCAN_OUT_OF_MEMORY;
  return Runner<S>(p, transform, blocks.outputs, rest...).Run();
}

}  // namespace convscan::CONVSCAN_ISA
