// The gradients of a convolution by FFT, all of them in one pass over each channel.
//
// With u = pre x, z = T(h) u + bias, w = post z and y = act(w), and with the gradient dy of y,
//
//   dz = post dy act'(w),   dpost = z dy act'(w),   dbias = sum_i dz[i],
//   dh[k] = sum_i dz[i] u[i+o-k],   du[j] = sum_k h[k] dz[j-o+k],   dx = pre du,   dpre = x du,
//
// o being the tap that meets the current sample, and the gradient of an initial state is du before the first sample. A block
// of time has dz of its own samples alone and u of those that its outputs are made of. Its transform of dz is multiplied by
// conj(U) into the sum of dh over blocks and batch, and by conj(H) on its way back. What comes back belongs to samples from
// K - 1 - o before the block on; the last K - 1 of them are finished by the next block. Where something needs z, U goes back
// as z first. The order of all sums is fixed.
//
// Rows of channel-contiguous arrays go through panels, as in conv/fft.cpp: one of u, and one of dz, then du.
#include "conv/activation.h"
#include "conv/fft_parts.h"
#include "fft/gated_columns.h"

namespace convscan::CONVSCAN_ISA {
namespace {

// Where numbers at lags -origin ... count - origin - 1 go; see Taps and Transform::LastStep.
template <class T>
struct LagSink {
  using Stored = T;
  static constexpr int kW = kLanes<T>;
  static constexpr bool streams = false;
  T *to;
  int64_t stride, count, origin, period;
  T scale, bias;

  T *At(int64_t n, int64_t vectors) const {
    return stride == 1 && n + origin + vectors * kW <= count ? to + n + origin : nullptr;
  }
  void operator()(int64_t n, int64_t vectors, const T *from) const {
    for (const int64_t end = n + vectors * kW; n < end; ++n, ++from) {
      if (n + origin < count) to[(n + origin) * stride] = *from;
      else if (n >= period - origin) to[(n + origin - period) * stride] = -*from;
    }
  }
  // Samples below it are of interest.
  int64_t Limit() const { return origin > 0 ? period : count; }
};

// W numbers of which `count` exist, `stride` apart.
template <int W, class S>
CONVSCAN_INLINE Vec<Compute<S>, W> LoadSome(const S *from, int64_t stride, int64_t count) {
  if (stride == 1 && count >= W) return Load<W>(from);
  Vec<Compute<S>, W> v{};
  for (int l = 0; l < W && l < count; ++l) v[l] = LoadScalar(from + l * stride);
  return v;
}
template <int W, class S>
CONVSCAN_INLINE void StoreSome(S *to, int64_t stride, int64_t count, Vec<Compute<S>, W> v) {
  if (stride == 1 && count >= W) return Store<W>(to, v);
  for (int l = 0; l < W && l < count; ++l) StoreScalar(to + l * stride, v[l]);
}

// dz and, where z is given, dpost.
template <int W, class T>
struct OutputGradient {
  Vec<T, W> dz, dpost;

  CONVSCAN_INLINE static OutputGradient Of(Vec<T, W> dy, bool has_gate, Vec<T, W> gate, bool has_z, Vec<T, W> z,
                                           convscan_activation activation) {
    if (has_z && activation != CONVSCAN_IDENTITY) dy *= ActivationSlope<W, T>(has_gate ? z * gate : z, activation);
    return {has_gate ? dy * gate : dy, dy * z};
  }
};

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
        filters_(p.h, 0, p.h_tap_stride, p.h_channel_stride,
                 p.h_channel_stride == 0 ? f_.channels : Max(p.filter_group, 1), f_.taps, f_.origin, transform),
        outputs_(outputs),
        longest_(LongestSequence(f_)),
        past_(f_.taps - 1 - f_.origin),
        needs_z_(p.activation != CONVSCAN_IDENTITY || p.dpost_gate != nullptr),
        makes_dz_of_z_(p.activation != CONVSCAN_IDENTITY),
        needs_du_(p.dx != nullptr || p.dpre_gate != nullptr || p.dstate != nullptr),
        reads_h_(needs_z_ || needs_du_),
        // Whether du of samples that are not a block's own is wanted.
        has_lags_(needs_du_ && f_.taps > 1 && (p.dstate != nullptr || outputs < longest_)),
        has_past_(past_ > 0 && (f_.state != nullptr || outputs < longest_)),
        is_single_(f_.batch == 1 && Sequences(f_) == 1 && outputs >= longest_),
        threads_(Threads(f_.threads, f_.batch * f_.length * f_.channels * kWorkPerSample)),
        shares_lines_(f_.x_strides.channel == 1 && f_.dz_strides.channel == 1 &&
                      (p.dx == nullptr || p.dx_strides.channel == 1) && f_.length >= kChunk && f_.channels > 1),
        is_far_(3 * SignalBytes() > kCacheBytes),
        copies_taps_(MakesSpectra() && filters_.ShareLines()),
        // Spectra that a panel needs more than once.
        keeps_spectra_(MakesSpectra() && shares_lines_ && (!is_single_ || makes_dz_of_z_)),
        signal_pitch_(RoundUp((has_past_ ? past_ : 0) + Min(outputs, longest_) + f_.origin, kChunk) + kChunk),
        gradient_pitch_(RoundUp((has_lags_ ? f_.taps - 1 : 0) + Min(outputs, longest_), kChunk) + kChunk),
        dh_takes_signals_(WritesColumns() && is_single_ && !MakesZ() && f_.taps <= signal_pitch_),
        dh_pitch_(dh_takes_signals_ ? signal_pitch_ : RoundUp(f_.taps, kChunk)),
        groups_{f_.channels, TaskWidth()} {}

