// Convolution by FFT: one row at a time, the row and its filter's spectrum in cache (see fft/transform.h).
//
// A block of P = 2M - (K - 1) outputs needs one transform of M points. If that covers the row there is one block;
// otherwise blocks overlap and save: the K - 1 samples before a block enter its transform at the end of the period.
// An initial state is the same thing for the first block.
//
// Rows of a channel-contiguous array are read and written 16 to 64 channels at a time: through a small panel of
// transposed rows, block after block of time, or, where a panel would take too much memory, through the output array
// itself, transposed in 16 x 16 tiles (TransposeTiles): every access is a whole line. Gates and what else belongs to the
// first and the last pass over the samples are applied on the way in and out (see fft/gated_columns.h).
#include "conv/activation.h"
#include "conv/signal.h"
#include "core/arena.h"
#include "core/kernels.h"
#include "core/storage.h"
#include "core/workspace.h"
#include "fft/gated_columns.h"
#include "fft/rows.h"
#include "fft/transform.h"

namespace convscan::CONVSCAN_ISA {
namespace {

// What a sample costs, in multiply-adds, at the least.
constexpr int64_t kWorkPerSample = 8;

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

// The channels of one task: `width` neighbours where neighbours share cache lines, 16 where no more are left, otherwise
// one.
struct Groups {
  int64_t width, wide, chunks, single;  // how many of each

  Groups(int64_t channels, bool share_lines, int64_t width = kChunk) : width(width) {
    wide = share_lines ? channels / width : 0;
    chunks = share_lines ? channels % width / kChunk : 0;
    single = channels - wide * width - chunks * kChunk;
  }
  int64_t Count() const { return wide + chunks + single; }
  bool IsWide(int64_t group) const { return group < wide + chunks; }
  int64_t First(int64_t group) const {
    if (group < wide) return group * width;
    if (group < wide + chunks) return wide * width + (group - wide) * kChunk;
    return wide * width + chunks * kChunk + (group - wide - chunks);
  }
  int64_t Size(int64_t group) const { return group < wide ? width : IsWide(group) ? kChunk : 1; }
};

// Filters to spectra, scaled for the way back. Where the taps of neighbouring filters share cache lines, they are copied
// a few at a time: 16 while that is little memory, then 4 (measured: reading one column of a (16384, 256) filter at a
// time doubles the whole time).
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
  // Room for copied taps, in elements.
  int64_t Copies() const { return Copied() * taps_; }

  // The spectrum of the filter of channel first + c, of 16 whose taps are copied when c reaches a new few of them.
  void Transform(int64_t batch, int64_t first, int64_t c, bool copies, S *copied_taps, C *spectrum,
                 const Ahead &ahead = {}) const {
    const S *h = h_ + batch * batch_stride_ + IndexOf(first + c) * filter_stride_;
    int64_t stride = tap_stride_;
    if (copies) {
      const int64_t copied = Copied();
      for (int64_t few = 0; c % copied == 0 && few < copied; few += kFew)
        CopyColumns<kFew>(h + few, stride, taps_, copied_taps + few * taps_);
      h = copied_taps + c % copied * taps_;
      stride = 1;
    }
    const int64_t points = transform_.Points();
    const Taps<S> taps{h, stride, taps_, origin_, 2 * points, T{1} / static_cast<T>(points)};
    transform_.FirstStep(taps, taps.UpperIsZero(points), spectrum);
    transform_.Spectrum(spectrum, ahead);
  }

  // The taps that the filter of a channel will be read from, where they are contiguous.
  void WantTaps(int64_t batch, int64_t channel, Ahead &ahead) const {
    if (tap_stride_ == 1)
      ahead.Want(h_ + batch * batch_stride_ + IndexOf(channel) * filter_stride_,
                 taps_ * static_cast<int64_t>(sizeof(S)));
  }

 private:
  static constexpr int kFew = 4;
  static constexpr int64_t kCopyBytes = int64_t{256} << 10;

  int64_t Copied() const {
    return taps_ * kChunk * static_cast<int64_t>(sizeof(S)) <= kCopyBytes ? kChunk : kFew;
  }

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

template <class S>
class FftConvolution {
 public:
  using T = Compute<S>;
  using C = ComplexVec<T>;

  FftConvolution(const convscan_conv &p, const Transform<T> &transform, int64_t outputs, const KeptSpectra &kept = {})
      : p_(p),
        transform_(transform),
        kept_(kept),
        filters_(p.h, p.h_batch_stride, p.h_tap_stride, p.h_channel_stride,
                 p.h_channel_stride == 0 ? p.channels : Max(p.filter_group, 1), p.taps, p.origin, transform),
        outputs_(outputs),
        history_(p.taps - 1 - p.origin),
        panel_((CeilDiv(Min(outputs + p.origin, p.length), kChunk) + 1) * kChunk),
        threads_(Threads(p.threads, p.batch * p.length * p.channels * kWorkPerSample)),
        shares_lines_(p.x_strides.channel == 1 && p.y_strides.channel == 1 && p.length >= kChunk),
        is_far_(Bytes() > kCacheBytes),
        is_gated_(p.pre_gate != nullptr || p.post_gate != nullptr),
        keeps_spectra_(kept.address == nullptr && (p.h_batch_stride == 0 ? p.batch : 1) * CeilDiv(p.length, outputs) > 1),
        copies_taps_(kept.address == nullptr && filters_.ShareLines()),
        panel_width_(PanelWidth()),
        groups_(p.channels, TaskWidth() > 1, TaskWidth()) {}

  convscan_status Run() {
    // Channels first; where they are too few to share out, batches too, and each transforms the filter for itself, as
    // it must where it has filters of its own.
    const int64_t parts = groups_.Count() < 4 || p_.h_batch_stride != 0 ? p_.batch : 1;
    const int64_t batches = p_.batch / parts;
    bool failed = false;
    ParallelFor(groups_.Count() * parts, threads_, [&](int64_t task) {
      const int64_t part = task / groups_.Count();
      if (!RunGroup(task % groups_.Count(), part * batches, (part + 1) * batches))
        __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
    });
    return failed ? CONVSCAN_OUT_OF_MEMORY : CONVSCAN_OK;
  }

