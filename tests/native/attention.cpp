// Linear attention with decay against a double loop; its gradients by what they owe to linearity; one step in place.
#include "heads.h"

namespace tests {
namespace {

constexpr int kTrials = 120;

}  // namespace

void TestAttention() {
  Random random(11);
  for (int trial = 0; trial < kTrials; ++trial) {
    const convscan_dtype dtype = random.Pick(kDtypes), wide = Arithmetic(dtype);
    const int64_t batch = 1 + random.Below(2), groups = 1 + random.Below(2), heads = groups * (1 + random.Below(6));
    const int64_t keys = random.Pick(kKeys), values = random.Pick(kValues), length = random.Pick(kLengths);
    const bool per_key = random.Below(2), with_sums = random.Below(2), packed = random.Below(2);
    const int64_t sequences = packed ? 3 : 1;
    const int64_t boundaries[] = {0, length / 3, packed ? length / 3 : length, length};
    context = "attention " + std::string(Name(dtype)) + " L=" + std::to_string(length) + " H=" + std::to_string(heads) +
              " K=" + std::to_string(keys) + " V=" + std::to_string(values) + (per_key ? " per key" : "") +
              (with_sums ? " sums" : "") + (packed ? " packed" : "");
    Signal q(dtype, batch, length, groups, keys, random.Pick(kLayouts));
    Signal k(dtype, batch, length, groups, keys, random.Pick(kLayouts));
    Signal v(dtype, batch, length, heads, values, random.Pick(kLayouts));
    Signal g(wide, batch, length, heads, per_key ? keys : 1, random.Pick(kLayouts));
    Signal w(wide, batch, length, heads, 1, random.Pick(kLayouts));
    Signal dy(dtype, batch, length, heads, values, random.Pick(kLayouts));
    Signal dsums(wide, batch, length, heads, 1, random.Pick(kLayouts));
    State initial(wide, batch, sequences, heads, keys, values, random.Pick(kLayouts));
    State dfinal(wide, batch, sequences, heads, keys, values, random.Pick(kLayouts));
    for (Signal *signal : {&q, &k, &v, &w, &dy, &dsums, &initial.s, &initial.n, &dfinal.s, &dfinal.n})
      Fill(*signal, random);
    FillDecays(g, random);
    const Layout layout = random.Pick(kLayouts);
    std::vector<double> first;
    for (int threads = 1; threads <= 3; threads += 2) {
      Signal y(dtype, batch, length, heads, values, layout), sums(wide, batch, length, heads, 1, layout);
      State final(wide, batch, sequences, heads, keys, values, layout);
      for (Signal *out : {&y, &sums, &final.s, &final.n}) out->array.FillPattern();
      auto p = Memory<convscan_attention>(dtype, q, k, v, g, per_key, sequences, packed ? boundaries : nullptr);
      p.w = w.array.data();
      p.w_strides = w.strides();
      p.initial = initial.View(with_sums);
      p.y = y.array.data();
      p.y_strides = y.strides();
      p.sums = with_sums ? sums.array.data() : nullptr;
      p.sums_strides = sums.strides();
      p.final = final.View(with_sums);
      p.threads = threads;
      CHECK(convscan_attention_chunked(&p) == CONVSCAN_OK);
      for (Signal *out : {&y, &final.s}) CHECK(out->array.PatternSurvives());

      // The loop over time.
      std::vector<double> true_y(Numbers(y).size()), true_sums(Numbers(sums).size());
      std::vector<double> true_s = Numbers(initial.s), true_n = Numbers(initial.n);
      const int64_t in_group = heads / groups;
      for (int64_t b = 0; b < batch; ++b)
        for (int64_t s = 0; s < sequences; ++s)
          for (int64_t t = packed ? boundaries[s] : 0; t < (packed ? boundaries[s + 1] : length); ++t)
            for (int64_t h = 0; h < heads; ++h) {
              const int64_t row = (b * length + t) * heads + h;
              for (int64_t i = 0; i < keys; ++i) {
                const double a = std::exp(g.At(b, t, h, per_key ? i : 0)), weight = w.At(b, t, h, 0);
                const double key = weight * k.At(b, t, h / in_group, i), query = 0.5 * q.At(b, t, h / in_group, i);
                const size_t at = static_cast<size_t>(((b * sequences + s) * heads + h) * keys + i);
                true_n[at] = a * true_n[at] + key;
                true_sums[static_cast<size_t>(row)] += query * true_n[at];
                for (int64_t c = 0; c < values; ++c) {
                  double &number = true_s[at * static_cast<size_t>(values) + static_cast<size_t>(c)];
                  number = a * number + key * v.At(b, t, h, c);
                  true_y[static_cast<size_t>(row * values + c)] += query * number;
                }
              }
            }
      CHECK(IsNear(y, true_y, Tolerance(dtype)) && IsNear(final.s, true_s, Tolerance(wide)));
      if (with_sums) CHECK(IsNear(sums, true_sums, Tolerance(wide)) && IsNear(final.n, true_n, Tolerance(wide)));

      // A result is linear in each of q, k with the state, v with the state, w with the state.
      const int64_t block = 2, blocks = (in_group + block - 1) / block;
      Signal dq(wide, batch, length, groups * blocks, keys, layout), dk(wide, batch, length, groups * blocks, keys, layout);
      Signal dv(dtype, batch, length, heads, values, layout), dg(wide, batch, length, heads, per_key ? keys : 1, layout);
      Signal dw(wide, batch, length, heads, 1, layout);
      State dinitial(wide, batch, sequences, heads, keys, values, layout);
      for (Signal *out : {&dq, &dk, &dv, &dg, &dw, &dinitial.s, &dinitial.n}) out->array.FillPattern();
      convscan_attention_gradient d{};
      d.forward = p;
      d.block = block;
      d.dy = dy.array.data();
      d.dy_strides = dy.strides();
      d.has_sums = with_sums;
      d.dsums = with_sums ? dsums.array.data() : nullptr;
      d.dsums_strides = dsums.strides();
      d.dfinal = dfinal.View(with_sums);
      d.dq = dq.array.data();
      d.dk = dk.array.data();
      d.dq_strides = dq.strides();
      d.dk_strides = dk.strides();
      d.dq_block_stride = groups * dq.strides().head;
      d.dk_block_stride = groups * dk.strides().head;
      d.dv = dv.array.data();
      d.dv_strides = dv.strides();
      d.dg = dg.array.data();
      d.dg_strides = dg.strides();
      d.dw = dw.array.data();
      d.dw_strides = dw.strides();
      d.dinitial = dinitial.View(with_sums);
      CHECK(convscan_attention_gradient_chunked(&d) == CONVSCAN_OK);
      for (Signal *out : {&dq, &dk, &dv, &dg, &dw, &dinitial.s}) CHECK(out->array.PatternSurvives());
      double of_y = Product(dy, y), of_final = Product(dfinal.s, final.s), of_initial = Product(dinitial.s, initial.s);
      double scale = Scale(dy, y) + Scale(dfinal.s, final.s) + Scale(dinitial.s, initial.s);
      if (with_sums) {
        of_y += Product(dsums, sums);
        of_final += Product(dfinal.n, final.n);
        of_initial += Product(dinitial.n, initial.n);
        scale += Scale(dsums, sums) + Scale(dfinal.n, final.n) + Scale(dinitial.n, initial.n);
      }
      double of_q = 0, of_k = 0;
      for (int64_t b = 0; b < batch; ++b)
        for (int64_t t = 0; t < length; ++t)
          for (int64_t h = 0; h < groups * blocks; ++h)
            for (int64_t i = 0; i < keys; ++i) {
              of_q += dq.At(b, t, h, i) * q.At(b, t, h % groups, i);
              of_k += dk.At(b, t, h, i) * k.At(b, t, h % groups, i);
            }
      const double allowed = 4 * Tolerance(dtype) * (scale + 1);
      CHECK(std::fabs(of_q - of_y) <= allowed);
      CHECK(std::fabs(of_k + of_initial - of_y - of_final) <= allowed);
      CHECK(std::fabs(Product(dw, w) + of_initial - of_y - of_final) <= allowed);
      if (!with_sums) CHECK(std::fabs(Product(dv, v) + of_initial - of_y - of_final) <= allowed);

      std::vector<double> all;
      for (const Signal *out : {&y, &final.s, &dq, &dk, &dv, &dg, &dw, &dinitial.s})
        for (double number : Numbers(*out)) all.push_back(number);
      if (threads == 1) first = all;
      else CHECK(all == first);
    }
  }
  TestAttentionStep();
}

void TestAttentionStep() {
  Random random(12);
  for (int trial = 0; trial < kTrials; ++trial) {
    const convscan_dtype dtype = random.Pick(kDtypes), wide = Arithmetic(dtype);
    const int64_t batch = 1 + random.Below(3), groups = 1 + random.Below(2), heads = groups * (1 + random.Below(3));
    const int64_t keys = random.Pick(kKeys), values = random.Pick(kValues), in_group = heads / groups;
    const bool per_key = random.Below(2), corrects = random.Below(2);
    context = std::string(corrects ? "delta rule step " : "attention step ") + Name(dtype) +
              " K=" + std::to_string(keys) + " V=" + std::to_string(values);
    Signal q(dtype, batch, 1, groups, keys, random.Pick(kLayouts)), k(dtype, batch, 1, groups, keys, random.Pick(kLayouts));
    Signal v(dtype, batch, 1, heads, values, random.Pick(kLayouts)), y(dtype, batch, 1, heads, values, Layout::kPaddedRows);
    Signal g(wide, batch, 1, heads, per_key ? keys : 1, random.Pick(kLayouts));
    Signal beta(wide, batch, 1, heads, 1, random.Pick(kLayouts));
    // Consecutive values, consecutive keys, or neither.
    Signal s(wide, batch, heads * keys, 1, values, random.Pick(kLayouts));
    for (Signal *signal : {&q, &k, &v, &beta, &s}) Fill(*signal, random);
    FillDecays(g, random);
    y.array.FillPattern();
    std::vector<double> true_s = Numbers(s), true_y(Numbers(y).size());
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t h = 0; h < heads; ++h)
        for (int64_t c = 0; c < values; ++c) {
          const auto at = [&](int64_t i) -> double & {
            return true_s[static_cast<size_t>(((b * heads + h) * keys + i) * values + c)];
          };
          double write = v.At(b, 0, h, c);
          for (int64_t i = 0; i < keys; ++i) at(i) *= std::exp(g.At(b, 0, h, per_key ? i : 0));
          if (corrects) {
            for (int64_t i = 0; i < keys; ++i) write -= at(i) * k.At(b, 0, h / in_group, i);
            write *= beta.At(b, 0, h, 0);
          }
          for (int64_t i = 0; i < keys; ++i) {
            at(i) += k.At(b, 0, h / in_group, i) * write;
            true_y[static_cast<size_t>((b * heads + h) * values + c)] += 0.5 * q.At(b, 0, h / in_group, i) * at(i);
          }
        }
    convscan_attention_step p{};
    p.batch = batch;
    p.groups = groups;
    p.heads = heads;
    p.keys = keys;
    p.values = values;
    p.dtype = dtype;
    p.gates = corrects ? CONVSCAN_GATES_DELTA : CONVSCAN_GATES_DECAY;
    p.i = corrects ? beta.array.data() : nullptr;
    p.i_strides = beta.step();
    p.scale = 0.5;
    p.per_key = per_key;
    p.s = s.array.data();
    const convscan_strides strides = s.array.strides();
    const int64_t of_s[] = {strides.batch, keys * strides.time, strides.time, strides.channel};
    std::copy(of_s, of_s + 4, p.s_strides);
    p.q = q.array.data();
    p.q_strides = q.step();
    p.k = k.array.data();
    p.k_strides = k.step();
    p.v = v.array.data();
    p.v_strides = v.step();
    p.g = g.array.data();
    p.g_strides = g.step();
    p.y = y.array.data();
    p.y_strides = y.step();
    p.threads = 1 + static_cast<int>(random.Below(2));
    CHECK(convscan_attention_step_in_place(&p) == CONVSCAN_OK);
    CHECK(y.array.PatternSurvives());
    CHECK(IsNear(y, true_y, Tolerance(dtype)) && IsNear(s, true_s, Tolerance(wide)));
    p.s_strides[3] = 0;
    CHECK(values == 1 || convscan_attention_step_in_place(&p) == CONVSCAN_INVALID_ARGUMENT);
    p.s = nullptr;
    CHECK(convscan_attention_step_in_place(&p) == CONVSCAN_INVALID_ARGUMENT);
  }
}

}  // namespace tests