  convscan_status Run() {
    bool failed = false;
    ParallelFor(groups_.Count(), threads_, [&](int64_t group) {
      if (!RunGroup(groups_.First(group), groups_.Size(group))) __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
    });
    return failed ? CONVSCAN_OUT_OF_MEMORY : CONVSCAN_OK;
  }

 private:
  static constexpr int64_t kMostLines = 4;
  static int64_t RoundUp(int64_t n, int64_t to) { return CeilDiv(n, to) * to; }

  struct Scratch {
    C *signal, *gradient;     // transforms at work
    C *sums, *spectra;        // of each channel of a task, or of one
    T *signals, *gradients;   // panels, or the one row of a channel that has to be stored
    T *past, *carries, *dh;
    S *taps;
    double *bias;
  };

  // Where one sequence of one element of the batch lies, its samples, and the tap of its state.
  struct Sequence {
    int64_t batch, index, begin, length;
  };

  int64_t SignalBytes() const {
    return f_.batch * f_.length * f_.channels * static_cast<int64_t>(sizeof(S));
  }
  // What a channel keeps while a task goes through the batch.
  int64_t KeptElements() const { return ((is_single_ ? 0 : 1) + (keeps_spectra_ ? 1 : 0)) * transform_.Elements(); }
  bool MakesSpectra() const { return reads_h_ && kept_.address == nullptr; }

  int64_t TaskWidth() const {
    if (!shares_lines_ && !copies_taps_)
      return is_far_ ? Min(kChunk, Max(1, f_.channels / (8 * threads_))) : 1;
    if (f_.channels < kChunk * threads_) return Max(1, CeilDiv(f_.channels, threads_));
    if (!shares_lines_) return kChunk;
    const int64_t item = static_cast<int64_t>(sizeof(T));
    const int64_t channel = (signal_pitch_ + gradient_pitch_) * item + KeptElements() * static_cast<int64_t>(sizeof(C));
    const int64_t each = f_.channels / (2 * threads_) / kChunk;
    return Max(1, Min(Min(kMostLines, kPanelBytes / (channel * kChunk)), each)) * kChunk;
  }

  Scratch Carve(Arena &arena, int64_t channels) const {
    const int64_t elements = transform_.Elements(), rows = shares_lines_ ? channels : 1;
    Scratch s{};
    s.signal = arena.Take<C>(elements);
    s.gradient = arena.Take<C>(elements);
    // The sum of a single product may be where the signal's spectrum was.
    s.sums = is_single_ ? s.signal : arena.Take<C>(f_.dh == nullptr ? 0 : rows * elements);
    s.spectra = arena.Take<C>(!MakesSpectra() ? 0 : keeps_spectra_ ? rows * elements : elements);
    if (shares_lines_) s.signals = arena.Take<T>(rows * signal_pitch_);
    s.gradients = arena.Take<T>(shares_lines_ || StoresRow() ? rows * gradient_pitch_ : 0);
    s.past = arena.Take<T>(has_past_ && !shares_lines_ ? past_ : 0);
    s.carries = arena.Take<T>(has_lags_ && outputs_ < longest_ ? rows * (f_.taps - 1) : 0);
    s.dh = dh_takes_signals_ ? s.signals : arena.Take<T>(WritesColumns() ? channels * dh_pitch_ : 0);
    if (copies_taps_) s.taps = arena.Take<S>(filters_.Copies(channels));
    s.bias = arena.Take<double>(rows);
    return s;
  }

  // Whether the one row of a channel is stored: dz that is more than a gated row, or du with more than one use.
  bool StoresRow() const { return needs_z_ || p_.dbias != nullptr || has_lags_ || p_.dpre_gate != nullptr; }
  // Whether z, of which dz is not made, comes from the same spectrum of u as the rest, over the row of u.
  bool MakesZ() const { return needs_z_ && !makes_dz_of_z_; }
  // Whether gradients of neighbouring filters share lines.
  bool WritesColumns() const {
    return shares_lines_ && f_.dh != nullptr && f_.dh_channel_stride == 1 && f_.dh_tap_stride != 1;
  }