 private:
  // A panel and the spectra of its channels, together. Of most arrays every time step lies in a page of its own, so a
  // panel takes several lines of it while it is there (measured: 3.7 to 3.0 ns an element for 4096 x 1024, K = 128; a
  // single line still beats tiles, 6.5 to 8.2 ns for 16384 x 256, K = L).
  static constexpr int64_t kPanelBytes = int64_t{1280} << 10;
  static constexpr int64_t kMostLines = 4;

  // The samples before a block, known or zero, and room for those before the next block.
  struct Past {
    T *samples, *next;
    bool is_known;
  };

  struct Scratch {
    C *data, *spectra;
    S *panel, *taps;
    T *gated_panel;
    T *past[kMostLines * kChunk + 1];
  };

  // What the rows of one sequence and channel meet on their way in and out.
  template <class R>
  struct Ends {
    RowGate<R> pre, post;
    T bias;
    convscan_activation activation;
  };

  int64_t PanelItem() const { return static_cast<int64_t>(is_gated_ ? sizeof(T) : sizeof(S)); }

  // Beyond this, what a problem touches is not in the caches when it is wanted.
  static constexpr int64_t kCacheBytes = int64_t{16} << 20;
  int64_t SignalBytes() const { return p_.batch * p_.length * p_.channels * static_cast<int64_t>(sizeof(S)); }
  int64_t Bytes() const {
    const int64_t filters = kept_.address == nullptr ? p_.taps * static_cast<int64_t>(sizeof(S)) : kept_.step;
    return 2 * SignalBytes() + CeilDiv(p_.channels, filters_.Group()) * filters;
  }
  // Whether outputs are stored past the caches.
  bool Streams() const { return SignalBytes() > kStreamBytes; }

  // Neighbours that one task takes: to share lines of memory or filters, or so that what it asks for ahead is its own.
  int64_t TaskWidth() const {
    if (shares_lines_ || copies_taps_ || SharesFilters()) return Max(panel_width_, kChunk);
    return is_far_ ? Min(kChunk, Max(1, p_.channels / (8 * threads_))) : 1;
  }

  // Neighbours in one task share the transform of their filter, while there are tasks enough.
  bool SharesFilters() const {
    return kept_.address == nullptr && filters_.Group() > 1 && p_.channels >= 2 * threads_ * kChunk;
  }
  // Whether channel c of a task needs another filter than the one before it.
  bool NeedsFilter(int64_t first, int64_t c) const {
    return kept_.address == nullptr && (c == 0 || filters_.IndexOf(first + c) != filters_.IndexOf(first + c - 1));
  }

  // Channels of a panel; 0 where not even 16 fit.
  int64_t PanelWidth() const {
    if (!shares_lines_) return 0;
    const int64_t channel = panel_ * PanelItem() +
                            (keeps_spectra_ ? transform_.Elements() * static_cast<int64_t>(sizeof(C)) : 0);
    const int64_t each = p_.channels / (2 * threads_) / kChunk;  // threads are not to wait for one another
    return Min(Min(kMostLines, kPanelBytes / (channel * kChunk)), Max(each, 1)) * kChunk;
  }

  Scratch Carve(Arena &arena, bool is_panel, bool copies_taps, int64_t channels) const {
    const int64_t rows = is_panel ? channels : 1;
    const bool keeps_past = history_ > 0 && (outputs_ < p_.length || p_.state != nullptr);
    Scratch scratch{};
    scratch.data = arena.Take<C>(transform_.Elements());
    const int64_t spectra = kept_.address != nullptr ? 0 : is_panel && keeps_spectra_ ? rows : 1;
    scratch.spectra = arena.Take<C>(spectra * transform_.Elements());
    scratch.panel = arena.Take<S>(is_panel && !is_gated_ ? rows * panel_ : 0);
    scratch.gated_panel = arena.Take<T>(is_panel && is_gated_ ? rows * panel_ : 0);
    scratch.taps = arena.Take<S>(copies_taps ? filters_.Copies() : 0);
    for (int64_t c = 0; keeps_past && c <= rows; ++c) scratch.past[c] = arena.Take<T>(history_);
    return scratch;
  }

  bool RunGroup(int64_t group, int64_t batch_begin, int64_t batch_end) const {
    const bool is_wide = groups_.IsWide(group), is_panel = is_wide && panel_width_ > 0;
    const bool copies_taps = copies_taps_ && is_wide;
    const int64_t first = groups_.First(group), channels = groups_.Size(group);
    Arena count(nullptr);
    Carve(count, is_panel, copies_taps, channels);
    void *const memory = Workspace(count.Used());
    if (memory == nullptr) return false;
    Arena arena(memory);
    Scratch scratch = Carve(arena, is_panel, copies_taps, channels);
    if (is_panel && is_gated_) {
      RunPanels<T>(first, channels, batch_begin, batch_end, copies_taps, scratch.gated_panel, scratch);
    } else if (is_panel) {
      RunPanels<S>(first, channels, batch_begin, batch_end, copies_taps, scratch.panel, scratch);
    } else {
      RunRows(first, channels, batch_begin, batch_end, shares_lines_ && is_wide, copies_taps, scratch);
    }
    if (Streams()) StreamFence();
    return true;
  }

