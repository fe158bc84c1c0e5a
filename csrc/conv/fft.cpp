// Convolution by FFT: one row at a time, the row and its filter's spectrum in cache (see fft/transform.h).
//
// A block of P = 2M - (K - 1) outputs needs one transform of M points. If that covers the row there is one block;
// otherwise blocks overlap and save: the K - 1 samples before a block enter its transform at the end of the period.
// An initial state is the same thing for the first block.
//
// Where a row is a little longer than a transform covers, it is taken as one block all the same: what wraps around meets the
// first outputs alone, which are summed up one by one.
//
// Rows of a channel-contiguous array are read and written 16 to 64 channels at a time, through a panel of transposed rows,
// block after block of time: every access is a whole line. Gates and what else belongs to the first and the last pass over
// the samples are applied on the way in and out (see fft/gated_columns.h).
#include "conv/fft_parts.h"
#include "fft/gated_columns.h"

namespace convscan::CONVSCAN_ISA {
namespace {

// The first outputs that may be summed up: at most M / 64 and so many, which takes a hundredth of the time of a transform of
// M points, or of one of at least so many.
constexpr int64_t kMostSummed = 256, kLeastShortened = 4096;

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
        summed_(kept.address != nullptr || outputs < p.length ? 0 : Max(0, p.length + p.taps - 1 - 2 * transform.Points())),
        panel_((CeilDiv(Min(outputs + p.origin, p.length), kChunk) + 1) * kChunk),
        threads_(Threads(p.threads, p.batch * p.length * p.channels * kWorkPerSample)),
        shares_lines_(p.x_strides.channel == 1 && p.y_strides.channel == 1 && p.length >= kChunk),
        is_far_(Bytes() > kCacheBytes),
        splits_rows_(SplitsRows()),
        is_gated_(p.pre_gate != nullptr || p.post_gate != nullptr),
        keeps_spectra_(kept.address == nullptr && (p.h_batch_stride == 0 ? p.batch : 1) * CeilDiv(p.length, outputs) > 1),
        copies_taps_(kept.address == nullptr && filters_.ShareLines()),
        groups_{p.channels, TaskWidth()} {}