  bool RunGroup(int64_t first, int64_t channels) const {
    Arena count(nullptr);
    Carve(count, channels);
    void *const memory = Workspace(count.Used());
    if (memory == nullptr) return false;
    Arena arena(memory);
    const Scratch s = Carve(arena, channels);
    ClearStates(first, channels);
    if (shares_lines_) RunPanels(first, channels, s);
    else for (int64_t c = 0; c < channels; ++c) RunChannel(first, channels, c, s);
    if (WritesColumns())
      RowsToColumns(s.dh, dh_pitch_, f_.taps, channels, static_cast<T *>(f_.dh) + first, f_.dh_tap_stride,
                    false);
    StreamFence();
    return true;
  }

  template <class Visit>
  void ForSequences(const Visit &visit) const {
    for (int64_t b = 0; b < f_.batch; ++b)
      for (int64_t i = 0; i < Sequences(f_); ++i) {
        const int64_t begin = SequenceBegin(f_, i), length = SequenceEnd(f_, i) - begin;
        if (length > 0) visit(Sequence{b, i, begin, length});
      }
  }

  // ---- channels where they lie ----

  void RunChannel(int64_t first, int64_t channels, int64_t c, const Scratch &s) const {
    if (NeedsFilter(first, c))
      filters_.Transform(0, first, channels, c, s.taps, s.spectra, AheadOf(f_.x, f_.x_strides, 0, first + c));
    bool is_first = true;
    s.bias[0] = 0;
    ForSequences([&](const Sequence &q) {
      RunRow(q, first + c, s, is_first, q.batch + 1 < f_.batch || c + 1 < channels);
      is_first = false;
    });
    StoreBias(first + c, s.bias[0]);
    if (f_.dh == nullptr) return;
    if (is_first) ClearFilter(first, c, s);
    else StoreFilter(first, c, s, s.sums);
  }

  void RunRow(const Sequence &q, int64_t n, const Scratch &s, bool is_first, bool goes_on) const {
    const Row<const S> x = RowOf<const S>(f_.x, f_.x_strides, q, n), dy = RowOf<const S>(f_.dz, f_.dz_strides, q, n);
    const RowGate<S> pre = RowGateOf(f_.x_gate, f_.x_gate_strides, q, n),
                     post = RowGateOf(f_.dz_gate, f_.dz_gate_strides, q, n);
    const int64_t points = transform_.Points();
    const T *past = nullptr;
    if (has_past_ && f_.state != nullptr) {
      const S *const state = StateOf(static_cast<const S *>(f_.state), f_.state_strides, f_.state_sequence_stride, q, n);
      for (int64_t i = 0; i < past_; ++i) s.past[i] = LoadScalar(state + i * f_.state_strides.time);
      past = s.past;
    }
    for (int64_t start = 0; start < q.length; start += outputs_) {
      const int64_t rest = q.length - start, length = Min(outputs_, rest);
      const Samples<S> u(x.From(start), pre.From(start), Min(outputs_ + f_.origin, rest), past, past_, points);
      transform_.FirstStep(u, u.UpperIsZero(points), s.signal);
      transform_.Spectrum(s.signal, AheadOf(f_.dz, f_.dz_strides, q.batch, n));
      if (length < rest && past_ > 0) {
        u.Copy(length, past_, s.past);
        past = s.past;
      }
      if (needs_z_) BackAsOutput(s, n, 0, length, s.gradients);
      if (needs_z_ || p_.dbias != nullptr) {
        s.bias[0] += RowOfGradient(q, n, start, length, s.gradients);
        const Samples<T> dz(Row<const T>{s.gradients, 1, length}, {}, length, nullptr, 0, points);
        transform_.FirstStep(dz, dz.UpperIsZero(points), s.gradient);
      } else {
        const Samples<S> dz(dy.From(start), post.From(start), length, nullptr, 0, points);
        transform_.FirstStep(dz, dz.UpperIsZero(points), s.gradient);
      }
      if (f_.dh == nullptr && !needs_du_) continue;
      const int64_t next = q.batch + 1 < f_.batch ? q.batch + 1 : 0;
      const Ahead ahead = goes_on ? AheadOf(f_.x, f_.x_strides, next, next > 0 ? n : n + 1) : Ahead{};
      Correlate(s, SpectrumOf(s, n, 0), s.sums, is_first && start == 0, ahead);
      if (!needs_du_) continue;
      const Row<S> dx = RowOf<S>(p_.dx, p_.dx_strides, q, n);
      if (!has_lags_ && p_.dpre_gate == nullptr) {
        const bool is_aligned = (reinterpret_cast<uintptr_t>(dx.elements) & 63) == 0;
        const Sink<S> sink{dx.From(start),  pre.From(start), length, T{0}, CONVSCAN_IDENTITY,
                           is_aligned && p_.dx_strides.time == 1 && SignalBytes() > kStreamBytes};
        transform_.LastStep(s.gradient, length, sink);
        continue;
      }
      BackAsRow(s, length, s.gradients);
      const Span span = FinishedSpan(q, start, length);
      if (has_lags_) CarryOn(q, start, length, s.gradients, s.carries);
      if (start == 0) StoreState(q, n, s.gradients);
      StoreRow(q, n, span, s.gradients);
    }
  }