  // Channel after channel, where they lie or in tiles in the output array.
  void RunRows(int64_t first, int64_t channels, int64_t batch_begin, int64_t batch_end, bool is_tiled,
               bool copies_taps, const Scratch &scratch) const {
    // Tiles have the gates, where that rounds nothing to a half type; otherwise rows read them.
    const bool gates_tiles = is_tiled && is_gated_ && kSame<S, T>;
    const int64_t tiles = p_.length / kChunk;
    for (int64_t b = batch_begin; is_tiled && b < batch_end; ++b) Tile(b, first, gates_tiles);
    for (int64_t c = 0; c < channels; ++c) {
      if (NeedsFilter(first, c))
        filters_.Transform(batch_begin, first, c, copies_taps, scratch.taps, scratch.spectra,
                           AheadOfRow(batch_begin, first + c));
      for (int64_t b = batch_begin; b < batch_end; ++b) {
        Row<S> out = Row<S>::Strided(Y(b, first + c), p_.y_strides.time, p_.length);
        Row<const S> in = Row<const S>::Strided(gates_tiles ? Y(b, first + c) : X(b, first + c),
                                                gates_tiles ? p_.y_strides.time : p_.x_strides.time, p_.length);
        if (is_tiled) {
          S *const chunks = Y(b, first) + c * p_.y_strides.time;
          out = {chunks, kChunk * p_.y_strides.time, tiles * kChunk, out.elements, out.stride};
          in = {chunks, kChunk * p_.y_strides.time, tiles * kChunk, in.elements, in.stride};
        }
        const Ends<S> ends = gates_tiles ? Ends<S>{{}, {}, T{0}, CONVSCAN_IDENTITY} : EndsOf(b, first + c);
        Past past = PastOf(b, first + c, scratch.past[0], scratch.past[1]);
        const Ahead ahead = b + 1 < batch_end ? AheadOfRow(b + 1, first + c)
                            : c + 1 < channels ? AheadOfChannel(batch_begin, first, c + 1)
                                               : Ahead{};
        for (int64_t start = 0; start < p_.length; start += outputs_)
          ConvolveBlock<S>(in.From(start), out.From(start), start, first + c, ends, scratch.data, scratch.spectra, past,
                           ahead);
      }
    }
    for (int64_t b = batch_begin; is_tiled && b < batch_end; ++b) Untile(b, first, gates_tiles);
  }

  // What is read next, when it is a row or the taps of a filter.
  Ahead AheadOfRow(int64_t b, int64_t channel) const {
    Ahead ahead;
    // Blocks of time are short: the hardware sees where a row goes on.
    if (is_far_ && p_.x_strides.time == 1 && outputs_ >= p_.length)
      ahead.Want(X(b, channel), p_.length * static_cast<int64_t>(sizeof(S)));
    return ahead;
  }
  Ahead AheadOfChannel(int64_t b, int64_t first, int64_t c) const {
    if (!NeedsFilter(first, c)) return AheadOfRow(b, first + c);
    Ahead ahead;
    if (is_far_) filters_.WantTaps(b, first + c, ahead);
    return ahead;
  }

  void Tile(int64_t b, int64_t first, bool gates_tiles) const {
    if constexpr (kSame<S, T>)
      if (gates_tiles)
        return TileGatedColumns(X(b, first), p_.x_strides.time, PreGates(b, 0, first), p_.length, Y(b, first),
                                p_.y_strides.time);
    TransposeTiles(X(b, first), p_.x_strides.time, Y(b, first), p_.y_strides.time, p_.length / kChunk);
  }
  void Untile(int64_t b, int64_t first, bool gates_tiles) const {
    if constexpr (kSame<S, T>)
      if (gates_tiles)
        return UntileGatedColumns(Y(b, first), p_.y_strides.time, ColumnEndOf(b, 0, first), p_.length);
    TransposeTiles(Y(b, first), p_.y_strides.time, Y(b, first), p_.y_strides.time, p_.length / kChunk);
  }

  // Block after block of time, its rows copied and transposed: R is the type of a row.
  template <class R>
  void RunPanels(int64_t first, int64_t channels, int64_t batch_begin, int64_t batch_end, bool copies_taps, R *panel,
                 Scratch &scratch) const {
    const auto spectrum = [&](int64_t c) {
      const int64_t index = keeps_spectra_ ? filters_.IndexOf(first + c) - filters_.IndexOf(first) : 0;
      return scratch.spectra + index * transform_.Elements();
    };
    const auto transform_filter = [&](int64_t c) {
      if (NeedsFilter(first, c)) filters_.Transform(batch_begin, first, c, copies_taps, scratch.taps, spectrum(c));
    };
    for (int64_t c = 0; keeps_spectra_ && c < channels; ++c) transform_filter(c);
    for (int64_t b = batch_begin; b < batch_end; ++b) {
      Past past[kMostLines * kChunk];
      for (int64_t c = 0; c < channels; ++c) past[c] = PastOf(b, first + c, scratch.past[c], nullptr);
      for (int64_t start = 0; start < p_.length; start += outputs_) {
        const int64_t rest = p_.length - start;
        ReadPanel(b, start, first, channels, Min(outputs_ + p_.origin, rest), panel);
        for (int64_t c = 0; c < channels; ++c) {
          if (!keeps_spectra_) transform_filter(c);
          R *const row = panel + c * panel_;
          past[c].next = scratch.past[channels];
          Ends<R> ends{{}, {}, T{0}, CONVSCAN_IDENTITY};
          if (!is_gated_) ends = {{}, {}, BiasOf(b, first + c), p_.activation};
          ConvolveBlock<R>(Row<const R>::Strided(row, 1, panel_), Row<R>::Strided(row, 1, panel_), start, first + c,
                           ends, scratch.data, spectrum(c), past[c]);
          scratch.past[channels] = past[c].next;
        }
        WritePanel(b, start, first, channels, Min(outputs_, rest), panel);
      }
      for (int64_t c = 0; c < channels; ++c) scratch.past[c] = past[c].samples;
    }
  }

  template <class R>
  void ReadPanel(int64_t b, int64_t start, int64_t first, int64_t channels, int64_t count, R *panel) const {
    const S *const from = X(b, first) + start * p_.x_strides.time;
    if constexpr (kSame<R, S>)
      if (!is_gated_) return RowsFromColumns(from, p_.x_strides.time, count, channels, panel, panel_);
    if constexpr (kSame<R, T>)
      RowsFromGatedColumns(from, p_.x_strides.time, PreGates(b, start, first), count, channels, panel, panel_);
  }
  template <class R>
  void WritePanel(int64_t b, int64_t start, int64_t first, int64_t channels, int64_t count, const R *panel) const {
    S *const to = Y(b, first) + start * p_.y_strides.time;
    if constexpr (kSame<R, S>)
      if (!is_gated_) return RowsToColumns(panel, panel_, count, channels, to, p_.y_strides.time);
    if constexpr (kSame<R, T>)
      RowsToGatedColumns(panel, panel_, count, channels, ColumnEndOf(b, start, first), to, p_.y_strides.time);
  }

  // What precedes a row: the initial state, if there is one.
  Past PastOf(int64_t batch, int64_t channel, T *samples, T *next) const {
    if (p_.state == nullptr || history_ == 0) return {samples, next, false};
    const S *state = static_cast<const S *>(p_.state) + batch * p_.state_strides.batch +
                     channel * p_.state_strides.channel;
    for (int64_t i = 0; i < history_; ++i) samples[i] = LoadScalar(state + i * p_.state_strides.time);
    return {samples, next, true};
  }

