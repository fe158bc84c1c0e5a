// The gated delta rule, as Python calls it.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include "convscan.h"
#include "python/calls.h"

namespace nb = nanobind;

namespace convscan::python {
namespace {

void ReadSizes(const nb::tuple &sizes, convscan_delta_rule &p) {
  int64_t *const fields[] = {&p.batch, &p.length, &p.groups, &p.heads, &p.keys, &p.values, &p.sequences};
  for (size_t i = 0; i < 7; ++i) *fields[i] = nb::cast<int64_t>(sizes[i]);
}

convscan_delta_rule ReadProblem(const std::string &dtype, const nb::tuple &sizes, Address boundaries, double scale,
                                bool per_key, const nb::tuple &inputs) {
  convscan_delta_rule p{};
  ReadSizes(sizes, p);
  p.boundaries = Pointer<const int64_t>(boundaries);
  p.dtype = ParseDtype(dtype);
  p.scale = scale;
  p.per_key = per_key;
  p.q = Read(inputs[0], p.q_strides);
  p.k = Read(inputs[1], p.k_strides);
  p.v = Read(inputs[2], p.v_strides);
  p.g = Read(inputs[3], p.g_strides);
  p.beta = Read(inputs[4], p.beta_strides);
  p.initial = Read(inputs[5], p.initial_strides);
  return p;
}

void DeltaRule(const std::string &dtype, const nb::tuple &sizes, Address boundaries, double scale, bool per_key,
               const nb::tuple &inputs, const nb::tuple &outputs) {
  convscan_delta_rule p = ReadProblem(dtype, sizes, boundaries, scale, per_key, inputs);
  p.y = Read(outputs[0], p.y_strides);
  p.last = Read(outputs[1], p.last_strides);
  convscan_status status;
  {
    const ReleasedGil released;
    status = convscan_delta_rule_chunked(&p);
  }
  Raise(status, "gated_delta_rule");
}

void DeltaRuleGradient(const std::string &dtype, const nb::tuple &sizes, Address boundaries, double scale, bool per_key,
                       const nb::tuple &inputs, const nb::tuple &gradients, const nb::tuple &outputs) {
  convscan_delta_rule_gradient p{};
  p.forward = ReadProblem(dtype, sizes, boundaries, scale, per_key, inputs);
  p.dy = Read(gradients[0], p.dy_strides);
  p.dlast = Read(gradients[1], p.dlast_strides);
  p.dq = Read(outputs[0], p.dq_strides);
  p.dk = Read(outputs[1], p.dk_strides);
  p.dv = Read(outputs[2], p.dv_strides);
  p.dg = Read(outputs[3], p.dg_strides);
  p.dbeta = Read(outputs[4], p.dbeta_strides);
  p.dinitial = Read(outputs[5], p.dinitial_strides);
  convscan_status status;
  {
    const ReleasedGil released;
    status = convscan_delta_rule_gradient_chunked(&p);
  }
  Raise(status, "gated_delta_rule backward");
}

}  // namespace

void DefineDeltaRule(nb::module_ &m) {
  using namespace nb::literals;
  m.def("delta_rule", &DeltaRule, "dtype"_a, "sizes"_a, "boundaries"_a, "scale"_a, "per_key"_a, "inputs"_a,
        "outputs"_a);
  m.def("delta_rule_gradient", &DeltaRuleGradient, "dtype"_a, "sizes"_a, "boundaries"_a, "scale"_a, "per_key"_a,
        "inputs"_a, "gradients"_a, "outputs"_a);
}

}  // namespace convscan::python