  // dz over the row of z, and the sum of dz.
  double RowOfGradient(const Sequence &q, int64_t n, int64_t start, int64_t length, T *row) const {
    constexpr int kW = kLanes<T>;
    const int64_t begin = q.begin + start;
    const S *const dy = At<const S>(f_.dz, f_.dz_strides, q.batch, begin, n);
    const S *const gate = At<const S>(f_.dz_gate, f_.dz_gate_strides, q.batch, begin, n);
    S *const dpost = At<S>(p_.dpost_gate, p_.dpost_gate_strides, q.batch, begin, n);
    double total = 0;
    constexpr int64_t kPart = 64 * kW;
    for (int64_t part = 0; part < length; part += kPart) {
      Vec<T> sum{};
      for (int64_t i = part; i < Min(part + kPart, length); i += kW) {
        const int64_t count = length - i;
        const Vec<T> factor = gate == nullptr ? Vec<T>{} : LoadSome<kW>(gate + i * f_.dz_gate_strides.time,
                                                                       f_.dz_gate_strides.time, count);
        const auto g = OutputGradient<kW, T>::Of(LoadSome<kW>(dy + i * f_.dz_strides.time, f_.dz_strides.time, count),
                                                 gate != nullptr, factor, needs_z_,
                                                 needs_z_ ? LoadSome<kW>(row + i, 1, count) : Vec<T>{}, p_.activation);
        if (dpost != nullptr)
          StoreSome<kW>(dpost + i * p_.dpost_gate_strides.time, p_.dpost_gate_strides.time, count, g.dpost);
        StoreSome<kW>(row + i, 1, count, g.dz);
        sum += g.dz;
      }
      for (int l = 0; l < kW; ++l) total += static_cast<double>(sum[l]);
    }
    return total;
  }

  // dx and dpre of what is finished of a row of du.
  struct Span {
    int64_t begin, end, at;  // samples of the sequence, and where in the row the first of them is
  };
  void StoreRow(const Sequence &q, int64_t n, const Span &span, const T *row) const {
    constexpr int kW = kLanes<T>;
    const int64_t begin = q.begin + span.begin;
    const S *const gate = At<const S>(f_.x_gate, f_.x_gate_strides, q.batch, begin, n);
    const S *const x = At<const S>(f_.x, f_.x_strides, q.batch, begin, n);
    S *const dx = At<S>(p_.dx, p_.dx_strides, q.batch, begin, n);
    S *const dpre = At<S>(p_.dpre_gate, p_.dpre_gate_strides, q.batch, begin, n);
    for (int64_t i = 0; i < span.end - span.begin; i += kW) {
      const int64_t count = span.end - span.begin - i;
      const Vec<T> du = LoadSome<kW>(row + span.at + i, 1, count);
      if (dpre != nullptr)
        StoreSome<kW>(dpre + i * p_.dpre_gate_strides.time, p_.dpre_gate_strides.time, count,
                      du * LoadSome<kW>(x + i * f_.x_strides.time, f_.x_strides.time, count));
      if (dx == nullptr) continue;
      const Vec<T> gated = gate == nullptr ? du
                                           : du * LoadSome<kW>(gate + i * f_.x_gate_strides.time,
                                                               f_.x_gate_strides.time, count);
      StoreSome<kW>(dx + i * p_.dx_strides.time, p_.dx_strides.time, count, gated);
    }
  }

  // ---- adjacent channels ----

  void RunPanels(int64_t first, int64_t channels, const Scratch &s) const {
    for (int64_t c = 0; keeps_spectra_ && c < channels; ++c) MakeSpectrum(first, channels, c, s);
    for (int64_t c = 0; c < channels; ++c) s.bias[c] = 0;
    bool is_first = true;
    ForSequences([&](const Sequence &q) {
      for (int64_t start = 0; start < q.length; start += outputs_) {
        RunBlock(q, first, channels, start, s, is_first);
        is_first = false;
      }
    });
    for (int64_t c = 0; c < channels; ++c) {
      StoreBias(first + c, s.bias[c]);
      if (f_.dh == nullptr) continue;
      if (is_first) ClearFilter(first, c, s);
      else if (!is_single_) StoreFilter(first, c, s, s.sums + c * transform_.Elements());
    }
  }

  void MakeSpectrum(int64_t first, int64_t channels, int64_t c, const Scratch &s) const {
    if (NeedsFilter(first, c))
      filters_.Transform(0, first, channels, c, s.taps, s.spectra + SpectrumIndex(first, c) * transform_.Elements());
  }