  // Outputs from time `start` on, as many as a block has; `in` and `out` are the row from there on, `ends` the whole.
  template <class R>
  void ConvolveBlock(const Row<const R> &in, const Row<R> &out, int64_t start, int64_t channel, const Ends<R> &ends, C *data,
                     const C *spectrum, Past &past, const Ahead &ahead = {}) const {
    const int64_t rest = p_.length - start;
    const Samples<R> samples(in, ends.pre.From(start), Min(outputs_ + p_.origin, rest),
                             past.is_known ? past.samples : nullptr, history_, transform_.Points());
    if (outputs_ < rest && history_ > 0) {  // before the outputs overwrite it
      samples.Copy(outputs_, history_, past.next);
      past = {past.next, past.samples, true};
    }
    transform_.FirstStep(samples, samples.UpperIsZero(transform_.Points()), data);
    MultiplyBySpectrum(data, spectrum, channel, ahead);
    const bool is_aligned = (reinterpret_cast<uintptr_t>(out.elements) & 63) == 0;
    const Sink<R> sink{out,       ends.post.From(start), Min(outputs_, rest),
                       ends.bias, ends.activation,       is_aligned && p_.y_strides.time == 1 && Streams()};
    transform_.LastStep(data, sink.length, sink);
  }

  // `spectrum` is not read where spectra are kept.
  void MultiplyBySpectrum(C *data, const C *spectrum, int64_t channel, Ahead ahead) const {
    if (kept_.address == nullptr)
      return transform_.MultiplyBySpectrum(data, reinterpret_cast<const T *>(spectrum), ahead);
    const char *const kept = kept_.address + filters_.IndexOf(channel) * kept_.step;
    if (kept_.is_bfloat16) return MultiplyByKept(data, reinterpret_cast<const BFloat16 *>(kept), ahead);
    MultiplyByKept(data, reinterpret_cast<const T *>(kept), ahead);
  }

  template <class Stored>
  void MultiplyByKept(C *data, const Stored *spectrum, Ahead &ahead) const {
    // Two groups before they are multiplied.
    constexpr int64_t kGroup = 2 * kLanes<T> * kLanes<T>;
    if (is_far_) ahead.Want(spectrum + 2 * kGroup, 2 * transform_.Points() * static_cast<int64_t>(sizeof(Stored)));

    if (kept_.pattern != nullptr) {
      const Pattern<T> pattern(const_cast<void *>(kept_.pattern), transform_.Points());
      if (kept_.is_conjugate) return transform_.template MultiplyBySparse<true>(data, spectrum, pattern);
      return transform_.MultiplyBySparse(data, spectrum, pattern);
    }
    if (kept_.is_conjugate) return transform_.template MultiplyBySpectrum<true>(data, spectrum, ahead);
    transform_.MultiplyBySpectrum(data, spectrum, ahead);
  }

  T BiasOf(int64_t batch, int64_t channel) const {
    return p_.bias == nullptr ? T{0} : LoadScalar(Bias(batch, channel));
  }
  const S *Bias(int64_t batch, int64_t channel) const {
    return p_.bias == nullptr ? nullptr
                              : static_cast<const S *>(p_.bias) + batch * p_.bias_batch_stride + channel * p_.bias_stride;
  }

  static const S *GateAt(const void *gate, const convscan_strides &strides, int64_t b, int64_t t, int64_t n) {
    return gate == nullptr
               ? nullptr
               : static_cast<const S *>(gate) + b * strides.batch + t * strides.time + n * strides.channel;
  }
  Ends<S> EndsOf(int64_t b, int64_t n) const {
    return {{GateAt(p_.pre_gate, p_.pre_gate_strides, b, 0, n), p_.pre_gate_strides.time},
            {GateAt(p_.post_gate, p_.post_gate_strides, b, 0, n), p_.post_gate_strides.time},
            BiasOf(b, n),
            p_.activation};
  }
  ColumnGate<S> PreGates(int64_t b, int64_t t, int64_t n) const {
    return {GateAt(p_.pre_gate, p_.pre_gate_strides, b, t, n), p_.pre_gate_strides.time, p_.pre_gate_strides.channel};
  }
  ColumnEnd<S> ColumnEndOf(int64_t b, int64_t t, int64_t n) const {
    return {{GateAt(p_.post_gate, p_.post_gate_strides, b, t, n), p_.post_gate_strides.time,
             p_.post_gate_strides.channel},
            Bias(b, n),
            p_.bias_stride,
            p_.activation};
  }

  const S *X(int64_t batch, int64_t channel) const {
    return static_cast<const S *>(p_.x) + batch * p_.x_strides.batch + channel * p_.x_strides.channel;
  }
  S *Y(int64_t batch, int64_t channel) const {
    return static_cast<S *>(p_.y) + batch * p_.y_strides.batch + channel * p_.y_strides.channel;
  }

  const convscan_conv &p_;
  const Transform<T> &transform_;
  const KeptSpectra kept_;
  const Filters<S> filters_;
  const int64_t outputs_, history_, panel_;  // panel_: elements from row to row of a panel
  const int threads_;
  const bool shares_lines_, is_far_, is_gated_;
  const bool keeps_spectra_, copies_taps_;
  const int64_t panel_width_;
  const Groups groups_;
};

// The bytes of one kept spectrum.
template <class S>
int64_t SpectrumBytes(int64_t points, convscan_spectrum_storage storage) {
  return 2 * points *
         static_cast<int64_t>(storage == CONVSCAN_SPECTRUM_BFLOAT16 ? sizeof(BFloat16) : sizeof(Compute<S>));
}

// Where the taps of a filter go; see Taps and Transform::LastStep.
template <class T>
struct TapSink {
  using Stored = T;
  static constexpr int kW = kLanes<T>;
  static constexpr T bias = 0;
  static constexpr bool streams = false;
  T *h;
  int64_t stride, count, origin, period;
  T scale;

