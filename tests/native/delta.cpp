// The gated delta rule against the loop over time; its gradients by what they owe to linearity.
#include "heads.h"

namespace tests {
namespace {

constexpr int kTrials = 120;

// Keys of length at most 1, so that the memory does not grow.
void Shorten(Signal &k) {
  for (int64_t b = 0; b < k.array.batch(); ++b)
    for (int64_t t = 0; t < k.array.time(); ++t)
      for (int64_t h = 0; h < k.heads; ++h)
        for (int64_t i = 0; i < k.channels; ++i)
          k.Set(b, t, h, i, k.At(b, t, h, i) / std::ceil(std::sqrt(static_cast<double>(k.channels))));
}

}  // namespace

void TestDeltaRule() {
  Random random(13);
  for (int trial = 0; trial < kTrials; ++trial) {
    const convscan_dtype dtype = random.Pick(kDtypes), wide = Arithmetic(dtype);
    const int64_t batch = 1 + random.Below(2), groups = 1 + random.Below(2), heads = groups * (1 + random.Below(3));
    const int64_t keys = random.Pick(kKeys), values = random.Pick(kValues), length = random.Pick(kLengths);
    const bool per_key = random.Below(2), packed = random.Below(2);
    const int64_t sequences = packed ? 3 : 1, in_group = heads / groups;
    const int64_t boundaries[] = {0, length / 3, length / 3, length};
    context = "delta rule " + std::string(Name(dtype)) + " L=" + std::to_string(length) + " H=" + std::to_string(heads) +
              " K=" + std::to_string(keys) + " V=" + std::to_string(values) + (per_key ? " per key" : "") +
              (packed ? " packed" : "");
    Signal q(dtype, batch, length, groups, keys, random.Pick(kLayouts));
    Signal k(dtype, batch, length, groups, keys, random.Pick(kLayouts));
    Signal v(dtype, batch, length, heads, values, random.Pick(kLayouts));
    Signal g(wide, batch, length, heads, per_key ? keys : 1, random.Pick(kLayouts));
    Signal beta(wide, batch, length, heads, 1, random.Pick(kLayouts));
    Signal dy(dtype, batch, length, heads, values, random.Pick(kLayouts));
    State initial(wide, batch, sequences, heads, keys, values, random.Pick(kLayouts));
    State dlast(wide, batch, sequences, heads, keys, values, random.Pick(kLayouts));
    for (Signal *signal : {&q, &k, &v, &beta, &dy, &initial.s, &dlast.s}) Fill(*signal, random);
    Shorten(k);
    FillDecays(g, random);
    const Layout layout = random.Pick(kLayouts);
    std::vector<double> first;
    for (int threads = 1; threads <= 3; threads += 2) {
      Signal y(dtype, batch, length, heads, values, layout);
      State last(wide, batch, sequences, heads, keys, values, layout);
      for (Signal *out : {&y, &last.s}) out->array.FillPattern();
      auto p = Memory<convscan_delta_rule>(dtype, q, k, v, g, per_key, sequences, packed ? boundaries : nullptr);
      p.beta = beta.array.data();
      p.beta_strides = beta.strides();
      const auto state = [](const State &of, int64_t(&strides)[5]) {
        const convscan_attention_state view = of.View(false);
        std::copy(view.s_strides, view.s_strides + 5, strides);
        return view.s;
      };
      p.initial = state(initial, p.initial_strides);
      p.y = y.array.data();
      p.y_strides = y.strides();
      p.last = state(last, p.last_strides);
      p.threads = threads;
      CHECK(convscan_delta_rule_chunked(&p) == CONVSCAN_OK);
      for (Signal *out : {&y, &last.s}) CHECK(out->array.PatternSurvives());

      // The loop over time.
      std::vector<double> true_y(Numbers(y).size()), true_s = Numbers(initial.s);
      for (int64_t b = 0; b < batch; ++b)
        for (int64_t s = 0; s < sequences; ++s)
          for (int64_t t = packed ? boundaries[s] : 0; t < (packed ? boundaries[s + 1] : length); ++t)
            for (int64_t h = 0; h < heads; ++h)
              for (int64_t c = 0; c < values; ++c) {
                const auto at = [&](int64_t i) -> double & {
                  return true_s[static_cast<size_t>((((b * sequences + s) * heads + h) * keys + i) * values + c)];
                };
                double write = v.At(b, t, h, c);
                for (int64_t i = 0; i < keys; ++i) {
                  at(i) *= std::exp(g.At(b, t, h, per_key ? i : 0));
                  write -= at(i) * k.At(b, t, h / in_group, i);
                }
                write *= beta.At(b, t, h, 0);
                double &sum = true_y[static_cast<size_t>(((b * length + t) * heads + h) * values + c)];
                for (int64_t i = 0; i < keys; ++i) {
                  at(i) += k.At(b, t, h / in_group, i) * write;
                  sum += 0.5 * q.At(b, t, h / in_group, i) * at(i);
                }
              }
      CHECK(IsNear(y, true_y, Tolerance(dtype)) && IsNear(last.s, true_s, Tolerance(wide)));

      // A result is linear in v with the state, and outputs in q.
      Signal dq(wide, batch, length, heads, keys, layout), dk(wide, batch, length, heads, keys, layout);
      Signal dv(dtype, batch, length, heads, values, layout), dg(wide, batch, length, heads, per_key ? keys : 1, layout);
      Signal dbeta(wide, batch, length, heads, 1, layout);
      State dinitial(wide, batch, sequences, heads, keys, values, layout);
      for (Signal *out : {&dq, &dk, &dv, &dg, &dbeta, &dinitial.s}) out->array.FillPattern();
      convscan_delta_rule_gradient d{};
      d.forward = p;
      d.dy = dy.array.data();
      d.dy_strides = dy.strides();
      d.dlast = state(dlast, d.dlast_strides);
      d.dq = dq.array.data();
      d.dq_strides = dq.strides();
      d.dk = dk.array.data();
      d.dk_strides = dk.strides();
      d.dv = dv.array.data();
      d.dv_strides = dv.strides();
      d.dg = dg.array.data();
      d.dg_strides = dg.strides();
      d.dbeta = dbeta.array.data();
      d.dbeta_strides = dbeta.strides();
      d.dinitial = state(dinitial, d.dinitial_strides);
      CHECK(convscan_delta_rule_gradient_chunked(&d) == CONVSCAN_OK);
      for (Signal *out : {&dq, &dk, &dv, &dg, &dbeta, &dinitial.s}) CHECK(out->array.PatternSurvives());
      const double of_y = Product(dy, y), of_last = Product(dlast.s, last.s), of_initial = Product(dinitial.s, initial.s);
      const double allowed =
          4 * Tolerance(dtype) * (Scale(dy, y) + Scale(dlast.s, last.s) + Scale(dinitial.s, initial.s) + 1);
      double of_q = 0;
      for (int64_t b = 0; b < batch; ++b)
        for (int64_t t = 0; t < length; ++t)
          for (int64_t h = 0; h < heads; ++h)
            for (int64_t i = 0; i < keys; ++i) of_q += dq.At(b, t, h, i) * q.At(b, t, h / in_group, i);
      CHECK(std::fabs(of_q - of_y) <= allowed);
      CHECK(std::fabs(Product(dv, v) + of_initial - of_y - of_last) <= allowed);

      std::vector<double> all;
      for (const Signal *out : {&y, &last.s, &dq, &dk, &dv, &dg, &dbeta, &dinitial.s})
        for (double number : Numbers(*out)) all.push_back(number);
      if (threads == 1) first = all;
      else CHECK(all == first);
      p.groups = heads + 1;
      CHECK(convscan_delta_rule_chunked(&p) == CONVSCAN_INVALID_ARGUMENT);
    }
  }
}

}  // namespace tests