  void RunBlock(const Sequence &q, int64_t first, int64_t channels, int64_t start, const Scratch &s,
                bool is_first) const {
    const int64_t rest = q.length - start, length = Min(outputs_, rest);
    const int64_t signals = Min(outputs_ + f_.origin, rest), before = has_past_ ? past_ : 0;
    const bool knows_past = has_past_ && (start > 0 || f_.state != nullptr);
    const int64_t reads = knows_past && start > 0 ? before : 0;
    ReadColumns(f_.x, f_.x_strides, f_.x_gate, f_.x_gate_strides, q, first, start - reads, signals + reads, channels,
                s.signals + before - reads, signal_pitch_);
    for (int64_t c = 0; knows_past && start == 0 && c < channels; ++c) {
      const S *const state =
          StateOf(static_cast<const S *>(f_.state), f_.state_strides, f_.state_sequence_stride, q, first + c);
      for (int64_t i = 0; i < past_; ++i) s.signals[c * signal_pitch_ + i] = LoadScalar(state + i * f_.state_strides.time);
    }
    const auto spectrum_of_signal = [&](int64_t c) {
      const T *const row = s.signals + c * signal_pitch_;
      const Samples<T> u(Row<const T>{row + before, 1, signals}, {}, signals, knows_past ? row : nullptr, past_,
                         transform_.Points());
      transform_.FirstStep(u, u.UpperIsZero(transform_.Points()), s.signal);
      transform_.Spectrum(s.signal);
    };
    for (int64_t c = 0; makes_dz_of_z_ && c < channels; ++c) {
      spectrum_of_signal(c);
      BackAsOutput(s, first, c, length, s.gradients + c * gradient_pitch_);
    }
    if (makes_dz_of_z_ || p_.dbias != nullptr) {
      ColumnsOfGradient(q, first, channels, start, length, s);
    } else {
      ReadColumns(f_.dz, f_.dz_strides, f_.dz_gate, f_.dz_gate_strides, q, first, start, length, channels, s.gradients,
                  gradient_pitch_);
    }
    for (int64_t c = 0; c < channels; ++c) {
      if (f_.dh == nullptr && !needs_du_ && !MakesZ()) break;
      T *const row = s.gradients + c * gradient_pitch_;
      if (!keeps_spectra_) MakeSpectrum(first, channels, c, s);
      spectrum_of_signal(c);
      if (MakesZ()) BackAsOutput(s, first, c, length, s.signals + c * signal_pitch_);
      if (f_.dh == nullptr && !needs_du_) continue;
      const Samples<T> dz(Row<const T>{row, 1, length}, {}, length, nullptr, 0, transform_.Points());
      transform_.FirstStep(dz, dz.UpperIsZero(transform_.Points()), s.gradient);
      C *const sum = s.sums + (is_single_ || f_.dh == nullptr ? 0 : c * transform_.Elements());
      Correlate(s, SpectrumOf(s, first, c), sum, is_first, {});
      if (needs_du_) {
        BackAsRow(s, length, row);
        if (has_lags_) CarryOn(q, start, length, row, s.carries + c * (f_.taps - 1));
        if (start == 0) StoreState(q, first + c, row);
      }
      if (is_single_ && f_.dh != nullptr) StoreFilter(first, c, s, sum);
    }
    if (MakesZ())
      StoreProducts(q, first, start, length, channels, s.signals, signal_pitch_, f_.dz, f_.dz_strides, p_.dpost_gate,
                    p_.dpost_gate_strides);
    if (needs_du_) StoreColumns(q, first, channels, FinishedSpan(q, start, length), s.gradients);
  }

  // Rows, as columns, times those of an array from time `start` of a sequence on: the gradient of a gate.
  void StoreProducts(const Sequence &q, int64_t first, int64_t start, int64_t count, int64_t channels, const T *rows,
                     int64_t pitch, const void *array, const convscan_strides &strides, void *to,
                     const convscan_strides &to_strides) const {
    for (int64_t t = 0; t < count; t += kChunk)
      for (int64_t r = 0; r < channels; r += kChunk) {
        const int64_t times = Min(kChunk, count - t), columns = Min(kChunk, channels - r);
        const int64_t time = q.begin + start + t, n = first + r;
        Tile<T> product;
        product.FromRows(rows + r * pitch + t, pitch, columns);
        const ColumnGate<S> factors{At<const S>(array, strides, q.batch, time, n), strides.time, 1};
        factors.Multiply(product, times, columns);
        S *const at = At<S>(to, to_strides, q.batch, time, n);
        PrefetchTile<1>(at, to_strides.time);
        product.Write(at, to_strides.time, to_strides.channel, times, columns);
      }
  }