  T *At(int64_t n, int64_t vectors) const {
    return stride == 1 && n + origin + vectors * kW <= count ? h + n + origin : nullptr;
  }
  void operator()(int64_t n, int64_t vectors, const T *from) const {
    for (const int64_t end = n + vectors * kW; n < end; ++n, ++from) {
      if (n + origin < count) h[(n + origin) * stride] = *from;
      else if (n >= period - origin) h[(n + origin - period) * stride] = -*from;
    }
  }
};

// The taps whose spectrum is `sum`, which is lost. Tap k is at lag k - origin; lags below zero come round from 2M with the
// sign changed.
template <class T>
void StoreFilterGradient(const Transform<T> &transform, ComplexVec<T> *sum, int64_t taps, int64_t origin, T *dh,
                         int64_t dh_stride) {
  transform.BackFromSpectrum(sum);
  const int64_t period = 2 * transform.Points();
  const TapSink<T> sink{dh, dh_stride, taps, origin, period, T{1} / static_cast<T>(transform.Points())};
  transform.LastStep(sum, origin > 0 ? period : taps, sink);
}

// dh by correlation: conj(X) DZ summed over blocks and batch before one inverse transform. Blocks of dz have P samples;
// the lags 0 ... K-1 of x lie in the same samples and the K - 1 before them.
template <class S>
class FftFilterGradient {
 public:
  using T = Compute<S>;
  using C = ComplexVec<T>;

  FftFilterGradient(const convscan_filter_gradient &p, const Transform<T> &transform, int64_t outputs)
      : p_(p),
        transform_(transform),
        outputs_(outputs),
        tiles_(TilesOf(p)),
        groups_(p.channels,
                p.x_strides.channel == 1 && p.dz_strides.channel == 1 && p.length >= kChunk &&
                    p.batch * tiles_ * kChunk * kChunk * static_cast<int64_t>(2 * sizeof(S)) <= kTileBytes) {}

  convscan_status Run() {
    const int threads = Threads(p_.threads, p_.batch * p_.length * p_.channels * kWorkPerSample);
    bool failed = false;
    ParallelFor(groups_.Count(), threads, [&](int64_t group) {
      if (!RunGroup(group)) __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
    });
    return failed ? CONVSCAN_OUT_OF_MEMORY : CONVSCAN_OK;
  }

 private:
  // Up to here 16 channels of both inputs are copied, transposed, into the workspace; larger ones are read in place.
  static constexpr int64_t kTileBytes = int64_t{8} << 20;

  struct Scratch {
    C *x, *dz, *sum;
    T *history, *dh;
    S *x_tiles, *dz_tiles;
  };

  // Tiles of 16 time steps of all sequences together.
  static int64_t TilesOf(const convscan_filter_gradient &p) {
    int64_t tiles = 0;
    for (int64_t s = 0; s < Sequences(p); ++s) tiles += CeilDiv(SequenceEnd(p, s) - SequenceBegin(p, s), kChunk);
    return tiles;
  }

  Scratch Carve(Arena &arena, bool is_tiled, bool writes_columns) const {
    const int64_t tile = is_tiled ? p_.batch * tiles_ * kChunk * kChunk : 0;
    return {arena.Take<C>(transform_.Elements()), arena.Take<C>(transform_.Elements()),
            arena.Take<C>(transform_.Elements()), arena.Take<T>(p_.taps - 1),
            arena.Take<T>(writes_columns ? p_.taps * kChunk : 0), arena.Take<S>(tile), arena.Take<S>(tile)};
  }

  bool RunGroup(int64_t group) const {
    const bool is_tiled = groups_.IsWide(group);
    const bool writes_columns = is_tiled && p_.dh_channel_stride == 1 && p_.dh_tap_stride != 1;
    Arena count(nullptr);
    Carve(count, is_tiled, writes_columns);
    void *const memory = Workspace(count.Used());
    if (memory == nullptr) return false;
    Arena arena(memory);
    const Scratch scratch = Carve(arena, is_tiled, writes_columns);
    const int64_t first = groups_.First(group);
    for (int64_t b = 0; is_tiled && b < p_.batch; ++b) {
      int64_t tile = b * tiles_;
      for (int64_t s = 0; s < Sequences(p_); ++s) {
        const int64_t begin = SequenceBegin(p_, s), length = SequenceEnd(p_, s) - begin;
        TileOf(p_.x, p_.x_strides, p_.x_gate, p_.x_gate_strides, b, begin, first, length,
               scratch.x_tiles + tile * kChunk * kChunk);
        TileOf(p_.dz, p_.dz_strides, p_.dz_gate, p_.dz_gate_strides, b, begin, first, length,
               scratch.dz_tiles + tile * kChunk * kChunk);
        tile += CeilDiv(length, kChunk);
      }
    }
    T *const dh = static_cast<T *>(p_.dh) + first * p_.dh_channel_stride;
    for (int64_t c = 0; c < groups_.Size(group); ++c) {
      if (writes_columns) {
        RunChannel(first + c, scratch, is_tiled, c, scratch.dh + c * p_.taps, 1);
      } else {
        RunChannel(first + c, scratch, is_tiled, c, dh + c * p_.dh_channel_stride, p_.dh_tap_stride);
      }
    }
    if (writes_columns) RowsToColumns(scratch.dh, p_.taps, p_.taps, kChunk, dh, p_.dh_tap_stride);
    return true;
  }

  // `length` time steps of 16 channels, in tiles; gated where that rounds nothing to a half type.
  static void TileOf(const void *from, const convscan_strides &strides, const void *gate,
                     const convscan_strides &gate_strides, int64_t b, int64_t begin, int64_t first, int64_t length,
                     S *to) {
    const S *const columns = At(from, strides, b, begin, first);
    const int64_t whole = length / kChunk;
    if constexpr (kSame<S, T>)
      if (gate != nullptr)
        return RowsOfTiles(columns, strides.time,
                           {At(gate, gate_strides, b, begin, first), gate_strides.time, gate_strides.channel}, length, to);
    TransposeTiles(columns, strides.time, to, kChunk, whole);
    for (int64_t t = whole * kChunk; t < length; ++t)
      for (int64_t c = 0; c < kChunk; ++c)
        to[(whole * kChunk + c) * kChunk + t % kChunk] = columns[t * strides.time + c];
  }
  static void RowsOfTiles(const T *columns, int64_t stride, const ColumnGate<T> &gate, int64_t length, T *to) {
    for (int64_t t = 0; t < length; t += kChunk)
      RowsFromGatedColumns(columns + t * stride, stride, gate.From(t, 0), Min(kChunk, length - t), kChunk,
                           to + t * kChunk, kChunk);
  }