  convscan_status Run() {
    if (splits_rows_) return RunSplitRows();
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
  static constexpr int64_t kMostLines = 4;
  // From this length on, threads share the passes of a row, in pieces, where rows are too few to share out (measured on Zen 5,
  // two threads: one row of 8192 points takes as long either way, of 16384 1 / 1.3, of 65536 1 / 1.9).
  static constexpr int64_t kSplitPoints = 16384, kPieces = 4;

  // Whether all threads work on the same row: also where a row for each of them, and its filter, exceeds the caches.
  bool SplitsRows() const {
    if (threads_ == 1 || outputs_ < p_.length || kept_.pattern != nullptr || (shares_lines_ && p_.channels > 4))
      return false;
    const int64_t rows = p_.batch * p_.channels, points = transform_.Points(), blocks = transform_.Blocks();
    if (rows < Min(threads_, blocks)) return points >= kSplitPoints;
    const bool leaves_some = rows < 4 * threads_ && rows % threads_ != 0;
    return threads_ <= blocks && ((leaves_some && points >= kSplitPoints) || 4 * transform_.Bytes() > kCacheBytes);
  }

  // Row after row.
  convscan_status RunSplitRows() const {
    const int64_t batches = p_.h_batch_stride != 0 ? 1 : p_.batch;  // that have the same filters
    Arena count(nullptr);
    Carve(count, 1);
    void *const memory = Workspace(count.Used());
    if (memory == nullptr) return CONVSCAN_OUT_OF_MEMORY;
    Arena arena(memory);
    const Scratch scratch = Carve(arena, 1);
    for (int64_t b = 0; b < p_.batch; b += batches) RunRows(0, p_.channels, b, b + batches, scratch);
    return CONVSCAN_OK;
  }

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

  int64_t SignalBytes() const { return p_.batch * p_.length * p_.channels * static_cast<int64_t>(sizeof(S)); }
  int64_t Bytes() const {
    const int64_t filters = kept_.address == nullptr ? p_.taps * static_cast<int64_t>(sizeof(S)) : kept_.step;
    return 2 * SignalBytes() + CeilDiv(p_.channels, filters_.Group()) * filters;
  }
  // Whether outputs are stored past the caches.
  bool Streams() const { return SignalBytes() > kStreamBytes; }

  // Neighbours in one task share the transform of their filter, while there are tasks enough.
  bool SharesFilters() const {
    return kept_.address == nullptr && filters_.Group() > 1 && p_.channels >= 2 * threads_ * kChunk;
  }
  // Whether channel c of a task needs another filter than the one before it.
  bool NeedsFilter(int64_t first, int64_t c) const {
    return kept_.address == nullptr && (c == 0 || filters_.IndexOf(first + c) != filters_.IndexOf(first + c - 1));
  }

  // Neighbours that one task takes: to share lines of memory or filters, or so that what it asks for ahead is its own.
  int64_t TaskWidth() const {
    if (!shares_lines_ && !copies_taps_ && !SharesFilters())
      return is_far_ ? Min(kChunk, Max(1, p_.channels / (8 * threads_))) : 1;
    const int64_t tasks = CeilDiv(threads_, p_.batch);
    if (p_.channels < kChunk * tasks) return Max(1, CeilDiv(p_.channels, tasks));
    if (!shares_lines_) return kChunk;
    const int64_t channel = panel_ * PanelItem() +
                            (keeps_spectra_ ? transform_.Elements() * static_cast<int64_t>(sizeof(C)) : 0);
    const int64_t each = p_.channels / (2 * threads_) / kChunk;  // threads are not to wait for one another
    return Max(1, Min(Min(kMostLines, kPanelBytes / (channel * kChunk)), each)) * kChunk;
  }

  Scratch Carve(Arena &arena, int64_t channels) const {
    const bool has_panel = shares_lines_ && !splits_rows_;
    const int64_t rows = has_panel ? channels : 1, elements = transform_.Elements();
    const bool keeps_past = history_ > 0 && (outputs_ < p_.length || p_.state != nullptr);
    Scratch scratch{};
    scratch.data = arena.Take<C>(elements);
    const int64_t spectra = kept_.address != nullptr ? 0 : has_panel && keeps_spectra_ ? rows : 1;
    scratch.spectra = arena.Take<C>(spectra * elements);
    scratch.panel = arena.Take<S>(has_panel && !is_gated_ ? rows * panel_ : 0);
    scratch.gated_panel = arena.Take<T>(has_panel && is_gated_ ? rows * panel_ : 0);
    if (copies_taps_ && !splits_rows_) scratch.taps = arena.Take<S>(filters_.Copies(channels));
    for (int64_t c = 0; keeps_past && c <= rows; ++c) scratch.past[c] = arena.Take<T>(history_);
    return scratch;
  }

  bool RunGroup(int64_t group, int64_t batch_begin, int64_t batch_end) const {
    const int64_t first = groups_.First(group), channels = groups_.Size(group);
    Arena count(nullptr);
    Carve(count, channels);
    void *const memory = Workspace(count.Used());
    if (memory == nullptr) return false;
    Arena arena(memory);
    Scratch scratch = Carve(arena, channels);
    if (!shares_lines_) RunRows(first, channels, batch_begin, batch_end, scratch);
    else if (is_gated_) RunPanels<T>(first, channels, batch_begin, batch_end, scratch.gated_panel, scratch);
    else RunPanels<S>(first, channels, batch_begin, batch_end, scratch.panel, scratch);
    if (Streams()) StreamFence();
    return true;
  }

  // Channel after channel, where they lie.
  void RunRows(int64_t first, int64_t channels, int64_t batch_begin, int64_t batch_end, const Scratch &scratch) const {
    for (int64_t c = 0; c < channels; ++c) {
      const bool needs_filter = NeedsFilter(first, c);
      if (needs_filter && !splits_rows_)
        filters_.Transform(batch_begin, first, channels, c, scratch.taps, scratch.spectra,
                           AheadOfRow(batch_begin, first + c));
      const Taps<S> taps = filters_.TapsOf(batch_begin, first, channels, c, nullptr);
      for (int64_t b = batch_begin; b < batch_end; ++b) {
        const Row<S> out{Y(b, first + c), p_.y_strides.time, p_.length};
        const Row<const S> in{X(b, first + c), p_.x_strides.time, p_.length};
        const Ends<S> ends = EndsOf(b, first + c);
        Past past = PastOf(b, first + c, scratch.past[0], scratch.past[1]);
        const auto ahead_of_next = [&] {
          return b + 1 < batch_end ? AheadOfRow(b + 1, first + c)
                 : c + 1 < channels ? AheadOfChannel(batch_begin, first, c + 1)
                                    : Ahead{};
        };
        for (int64_t start = 0; start < p_.length; start += outputs_) {
          const int64_t next = start + outputs_;
          const bool has_spectrum = !splits_rows_ || !needs_filter || b > batch_begin;
          ConvolveBlock<S>(in.From(start), out.From(start), start, batch_begin, first + c, ends, scratch.data, scratch.spectra,
                           has_spectrum ? nullptr : &taps, past,
                           next < p_.length ? AheadOfRow(b, first + c, next) : ahead_of_next());
        }
      }
    }
  }

  // What is read next, when it is a block of a row or the taps of a filter.
  Ahead AheadOfRow(int64_t b, int64_t channel, int64_t start = 0) const {
    Ahead ahead;
    if (is_far_ && p_.x_strides.time == 1)
      ahead.Want(X(b, channel) + start, Min(outputs_, p_.length - start) * static_cast<int64_t>(sizeof(S)));
    return ahead;
  }
  Ahead AheadOfChannel(int64_t b, int64_t first, int64_t c) const {
    if (!NeedsFilter(first, c)) return AheadOfRow(b, first + c);
    Ahead ahead;
    if (is_far_) filters_.WantTaps(b, first + c, ahead);
    return ahead;
  }

  // Block after block of time, its rows copied and transposed: R is the type of a row.
  template <class R>
  void RunPanels(int64_t first, int64_t channels, int64_t batch_begin, int64_t batch_end, R *panel,
                 Scratch &scratch) const {
    const auto spectrum = [&](int64_t c) {
      const int64_t index = keeps_spectra_ ? filters_.IndexOf(first + c) - filters_.IndexOf(first) : 0;
      return scratch.spectra + index * transform_.Elements();
    };
    const auto transform_filter = [&](int64_t c) {
      if (NeedsFilter(first, c))
        filters_.Transform(batch_begin, first, channels, c, scratch.taps, spectrum(c));
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
          ConvolveBlock<R>(Row<const R>{row, 1, panel_}, Row<R>{row, 1, panel_}, start, batch_begin, first + c,
                           ends, scratch.data, spectrum(c), nullptr, past[c]);
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
      if (!is_gated_)
        return RowsToColumns(panel, panel_, count, channels, to, p_.y_strides.time, StreamsColumns(to, channels));
    if constexpr (kSame<R, T>)
      RowsToGatedColumns(panel, panel_, count, channels, ColumnEndOf(b, start, first), to, p_.y_strides.time);
  }

  // Whole lines, and two of them: single ones took 0.31 ns an element instead of 0.26 (16384 x 256).
  bool StreamsColumns(const S *to, int64_t channels) const {
    constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(S));
    return Streams() && kLine <= kChunk && channels >= 2 * kLine && (reinterpret_cast<uintptr_t>(to) & 63) == 0 &&
           p_.y_strides.time % kLine == 0;
  }

  // What precedes a row: the initial state, if there is one.
  Past PastOf(int64_t batch, int64_t channel, T *samples, T *next) const {
    if (p_.state == nullptr || history_ == 0) return {samples, next, false};
    const S *state = static_cast<const S *>(p_.state) + batch * p_.state_strides.batch +
                     channel * p_.state_strides.channel;
    for (int64_t i = 0; i < history_; ++i) samples[i] = LoadScalar(state + i * p_.state_strides.time);
    return {samples, next, true};
  }

  // Outputs from time `start` on, as many as a block has; `in` and `out` are the row from there on, `ends` the whole. The
  // spectrum is yet to be made, of `taps`, if there are any. Filters are those of element `batch`.
  template <class R>
  void ConvolveBlock(const Row<const R> &in, const Row<R> &out, int64_t start, int64_t batch, int64_t channel,
                     const Ends<R> &ends, C *data, C *spectrum, const Taps<S> *taps, Past &past,
                     const Ahead &ahead = {}) const {
    const int64_t rest = p_.length - start;
    const Samples<R> samples(in, ends.pre.From(start), Min(outputs_ + p_.origin, rest),
                             past.is_known ? past.samples : nullptr, history_, transform_.Points());
    if (outputs_ < rest && history_ > 0) {  // before the outputs overwrite it
      samples.Copy(outputs_, history_, past.next);
      past = {past.next, past.samples, true};
    }
    InShares(kPieces * threads_, [&](Share share) {
      const int64_t points = transform_.Points();
      if (taps != nullptr) transform_.FirstStep(*taps, taps->UpperIsZero(points), spectrum, share);
      transform_.FirstStep(samples, samples.UpperIsZero(points), data, share);
    });
    InShares(transform_.Blocks(), [&](Share share) {
      if (taps != nullptr) transform_.MultiplyByFilter(data, spectrum, ahead, share);
      else MultiplyBySpectrum(data, spectrum, channel, ahead, share);
    });
    alignas(64) T first[kMostSummed + kLanes<T>];
    if (summed_ > 0) SumFirst(samples, filters_.TapsOf(batch, channel, 1, 0, nullptr), ends.bias, first);
    const bool is_aligned = (reinterpret_cast<uintptr_t>(out.elements) & 63) == 0;
    const Sink<R> sink{out,       ends.post.From(start), Min(outputs_, rest),
                       ends.bias, ends.activation,       is_aligned && p_.y_strides.time == 1 && Streams()};
    InShares(kPieces * threads_, [&](Share share) {
      transform_.LastStep(data, sink.length, sink, share);
      if (splits_rows_ && sink.streams) StreamFence();
    });
    const Sink<R> sums{out, ends.post.From(start), Min(summed_, sink.length), ends.bias, ends.activation, false};
    if (summed_ > 0) sums(0, CeilDiv(sums.length, kLanes<T>), first);
  }

  // The first outputs, which what wraps around has reached, before anything is done to them.
  template <class R>
  void SumFirst(const Samples<R> &samples, const Taps<S> &taps, T bias, T *sums) const {
    constexpr int kW = kLanes<T>;
    constexpr int64_t kRoom = kMostSummed + kW;
    alignas(64) T u[kW + kRoom] = {}, h[kRoom];
    const int64_t vectors = CeilDiv(summed_, kW);
    samples(0, vectors, u + kW);
    taps(0, vectors, h);
    for (int64_t n = 0; n < vectors * kW; n += kW) {
      Vec<T> sum = Broadcast<T>(bias);
      for (int64_t k = 0; k < n + kW; ++k) sum += Load<kW>(u + kW + n - k) * Broadcast<T>(h[k]);
      Store<kW>(sums + n, sum);
    }
  }

  // One pass of a transform, by all threads where they work on the same row.
  template <class Pass>
  void InShares(int64_t count, const Pass &pass) const {
    if (!splits_rows_) return pass(Share{});
    ParallelFor(count, threads_, [&](int64_t i) { pass(Share{i, count}); });
  }

  // `spectrum` is not read where spectra are kept.
  void MultiplyBySpectrum(C *data, const C *spectrum, int64_t channel, Ahead ahead, Share share) const {
    if (kept_.address == nullptr)
      return transform_.MultiplyBySpectrum(data, reinterpret_cast<const T *>(spectrum), ahead, share);
    const char *const kept = kept_.address + filters_.IndexOf(channel) * kept_.step;
    if (kept_.is_bfloat16) return MultiplyByKept(data, reinterpret_cast<const BFloat16 *>(kept), ahead, share);
    MultiplyByKept(data, reinterpret_cast<const T *>(kept), ahead, share);
  }

  template <class Stored>
  void MultiplyByKept(C *data, const Stored *spectrum, Ahead &ahead, Share share) const {
    // Two groups before they are multiplied.
    constexpr int64_t kGroup = 2 * kLanes<T> * kLanes<T>;
    if (is_far_) ahead.Want(spectrum + 2 * kGroup, 2 * transform_.Points() * static_cast<int64_t>(sizeof(Stored)));

    if (kept_.pattern != nullptr) {
      const Pattern<T> pattern(const_cast<void *>(kept_.pattern), transform_.Points());
      if (kept_.is_conjugate) return transform_.template MultiplyBySparse<true>(data, spectrum, pattern);
      return transform_.MultiplyBySparse(data, spectrum, pattern);
    }
    if (kept_.is_conjugate) return transform_.template MultiplyBySpectrum<true>(data, spectrum, ahead, share);
    transform_.MultiplyBySpectrum(data, spectrum, ahead, share);
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
  const int64_t outputs_, history_, summed_, panel_;  // panel_: elements from row to row of a panel
  const int threads_;
  const bool shares_lines_, is_far_, splits_rows_, is_gated_;
  const bool keeps_spectra_, copies_taps_;
  const Groups groups_;
};

// The transform that will do where the first outputs are summed up, or 0; `whole` points would cover them. Lengths lie 4 % apart
// and more.
template <class T>
int64_t ShorterLength(const convscan_conv &p, int64_t whole) {
  const int64_t span = p.length + p.taps - 1;
  if (p.state != nullptr || p.origin != 0 || 2 * whole < span || whole < kLeastShortened) return 0;
  const int64_t points = TransformLength<T>(CeilDiv(span - Min(kMostSummed, whole / 64), 2));
  return points < whole - whole / 32 && Max(p.length, p.taps) <= 2 * points ? points : 0;
}

bool IsDouble(convscan_dtype dtype) { return dtype == CONVSCAN_FLOAT64 || dtype == CONVSCAN_WIDE_FLOAT32; }

template <class S>
convscan_status MakeSpectra(const convscan_spectrum &p) {
  using T = Compute<S>;
  using C = ComplexVec<T>;
  const Transform<T> transform(p.transform_length);
  if (!transform.IsValid()) return CONVSCAN_OUT_OF_MEMORY;
  const Filters<S> filters(p.h, 0, p.h_tap_stride, p.h_filter_stride, 1, p.taps, 0, transform);
  const Groups groups{p.filters, filters.ShareLines() ? kChunk : 1};
  const int64_t elements = transform.Elements(), numbers = 2 * transform.Points();
  const bool rounds = p.storage == CONVSCAN_SPECTRUM_BFLOAT16;
  bool failed = false;
  ParallelFor(groups.Count(), Threads(p.threads, p.filters * p.taps * kWorkPerSample), [&](int64_t group) {
    const int64_t first = groups.First(group), count = groups.Size(group);
    const auto carve = [&](Arena &arena, C *&data, S *&taps) {
      data = arena.Take<C>(rounds ? elements : 0);
      taps = filters.ShareLines() ? arena.Take<S>(filters.Copies(count)) : nullptr;
    };
    C *data;
    S *taps;
    Arena measure(nullptr);
    carve(measure, data, taps);
    void *const memory = Workspace(measure.Used());
    if (memory == nullptr) return __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
    Arena arena(memory);
    carve(arena, data, taps);
    for (int64_t c = 0; c < count; ++c) {
      if (!rounds) data = static_cast<C *>(p.spectra) + (first + c) * elements;
      filters.Transform(0, first, count, c, taps, data);
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
    using T = Compute<S>;
    const int64_t whole =
        transform_length > 0 ? transform_length : TransformLength<T>(CeilDiv(p.length + p.taps - 1, 2));
    const int64_t shorter = ShorterLength<T>(p, whole);
    if (shorter == 0) return RunBlocks<S, FftConvolution>(p, transform_length);
    const Transform<T> transform(shorter);
    return transform.IsValid() ? FftConvolution<S>(p, transform, p.length).Run() : CONVSCAN_OUT_OF_MEMORY;
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

int64_t FftLength(int64_t points, convscan_dtype dtype) {
  return IsDouble(dtype) ? TransformLength<double>(points) : TransformLength<float>(points);
}

}  // namespace convscan::CONVSCAN_ISA