  // Columns from time `start` of a sequence on, gated, as rows.
  void ReadColumns(const void *array, const convscan_strides &strides, const void *gate,
                   const convscan_strides &gate_strides, const Sequence &q, int64_t first, int64_t start, int64_t count,
                   int64_t channels, T *to, int64_t pitch) const {
    const S *const from = At<const S>(array, strides, q.batch, q.begin + start, first);
    if constexpr (kSame<S, T>)
      if (gate == nullptr) return RowsFromColumns(from, strides.time, count, channels, to, pitch);
    const ColumnGate<S> factors{At<const S>(gate, gate_strides, q.batch, q.begin + start, first), gate_strides.time,
                                gate_strides.channel};
    RowsFromGatedColumns(from, strides.time, factors, count, channels, to, pitch);
  }

  // dz over the rows of z, and their sums.
  void ColumnsOfGradient(const Sequence &q, int64_t first, int64_t channels, int64_t start, int64_t length,
                         const Scratch &s) const {
    constexpr int kW = Tile<T>::kW;
    for (int64_t t = 0; t < length; t += kChunk)
      for (int64_t r = 0; r < channels; r += kChunk) {
        const int64_t times = Min(kChunk, length - t), columns = Min(kChunk, channels - r);
        const int64_t time = q.begin + start + t, n = first + r;
        T *const rows = s.gradients + r * gradient_pitch_ + t;
        Tile<T> z{}, dy{}, gate{}, dpost{};
        if (makes_dz_of_z_) z.FromRows(rows, gradient_pitch_, columns);
        const S *const gradient = At<const S>(f_.dz, f_.dz_strides, q.batch, time, n);
        PrefetchTile<0>(gradient, f_.dz_strides.time);
        dy.Read(gradient, f_.dz_strides.time, 1, times, columns);
        if (f_.dz_gate != nullptr) {
          const S *const factors = At<const S>(f_.dz_gate, f_.dz_gate_strides, q.batch, time, n);
          PrefetchTile<0>(factors, f_.dz_gate_strides.time);
          gate.Read(factors, f_.dz_gate_strides.time, f_.dz_gate_strides.channel, times, columns);
        }
        T sums[kChunk] = {};
        for (int64_t i = 0; i < times; ++i)
          for (int j = 0; j < kChunk; j += kW) {
            const auto g = OutputGradient<kW, T>::Of(Load<kW>(&dy.rows[i][j]), f_.dz_gate != nullptr,
                                                     Load<kW>(&gate.rows[i][j]), makes_dz_of_z_,
                                                     Load<kW>(&z.rows[i][j]), p_.activation);
            Store<kW>(&dy.rows[i][j], g.dz);
            Store<kW>(&dpost.rows[i][j], g.dpost);
            Store<kW>(sums + j, Load<kW>(sums + j) + g.dz);
          }
        for (int64_t j = 0; j < columns; ++j) s.bias[r + j] += static_cast<double>(sums[j]);
        if (makes_dz_of_z_ && p_.dpost_gate != nullptr) {
          S *const to = At<S>(p_.dpost_gate, p_.dpost_gate_strides, q.batch, time, n);
          PrefetchTile<1>(to, p_.dpost_gate_strides.time);
          dpost.Write(to, p_.dpost_gate_strides.time, p_.dpost_gate_strides.channel, times, columns);
        }
        dy.ToRows(rows, gradient_pitch_, columns);
      }
  }

  // dx and dpre of what is finished of rows of du.
  void StoreColumns(const Sequence &q, int64_t first, int64_t channels, const Span &span, const T *rows) const {
    const int64_t count = span.end - span.begin;
    if constexpr (kSame<S, T>) {
      if (f_.x_gate == nullptr && p_.dpre_gate == nullptr && p_.dx != nullptr) {
        S *const dx = At<S>(p_.dx, p_.dx_strides, q.batch, q.begin + span.begin, first);
        constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(S));
        const bool streams = SignalBytes() > kStreamBytes && channels >= 2 * kLine && p_.dx_strides.time % kLine == 0 &&
                             (reinterpret_cast<uintptr_t>(dx) & 63) == 0;
        return RowsToColumns(rows + span.at, gradient_pitch_, count, channels, dx, p_.dx_strides.time, streams);
      }
    }
    for (int64_t t = 0; t < count; t += kChunk)
      for (int64_t r = 0; r < channels; r += kChunk) {
        const int64_t times = Min(kChunk, count - t), columns = Min(kChunk, channels - r);
        const int64_t time = q.begin + span.begin + t, n = first + r;
        Tile<T> du;
        du.FromRows(rows + r * gradient_pitch_ + span.at + t, gradient_pitch_, columns);
        if (p_.dpre_gate != nullptr) {
          Tile<T> product = du;
          const ColumnGate<S> x{At<const S>(f_.x, f_.x_strides, q.batch, time, n), f_.x_strides.time, 1};
          x.Multiply(product, times, columns);
          S *const dpre = At<S>(p_.dpre_gate, p_.dpre_gate_strides, q.batch, time, n);
          PrefetchTile<1>(dpre, p_.dpre_gate_strides.time);
          product.Write(dpre, p_.dpre_gate_strides.time, p_.dpre_gate_strides.channel, times, columns);
        }
        if (p_.dx == nullptr) continue;
        const ColumnGate<S> gate{At<const S>(f_.x_gate, f_.x_gate_strides, q.batch, time, n), f_.x_gate_strides.time,
                                 f_.x_gate_strides.channel};
        gate.Multiply(du, times, columns);
        S *const dx = At<S>(p_.dx, p_.dx_strides, q.batch, time, n);
        PrefetchTile<1>(dx, p_.dx_strides.time);
        du.Write(dx, p_.dx_strides.time, 1, times, columns);
      }
  }