  // One row of a sequence, in its tiles or where it lies.
  static Row<const S> RowOf(const S *elements, int64_t stride, int64_t length, const S *tiles, int64_t lane) {
    if (tiles == nullptr) return Row<const S>::Strided(elements, stride, length);
    return {tiles + lane * kChunk, kChunk * kChunk, CeilDiv(length, kChunk) * kChunk, elements, stride};
  }
  static RowGate<S> GateOf(const void *gate, const convscan_strides &strides, int64_t b, int64_t begin, int64_t n,
                           bool is_tiled) {
    if (gate == nullptr || (is_tiled && kSame<S, T>)) return {};
    return {At(gate, strides, b, begin, n), strides.time};
  }

  void RunChannel(int64_t channel, const Scratch &scratch, bool is_tiled, int64_t lane, T *dh,
                  int64_t dh_stride) const {
    for (int64_t i = 0; i < transform_.Elements(); ++i) scratch.sum[i] = C{};
    for (int64_t b = 0; b < p_.batch; ++b) {
      int64_t tile = b * tiles_;
      for (int64_t s = 0; s < Sequences(p_); ++s) {
        const int64_t begin = SequenceBegin(p_, s), length = SequenceEnd(p_, s) - begin;
        const int64_t at = tile * kChunk * kChunk;
        RunRow(RowOf(At(p_.x, p_.x_strides, b, begin, channel), p_.x_strides.time, length,
                     is_tiled ? scratch.x_tiles + at : nullptr, lane),
               GateOf(p_.x_gate, p_.x_gate_strides, b, begin, channel, is_tiled),
               RowOf(At(p_.dz, p_.dz_strides, b, begin, channel), p_.dz_strides.time, length,
                     is_tiled ? scratch.dz_tiles + at : nullptr, lane),
               GateOf(p_.dz_gate, p_.dz_gate_strides, b, begin, channel, is_tiled), length,
               p_.state == nullptr ? nullptr : At(p_.state, p_.state_strides, b, 0, channel) + s * p_.state_sequence_stride,
               scratch);
        tile += CeilDiv(length, kChunk);
      }
    }
    StoreFilterGradient(transform_, scratch.sum, p_.taps, p_.origin, dh, dh_stride);
  }

  // Adds what one row contributes to the sum of the spectra.
  void RunRow(const Row<const S> &x, const RowGate<S> &x_gate, const Row<const S> &dz, const RowGate<S> &dz_gate,
              int64_t row_length, const S *state, const Scratch &scratch) const {
    const int64_t points = transform_.Points(), history_length = p_.taps - 1 - p_.origin;
    const T *history = nullptr;
    if (state != nullptr && history_length > 0) {
      for (int64_t i = 0; i < history_length; ++i) scratch.history[i] = LoadScalar(state + i * p_.state_strides.time);
      history = scratch.history;
    }
    for (int64_t start = 0; start < row_length; start += outputs_) {
      const int64_t rest = row_length - start, length = Min(outputs_, rest);
      const Samples<S> samples(x.From(start), x_gate.From(start), Min(outputs_ + p_.origin, rest), history,
                               history_length, points);
      transform_.FirstStep(samples, samples.UpperIsZero(points), scratch.x);
      transform_.Spectrum(scratch.x);
      const Samples<S> gradient(dz.From(start), dz_gate.From(start), length, nullptr, 0, points);
      transform_.FirstStep(gradient, gradient.UpperIsZero(points), scratch.dz);
      transform_.AccumulateCorrelation(scratch.dz, scratch.x, scratch.sum);
      if (history_length > 0 && length < rest) {
        samples.Copy(length, history_length, scratch.history);
        history = scratch.history;
      }
    }
  }

  static const S *At(const void *array, const convscan_strides &strides, int64_t b, int64_t t, int64_t n) {
    return static_cast<const S *>(array) + b * strides.batch + t * strides.time + n * strides.channel;
  }

  const convscan_filter_gradient &p_;
  const Transform<T> &transform_;
  const int64_t outputs_, tiles_;
  const Groups groups_;
};

// dx and dh together: both need the transform of dz. With dz from a block's first sample to K - 1 samples beyond its
// last, and x of the block alone,
//
//   dx[j] = sum_k h[k] dz[j+k],   dh[k] = sum_j x[j] dz[j+k],
//
// so that one transform of dz is multiplied by conj(H) on its way back and by conj(X) into the sum of dh over blocks and
// batch. Samples before the first, of an initial state, are part of x where there is a single block.
template <class S>
class FftGradient {
 public:
  using T = Compute<S>;
  using C = ComplexVec<T>;

  FftGradient(const convscan_conv_gradient &p, const Transform<T> &transform, int64_t outputs)
      : p_(p),
        f_(p.filter),
        transform_(transform),
        kept_{static_cast<const char *>(p.spectra),
              p.h_channel_stride == 0 ? 0 : SpectrumBytes<S>(transform.Points(), p.storage),
              p.storage == CONVSCAN_SPECTRUM_BFLOAT16, true},
        filters_(p.h, 0, p.h_tap_stride, p.h_channel_stride, p.h_channel_stride == 0 ? f_.channels : 1, f_.taps, 0,
                 transform),
        outputs_(outputs),
        groups_(f_.channels, f_.x_strides.channel == 1 && f_.dz_strides.channel == 1 && p.dx_strides.channel == 1 &&
                                 f_.length >= kChunk &&
                                 f_.batch * f_.length * kChunk * static_cast<int64_t>(sizeof(S)) <= kTileBytes) {}

  convscan_status Run() {
    const int threads = Threads(f_.threads, f_.batch * f_.length * f_.channels * kWorkPerSample);
    bool failed = false;
    ParallelFor(groups_.Count(), threads, [&](int64_t group) {
      if (!RunGroup(group)) __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
    });
    return failed ? CONVSCAN_OUT_OF_MEMORY : CONVSCAN_OK;
  }

 private:
  // Up to here 16 channels of x are copied, transposed, into the workspace; larger ones are read in place.
  static constexpr int64_t kTileBytes = int64_t{4} << 20;

