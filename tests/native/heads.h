// What tests of memories with heads share: signals with heads, states, decays, and how near results have to be.
#pragma once

#include <algorithm>

#include "check.h"

namespace tests {

inline constexpr convscan_dtype kDtypes[] = {CONVSCAN_FLOAT32, CONVSCAN_FLOAT64, CONVSCAN_BFLOAT16, CONVSCAN_FLOAT16};
inline constexpr int64_t kLengths[] = {0, 1, 2, 7, 15, 16, 17, 31, 63, 64, 65, 100, 129};
inline constexpr int64_t kKeys[] = {1, 2, 5, 8, 16, 17, 24};
inline constexpr int64_t kValues[] = {1, 3, 7, 8, 16, 33, 70};

inline convscan_dtype Arithmetic(convscan_dtype dtype) { return dtype == CONVSCAN_FLOAT64 ? dtype : CONVSCAN_FLOAT32; }

// (batch, time, head x channel) in one of the layouts, the last axis split into heads and channels.
struct Signal {
  Array array;
  int64_t heads, channels;

  Signal(convscan_dtype dtype, int64_t batch, int64_t length, int64_t heads, int64_t channels, Layout layout)
      : array(dtype, batch, length, heads * channels, layout, 1), heads(heads), channels(channels) {}

  convscan_head_strides strides() const {
    const convscan_strides &s = array.strides();
    return {s.batch, s.time, channels * s.channel, s.channel};
  }
  convscan_step_strides step() const { return {strides().batch, strides().head, strides().channel}; }
  double At(int64_t b, int64_t t, int64_t h, int64_t c) const { return array.At(b, t, h * channels + c).real(); }
  void Set(int64_t b, int64_t t, int64_t h, int64_t c, double value) { array.Set(b, t, h * channels + c, value); }
};

inline double Product(const Signal &x, const Signal &y) {
  double sum = 0;
  for (int64_t b = 0; b < x.array.batch(); ++b)
    for (int64_t t = 0; t < x.array.time(); ++t)
      for (int64_t c = 0; c < x.array.channels(); ++c) sum += (x.array.At(b, t, c) * y.array.At(b, t, c)).real();
  return sum;
}

inline double Scale(const Signal &x, const Signal &y) {
  double sum = 0;
  for (int64_t b = 0; b < x.array.batch(); ++b)
    for (int64_t t = 0; t < x.array.time(); ++t)
      for (int64_t c = 0; c < x.array.channels(); ++c) sum += std::abs(x.array.At(b, t, c) * y.array.At(b, t, c));
  return sum;
}

// A state as the signal (batch, sequence, (head x key) x value), n as one with a single value.
struct State {
  Signal s, n;
  int64_t keys;

  State(convscan_dtype dtype, int64_t batch, int64_t sequences, int64_t heads, int64_t keys, int64_t values,
        Layout layout)
      : s(dtype, batch, sequences, heads * keys, values, layout),
        n(dtype, batch, sequences, heads * keys, 1, layout),
        keys(keys) {}

  convscan_attention_state View(bool with_sums) const {
    convscan_attention_state view{};
    const convscan_head_strides a = s.strides(), b = n.strides();
    view.s = s.array.data();
    view.n = with_sums ? n.array.data() : nullptr;
    const int64_t of_s[] = {a.batch, a.time, keys * a.head, a.head, a.channel};
    const int64_t of_n[] = {b.batch, b.time, keys * b.head, b.head};
    std::copy(of_s, of_s + 5, view.s_strides);
    std::copy(of_n, of_n + 4, view.n_strides);
    return view;
  }
};

// convscan_attention and convscan_delta_rule, as far as they have the same fields.
template <class Problem>
Problem Memory(convscan_dtype dtype, const Signal &q, const Signal &k, const Signal &v, const Signal &g, bool per_key,
               int64_t sequences, const int64_t *boundaries) {
  Problem p{};
  p.batch = q.array.batch();
  p.length = q.array.time();
  p.groups = q.heads;
  p.heads = v.heads;
  p.keys = q.channels;
  p.values = v.channels;
  p.sequences = sequences;
  p.boundaries = boundaries;
  p.dtype = dtype;
  p.scale = 0.5;
  p.per_key = per_key;
  p.q = q.array.data();
  p.q_strides = q.strides();
  p.k = k.array.data();
  p.k_strides = k.strides();
  p.v = v.array.data();
  p.v_strides = v.strides();
  p.g = g.array.data();
  p.g_strides = g.strides();
  return p;
}

inline void Fill(Signal &signal, Random &random) { signal.array.FillRandom(random); }

// Decays between nothing and all, some of them exactly so.
inline void FillDecays(Signal &g, Random &random) {
  for (int64_t b = 0; b < g.array.batch(); ++b)
    for (int64_t t = 0; t < g.array.time(); ++t)
      for (int64_t c = 0; c < g.array.channels(); ++c) {
        const int64_t kind = random.Below(8);
        g.array.Set(b, t, c, kind == 0 ? -HUGE_VAL : kind == 1 ? 0.0 : -2 * std::fabs(random.Value()));
      }
}

inline double Tolerance(convscan_dtype dtype) {
  switch (dtype) {
    case CONVSCAN_FLOAT64: return 1e-13;
    case CONVSCAN_BFLOAT16: return 2e-2;
    case CONVSCAN_FLOAT16: return 3e-3;
    default: return 2e-5;
  }
}

inline bool IsNear(const Signal &got, const std::vector<double> &truth, double tolerance) {
  double error = 0, scale = 0.1;
  size_t at = 0;
  for (int64_t b = 0; b < got.array.batch(); ++b)
    for (int64_t t = 0; t < got.array.time(); ++t)
      for (int64_t c = 0; c < got.array.channels(); ++c, ++at) {
        const double difference = std::fabs(got.array.At(b, t, c).real() - truth[at]);
        error = difference <= error ? error : difference;  // NaN stays
        scale = std::max(scale, std::fabs(truth[at]));
      }
  return error <= tolerance * scale;
}

inline std::vector<double> Numbers(const Signal &x) {
  std::vector<double> numbers;
  for (int64_t b = 0; b < x.array.batch(); ++b)
    for (int64_t t = 0; t < x.array.time(); ++t)
      for (int64_t c = 0; c < x.array.channels(); ++c) numbers.push_back(x.array.At(b, t, c).real());
  return numbers;
}

}  // namespace tests