  // ---- both ----

  // The row of z = T(h) u + bias of channel first + c from the spectrum of u.
  void BackAsOutput(const Scratch &s, int64_t first, int64_t c, int64_t length, T *row) const {
    WithSpectrum(SpectrumOf(s, first, c),
                 [&](const auto *h) { transform_.BackFromProduct(s.signal, h, s.gradient); });
    const T bias =
        p_.bias == nullptr ? T{0} : LoadScalar(static_cast<const S *>(p_.bias) + (first + c) * p_.bias_stride);
    transform_.LastStep(s.gradient, length, LagSink<T>{row, 1, length, 0, 2 * transform_.Points(), T{1}, bias});
  }

  // After the first step of dz: the sum of dh, and du up to its last step.
  void Correlate(const Scratch &s, const void *spectrum, C *sum, bool is_first, const Ahead &ahead) const {
    if (!needs_du_) return transform_.AccumulateCorrelation(s.gradient, s.signal, sum, is_first, ahead);
    WithSpectrum(spectrum, [&](const auto *h) {
      if (f_.dh == nullptr) transform_.template MultiplyBySpectrum<true>(s.gradient, h, ahead);
      else transform_.CorrelateAndMultiply(s.gradient, h, s.signal, sum, is_first, ahead);
    });
  }

  // The row of du: of a block's own samples, or from K - 1 - o before them on.
  void BackAsRow(const Scratch &s, int64_t length, T *row) const {
    const LagSink<T> sink{row, 1, length + (has_lags_ ? f_.taps - 1 : 0), has_lags_ ? past_ : 0,
                          2 * transform_.Points(), T{1}, T{0}};
    transform_.LastStep(s.gradient, sink.Limit(), sink);
  }

  // What the block before and this one add to the same samples.
  void CarryOn(const Sequence &q, int64_t start, int64_t length, T *row, T *carry) const {
    const int64_t reach = f_.taps - 1;
    for (int64_t i = 0; start > 0 && i < reach; ++i) row[i] += carry[i];
    if (start + length < q.length) memcpy(carry, row + length, static_cast<size_t>(reach) * sizeof(T));
  }

  // The samples whose du no later block adds to.
  Span FinishedSpan(const Sequence &q, int64_t start, int64_t length) const {
    if (!has_lags_) return {start, start + length, 0};
    const int64_t begin = Max(0, start - past_), end = start + length < q.length ? start + length - past_ : q.length;
    return {begin, end, begin - (start - past_)};
  }

  void StoreState(const Sequence &q, int64_t n, const T *row) const {
    if (p_.dstate == nullptr) return;
    S *const to = StateOf(static_cast<S *>(p_.dstate), p_.dstate_strides, p_.dstate_sequence_stride, q, n);
    for (int64_t i = 0; i < past_; ++i) StoreScalar(to + i * p_.dstate_strides.time, row[i]);
  }

  // The gradient of a state that no sample follows.
  void ClearStates(int64_t first, int64_t channels) const {
    if (p_.dstate == nullptr) return;
    for (int64_t b = 0; b < f_.batch; ++b)
      for (int64_t i = 0; i < Sequences(f_); ++i) {
        if (SequenceEnd(f_, i) > SequenceBegin(f_, i)) continue;
        for (int64_t n = first; n < first + channels; ++n) {
          S *const to = StateOf(static_cast<S *>(p_.dstate), p_.dstate_strides, p_.dstate_sequence_stride, {b, i, 0, 0}, n);
          for (int64_t k = 0; k < past_; ++k) StoreScalar(to + k * p_.dstate_strides.time, T{0});
        }
      }
  }

  void StoreBias(int64_t n, double sum) const {
    if (p_.dbias != nullptr) static_cast<T *>(p_.dbias)[n * p_.dbias_stride] = static_cast<T>(sum);
  }