  struct Scratch {
    C *x, *dz, *sum, *spectrum;
    T *history, *dh;
    S *tiles, *taps;
  };

  Scratch Carve(Arena &arena, bool is_tiled) const {
    const int64_t elements = transform_.Elements();
    const bool makes_spectra = kept_.address == nullptr;
    return {arena.Take<C>(elements),
            arena.Take<C>(elements),
            arena.Take<C>(elements),
            arena.Take<C>(makes_spectra ? elements : 0),
            arena.Take<T>(f_.state == nullptr ? 0 : f_.taps - 1),
            arena.Take<T>(WritesColumns(is_tiled) ? f_.taps * kChunk : 0),
            arena.Take<S>(is_tiled ? f_.batch * f_.length * kChunk : 0),
            arena.Take<S>(makes_spectra && is_tiled && filters_.ShareLines() ? filters_.Copies() : 0)};
  }

  bool WritesColumns(bool is_tiled) const {
    return is_tiled && f_.dh_channel_stride == 1 && f_.dh_tap_stride != 1;
  }

  bool RunGroup(int64_t group) const {
    const bool is_tiled = groups_.IsWide(group), writes_columns = WritesColumns(is_tiled);
    Arena count(nullptr);
    Carve(count, is_tiled);
    void *const memory = Workspace(count.Used());
    if (memory == nullptr) return false;
    Arena arena(memory);
    const Scratch scratch = Carve(arena, is_tiled);
    const int64_t first = groups_.First(group), tiles = f_.length / kChunk;
    for (int64_t b = 0; is_tiled && b < f_.batch; ++b) {
      TransposeTiles(At<const S>(f_.x, f_.x_strides, b, first), f_.x_strides.time,
                     scratch.tiles + b * f_.length * kChunk, kChunk, tiles);
      TransposeTiles(At<const S>(f_.dz, f_.dz_strides, b, first), f_.dz_strides.time,
                     At<S>(p_.dx, p_.dx_strides, b, first), p_.dx_strides.time, tiles);
    }
    T *const dh = static_cast<T *>(f_.dh) + first * f_.dh_channel_stride;
    for (int64_t c = 0; c < groups_.Size(group); ++c) {
      const void *spectrum = kept_.address + (first + c) * kept_.step;
      if (kept_.address == nullptr) {
        if (c == 0 || filters_.Group() == 1)
          filters_.Transform(0, first, c, is_tiled && filters_.ShareLines(), scratch.taps, scratch.spectrum);
        spectrum = scratch.spectrum;
      }
      if (writes_columns) {
        RunChannel(first, c, scratch, is_tiled, spectrum, scratch.dh + c * f_.taps, 1);
      } else {
        RunChannel(first, c, scratch, is_tiled, spectrum, dh + c * f_.dh_channel_stride, f_.dh_tap_stride);
      }
    }
    if (writes_columns) RowsToColumns(scratch.dh, f_.taps, f_.taps, kChunk, dh, f_.dh_tap_stride);
    for (int64_t b = 0; is_tiled && b < f_.batch; ++b) {
      S *const columns = At<S>(p_.dx, p_.dx_strides, b, first);
      TransposeTiles(columns, p_.dx_strides.time, columns, p_.dx_strides.time, tiles);
    }
    return true;
  }

  void RunChannel(int64_t first, int64_t c, const Scratch &scratch, bool is_tiled, const void *spectrum, T *dh,
                  int64_t dh_stride) const {
    for (int64_t i = 0; i < transform_.Elements(); ++i) scratch.sum[i] = C{};
    const int64_t points = transform_.Points(), channel = first + c;
    const int64_t fast_length = f_.length / kChunk * kChunk, reach = f_.taps - 1;
    for (int64_t b = 0; b < f_.batch; ++b) {
      Row<const S> x = Row<const S>::Strided(At<const S>(f_.x, f_.x_strides, b, channel), f_.x_strides.time, f_.length);
      Row<const S> dz =
          Row<const S>::Strided(At<const S>(f_.dz, f_.dz_strides, b, channel), f_.dz_strides.time, f_.length);
      Row<S> dx = Row<S>::Strided(At<S>(p_.dx, p_.dx_strides, b, channel), p_.dx_strides.time, f_.length);
      if (is_tiled) {
        S *const chunks = At<S>(p_.dx, p_.dx_strides, b, first) + c * p_.dx_strides.time;
        x = {scratch.tiles + b * f_.length * kChunk + c * kChunk, kChunk * kChunk, fast_length, x.elements, x.stride};
        dz = {chunks, kChunk * p_.dx_strides.time, fast_length, dz.elements, dz.stride};
        dx = {chunks, kChunk * p_.dx_strides.time, fast_length, dx.elements, dx.stride};
      }
      const T *history = nullptr;
      if (f_.state != nullptr && reach > 0) {
        const S *state = At<const S>(f_.state, f_.state_strides, b, channel);
        for (int64_t i = 0; i < reach; ++i) scratch.history[i] = LoadScalar(state + i * f_.state_strides.time);
        history = scratch.history;
      }
      for (int64_t start = 0; start < f_.length; start += outputs_) {
        const int64_t rest = f_.length - start, length = Min(outputs_, rest);
        const Samples<S> samples(x.From(start), {}, length, history, reach, points);
        transform_.FirstStep(samples, samples.UpperIsZero(points), scratch.x);
        transform_.Spectrum(scratch.x);
        const Samples<S> gradient(dz.From(start), {}, Min(length + reach, rest), nullptr, 0, points);
        transform_.FirstStep(gradient, gradient.UpperIsZero(points), scratch.dz);
        if (kept_.is_bfloat16) {
          transform_.CorrelateAndMultiply(scratch.dz, static_cast<const BFloat16 *>(spectrum), scratch.x, scratch.sum);
        } else {
          transform_.CorrelateAndMultiply(scratch.dz, static_cast<const T *>(spectrum), scratch.x, scratch.sum);
        }
        transform_.LastStep(scratch.dz, length, Sink<S>{dx.From(start), {}, length, T{0}, CONVSCAN_IDENTITY, false});
      }
    }
    StoreFilterGradient(transform_, scratch.sum, f_.taps, 0, dh, dh_stride);
  }

