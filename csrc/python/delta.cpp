// The gated delta rule, as Python calls it.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include "convscan.h"
#include "python/calls.h"
#include "python/tensors.h"

namespace nb = nanobind;

namespace convscan::python {
namespace {

void ReadSizes(const nb::tuple &sizes, convscan_delta_rule &p) {
  int64_t *const fields[] = {&p.batch, &p.length, &p.heads, &p.keys, &p.values, &p.sequences};
  for (size_t i = 0; i < 6; ++i) *fields[i] = nb::cast<int64_t>(sizes[i]);
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

// One step of generation in place, all but its addresses: those of (v, state, q, k, g, beta, y), as steps prepare them.
struct DeltaRuleStepCall final : NativeCall {
  convscan_delta_rule problem{};

  DeltaRuleStepCall(const std::string &dtype, const nb::tuple &sizes, double scale, bool per_key,
                    const nb::tuple &strides) {
    ReadSizes(sizes, problem);
    problem.dtype = ParseDtype(dtype);
    problem.scale = scale;
    problem.per_key = per_key;
    // (address, strides) of no address yet.
    Read(strides[0], problem.v_strides);
    Read(strides[1], problem.initial_strides);
    Read(strides[2], problem.q_strides);
    Read(strides[3], problem.k_strides);
    Read(strides[4], problem.g_strides);
    Read(strides[5], problem.beta_strides);
    Read(strides[6], problem.y_strides);
    for (int axis = 0; axis < 5; ++axis) problem.last_strides[axis] = problem.initial_strides[axis];
  }

  void RunOn(const Address *at) const override {
    convscan_delta_rule p = problem;
    p.v = Pointer<const void>(at[0]);
    p.initial = p.last = Pointer<void>(at[1]);
    p.q = Pointer<const void>(at[2]);
    p.k = Pointer<const void>(at[3]);
    p.g = Pointer<const void>(at[4]);
    p.beta = Pointer<const void>(at[5]);
    p.y = Pointer<void>(at[6]);
    convscan_status status;
    {
      const ReleasedGil released;
      status = convscan_delta_rule_chunked(&p);
    }
    Raise(status, "gated_delta_rule_step");
  }

  void RunOnTensors(nb::handle v, nb::handle state, nb::handle q, nb::handle k, nb::handle g, nb::handle beta,
                    nb::handle y) const {
    const Address at[] = {TensorAddress(v), TensorAddress(state), TensorAddress(q), TensorAddress(k),
                          TensorAddress(g), TensorAddress(beta),  TensorAddress(y)};
    RunOn(at);
  }
};

}  // namespace

void DefineDeltaRule(nb::module_ &m) {
  using namespace nb::literals;
  m.def("delta_rule", &DeltaRule, "dtype"_a, "sizes"_a, "boundaries"_a, "scale"_a, "per_key"_a, "inputs"_a,
        "outputs"_a);
  m.def("delta_rule_gradient", &DeltaRuleGradient, "dtype"_a, "sizes"_a, "boundaries"_a, "scale"_a, "per_key"_a,
        "inputs"_a, "gradients"_a, "outputs"_a);
  nb::class_<DeltaRuleStepCall, NativeCall>(m, "DeltaRuleStepCall", "A step of the gated delta rule, all but its addresses.")
      .def(nb::init<const std::string &, const nb::tuple &, double, bool, const nb::tuple &>(), "dtype"_a, "sizes"_a,
           "scale"_a, "per_key"_a, "strides"_a)
      .def("__call__", &DeltaRuleStepCall::RunOnTensors, "v"_a, "state"_a, "q"_a, "k"_a, "g"_a, "beta"_a, "y"_a);
}

}  // namespace convscan::python