  // Where dh of channel first + c goes first.
  LagSink<T> FilterSink(int64_t first, int64_t c, const Scratch &s) const {
    const T scale = T{1} / static_cast<T>(transform_.Points());
    const int64_t period = 2 * transform_.Points();
    if (WritesColumns())
      return {s.dh + c * dh_pitch_, 1, f_.taps, f_.origin, period, scale, T{0}};
    return {static_cast<T *>(f_.dh) + (first + c) * f_.dh_channel_stride, f_.dh_tap_stride, f_.taps, f_.origin, period,
            scale, T{0}};
  }
  void StoreFilter(int64_t first, int64_t c, const Scratch &s, C *sum) const {
    const LagSink<T> sink = FilterSink(first, c, s);
    transform_.BackFromSpectrum(sum);
    transform_.LastStep(sum, sink.Limit(), sink);
  }
  // The sum over no samples at all.
  void ClearFilter(int64_t first, int64_t c, const Scratch &s) const {
    const LagSink<T> sink = FilterSink(first, c, s);
    for (int64_t k = 0; k < f_.taps; ++k) sink.to[k * sink.stride] = T{0};
  }

  // Whether channel c of a task needs another filter than the one before it.
  bool NeedsFilter(int64_t first, int64_t c) const {
    return MakesSpectra() && (c == 0 || filters_.IndexOf(first + c) != filters_.IndexOf(first + c - 1));
  }
  int64_t SpectrumIndex(int64_t first, int64_t c) const {
    return keeps_spectra_ ? filters_.IndexOf(first + c) - filters_.IndexOf(first) : 0;
  }
  const void *SpectrumOf(const Scratch &s, int64_t first, int64_t c) const {
    if (kept_.address != nullptr) return kept_.address + filters_.IndexOf(first + c) * kept_.step;
    return s.spectra + SpectrumIndex(first, c) * transform_.Elements();
  }
  template <class Function>
  void WithSpectrum(const void *spectrum, const Function &function) const {
    if (kept_.address != nullptr && kept_.is_bfloat16) function(static_cast<const BFloat16 *>(spectrum));
    else function(static_cast<const T *>(spectrum));
  }

  // A row that is read soon.
  Ahead AheadOf(const void *array, const convscan_strides &strides, int64_t b, int64_t n) const {
    Ahead ahead;
    if (is_far_ && strides.time == 1 && outputs_ >= longest_)
      ahead.Want(At<const S>(array, strides, b, 0, n), f_.length * static_cast<int64_t>(sizeof(S)));
    return ahead;
  }

  template <class Element>
  static Element *At(const void *array, const convscan_strides &strides, int64_t b, int64_t t, int64_t n) {
    if (array == nullptr) return nullptr;
    return const_cast<Element *>(static_cast<const Element *>(array)) + b * strides.batch + t * strides.time +
           n * strides.channel;
  }
  template <class Element>
  Row<Element> RowOf(const void *array, const convscan_strides &strides, const Sequence &q, int64_t n) const {
    return {At<Element>(array, strides, q.batch, q.begin, n), strides.time, q.length};
  }
  RowGate<S> RowGateOf(const void *gate, const convscan_strides &strides, const Sequence &q, int64_t n) const {
    return {At<const S>(gate, strides, q.batch, q.begin, n), strides.time};
  }
  template <class Element>
  static Element *StateOf(Element *states, const convscan_strides &strides, int64_t sequence_stride, const Sequence &q,
                          int64_t n) {
    return states + q.batch * strides.batch + q.index * sequence_stride + n * strides.channel;
  }

  const convscan_conv_gradient &p_;
  const convscan_filter_gradient &f_;
  const Transform<T> &transform_;
  const KeptSpectra kept_;
  const Filters<S> filters_;
  const int64_t outputs_, longest_, past_;
  const bool needs_z_, makes_dz_of_z_, needs_du_, reads_h_, has_lags_, has_past_, is_single_;
  const int threads_;
  const bool shares_lines_, is_far_, copies_taps_, keeps_spectra_;
  const int64_t signal_pitch_, gradient_pitch_;  // from row to row of the panels
  // Whether gradients of filters are written over the rows of u, one by one when these have been read; and from one to the next.
  const bool dh_takes_signals_;
  const int64_t dh_pitch_;
  const Groups groups_;
};

}  // namespace

convscan_status ConvGradientFft(const convscan_conv_gradient &problem, int64_t transform_length) {
  return WithRealStorage(problem.filter.dtype, [&](auto type) {
    return RunBlocks<typename decltype(type)::Storage, FftGradient>(problem, transform_length);
  });
}

convscan_status FilterGradientFft(const convscan_filter_gradient &problem, int64_t transform_length) {
  return WithRealStorage(problem.dtype, [&](auto type) {
    using S = typename decltype(type)::Storage;
    convscan_conv_gradient p{};
    p.filter = WithoutIdleTaps<S>(problem);
    return p.filter.taps == 0 ? CONVSCAN_OK : RunBlocks<S, FftGradient>(p, transform_length);
  });
}

}  // namespace convscan::CONVSCAN_ISA