  template <class Element, class Base>
  static Element *At(Base *base, const convscan_strides &strides, int64_t batch, int64_t channel) {
    return static_cast<Element *>(base) + batch * strides.batch + channel * strides.channel;
  }

  const convscan_conv_gradient &p_;
  const convscan_filter_gradient &f_;
  const Transform<T> &transform_;
  const KeptSpectra kept_;
  const Filters<S> filters_;
  const int64_t outputs_;
  const Groups groups_;
};

template <class Problem>
const Problem &SizesOf(const Problem &p) {
  return p;
}
const convscan_filter_gradient &SizesOf(const convscan_conv_gradient &p) { return p.filter; }

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

bool IsDouble(convscan_dtype dtype) { return dtype == CONVSCAN_FLOAT64 || dtype == CONVSCAN_WIDE_FLOAT32; }

template <class S>
convscan_status MakeSpectra(const convscan_spectrum &p) {
  using T = Compute<S>;
  using C = ComplexVec<T>;
  const Transform<T> transform(p.transform_length);
  if (!transform.IsValid()) return CONVSCAN_OUT_OF_MEMORY;
  const Filters<S> filters(p.h, 0, p.h_tap_stride, p.h_filter_stride, 1, p.taps, 0, transform);
  const Groups groups(p.filters, filters.ShareLines());
  const int64_t elements = transform.Elements(), numbers = 2 * transform.Points();
  const bool rounds = p.storage == CONVSCAN_SPECTRUM_BFLOAT16;
  bool failed = false;
  ParallelFor(groups.Count(), Threads(p.threads, p.filters * p.taps * kWorkPerSample), [&](int64_t group) {
    const bool copies = groups.IsWide(group);
    const auto carve = [&](Arena &arena, C *&data, S *&taps) {
      data = arena.Take<C>(rounds ? elements : 0);
      taps = arena.Take<S>(copies ? filters.Copies() : 0);
    };
    C *data;
    S *taps;
    Arena count(nullptr);
    carve(count, data, taps);
    void *const memory = Workspace(count.Used());
    if (memory == nullptr) return __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
    Arena arena(memory);
    carve(arena, data, taps);
    const int64_t first = groups.First(group);
    for (int64_t c = 0; c < groups.Size(group); ++c) {
      if (!rounds) data = static_cast<C *>(p.spectra) + (first + c) * elements;
      filters.Transform(0, first, c, copies, taps, data);
      if (p.keep != nullptr) {
        Pattern<T> pattern(p.pattern, transform.Points());
        transform.Drop(p.keep, data, first + c == 0 ? &pattern : nullptr);
      }
      BFloat16 *const rounded = static_cast<BFloat16 *>(p.spectra) + (first + c) * numbers;
      constexpr int kW = kLanes<float>;
      const T *const exact = reinterpret_cast<const T *>(data);
      for (int64_t i = 0; rounds && i < numbers; i += kW)
        Store<kW>(rounded + i, __builtin_convertvector(Load<kW>(exact + i), Vec<float, kW>));
    }
  });
  return failed ? CONVSCAN_OUT_OF_MEMORY : CONVSCAN_OK;
}

}  // namespace

convscan_status ConvFft(const convscan_conv &problem, int64_t transform_length) {
  return WithRealStorage(problem.dtype, [&](auto type) {
    using S = typename decltype(type)::Storage;
    convscan_conv p = problem;
    if (p.state == nullptr) {  // taps that meet no sample need no room in the transform
      const int64_t first = Max(0, p.origin - (p.length - 1)), last = Min(p.taps - 1, p.origin + p.length - 1);
      p.h = static_cast<const S *>(p.h) + first * p.h_tap_stride;
      p.taps = last - first + 1;
      p.origin -= first;
    }
    return RunBlocks<S, FftConvolution>(p, transform_length);
  });
}

convscan_status ConvFftSparse(const convscan_conv &problem, int64_t transform_length, const void *spectra,
                              convscan_spectrum_storage storage, const void *pattern) {
  return WithRealStorage(problem.dtype, [&](auto type) {
    using S = typename decltype(type)::Storage;
    const int64_t step = problem.h_channel_stride == 0 ? 0 : SpectrumBytes<S>(transform_length, storage);
    return RunBlocks<S, FftConvolution>(problem, transform_length,
                                        KeptSpectra{static_cast<const char *>(spectra), step,
                                                    storage == CONVSCAN_SPECTRUM_BFLOAT16, problem.origin != 0,
                                                    pattern});
  });
}

convscan_status ConvFftKept(const convscan_conv &problem, int64_t transform_length, const void *spectra,
                            convscan_spectrum_storage storage) {
  return ConvFftSparse(problem, transform_length, spectra, storage, nullptr);
}

int64_t PatternBytes(int64_t transform_length, convscan_dtype dtype) {
  return IsDouble(dtype) ? Pattern<double>::Bytes(transform_length) : Pattern<float>::Bytes(transform_length);
}

convscan_status FilterSpectrum(const convscan_spectrum &p) {
  return WithRealStorage(p.dtype, [&](auto type) {
    return MakeSpectra<typename decltype(type)::Storage>(p);
  });
}

convscan_status FilterGradientFft(const convscan_filter_gradient &problem, int64_t transform_length) {
  return WithRealStorage(problem.dtype, [&](auto type) {
    using S = typename decltype(type)::Storage;
    const convscan_filter_gradient p = WithoutIdleTaps<S>(problem);
    return p.taps == 0 ? CONVSCAN_OK : RunBlocks<S, FftFilterGradient>(p, transform_length);
  });
}

convscan_status ConvGradientFft(const convscan_conv_gradient &problem, int64_t transform_length) {
  const int64_t span = problem.filter.length + problem.filter.taps - 1;
  if (problem.filter.state != nullptr && transform_length > 0 && 2 * transform_length < span)
    return CONVSCAN_UNSUPPORTED;
  return WithRealStorage(problem.filter.dtype, [&](auto type) {
    return RunBlocks<typename decltype(type)::Storage, FftGradient>(problem, transform_length);
  });
}

int64_t FftLength(int64_t points, convscan_dtype dtype) {
  return IsDouble(dtype) ? TransformLength<double>(points) : TransformLength<float>(points);
}

}  // namespace convscan::CONVSCAN_ISA
