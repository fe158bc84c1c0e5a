// Linear attention with decay, as Python calls it. An array is its address and its strides; None where it is not given.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <utility>

#include "convscan.h"
#include "python/calls.h"
#include "python/tensors.h"

namespace nb = nanobind;

namespace convscan::python {
namespace {

// With the axis of blocks behind all others.
void *ReadBlocks(const Described &array, convscan_head_strides &strides, int64_t &block_stride) {
  int64_t steps[5];
  void *const address = Read(array, steps);
  strides = {steps[0], steps[1], steps[2], steps[3]};
  block_stride = steps[4];
  return address;
}

convscan_attention_state ReadState(const Described &s, const Described &n) {
  convscan_attention_state state{};
  state.s = Read(s, state.s_strides);
  state.n = Read(n, state.n_strides);
  return state;
}

// What the forward pass and its gradients are both told.
convscan_attention ReadProblem(const std::string &dtype, const nb::tuple &sizes, Address boundaries, double scale,
                               bool per_key, const nb::tuple &inputs, int threads) {
  convscan_attention p{};
  int64_t *const fields[] = {&p.batch, &p.length, &p.groups, &p.heads, &p.keys, &p.values, &p.sequences};
  for (size_t i = 0; i < 7; ++i) *fields[i] = nb::cast<int64_t>(sizes[i]);
  p.boundaries = Pointer<const int64_t>(boundaries);
  p.dtype = ParseDtype(dtype);
  p.scale = scale;
  p.per_key = per_key;
  p.q = Read(inputs[0], p.q_strides);
  p.k = Read(inputs[1], p.k_strides);
  p.v = Read(inputs[2], p.v_strides);
  p.g = Read(inputs[3], p.g_strides);
  p.w = Read(inputs[4], p.w_strides);
  int64_t skip[2];
  p.skip = Read(inputs[5], skip);
  p.skip_head_stride = skip[0];
  p.skip_channel_stride = skip[1];
  p.initial = ReadState(inputs[6], inputs[7]);
  p.threads = threads;
  return p;
}

void Attention(const std::string &dtype, const nb::tuple &sizes, Address boundaries, double scale, bool per_key,
               const nb::tuple &inputs, const nb::tuple &outputs, int threads) {
  convscan_attention p = ReadProblem(dtype, sizes, boundaries, scale, per_key, inputs, threads);
  p.y = Read(outputs[0], p.y_strides);
  p.sums = Read(outputs[1], p.sums_strides);
  p.final = ReadState(outputs[2], outputs[3]);
  convscan_status status;
  {
    const ReleasedGil released;
    status = convscan_attention_chunked(&p);
  }
  Raise(status, "linear attention");
}

void AttentionGradient(const std::string &dtype, const nb::tuple &sizes, Address boundaries, double scale, bool per_key,
                       const nb::tuple &inputs, int64_t block, bool has_sums, const nb::tuple &gradients,
                       const nb::tuple &outputs, int threads) {
  convscan_attention_gradient p{};
  p.forward = ReadProblem(dtype, sizes, boundaries, scale, per_key, inputs, threads);
  p.block = block;
  p.has_sums = has_sums;
  p.dy = Read(gradients[0], p.dy_strides);
  p.dsums = Read(gradients[1], p.dsums_strides);
  p.dfinal = ReadState(gradients[2], gradients[3]);
  p.dq = ReadBlocks(outputs[0], p.dq_strides, p.dq_block_stride);
  p.dk = ReadBlocks(outputs[1], p.dk_strides, p.dk_block_stride);
  p.dv = Read(outputs[2], p.dv_strides);
  p.dg = Read(outputs[3], p.dg_strides);
  p.dw = Read(outputs[4], p.dw_strides);
  p.dinitial = ReadState(outputs[5], outputs[6]);
  convscan_status status;
  {
    const ReleasedGil released;
    status = convscan_attention_gradient_chunked(&p);
  }
  Raise(status, "linear attention backward");
}

// A step, all but its addresses. Its tensors, with the strides of their axes (batch, head, ...):
//   DECAY   v, state, q, k, g, y
//   SSD     x, state, dt, A, B, C, D, z, dt_bias, y
//   MLSTM   v, C, n, m, q, k, i, f, y
//   DELTA   v, state, q, k, g, beta, y
struct AttentionStepCall final : NativeCall {
  convscan_attention_step problem{};

  AttentionStepCall(const std::string &gates, const std::string &dtype, const nb::tuple &sizes, bool per_key,
                    bool softplus, double scale, double eps, const nb::tuple &strides) {
    int64_t *const fields[] = {&problem.batch, &problem.groups, &problem.heads, &problem.keys, &problem.values};
    for (size_t i = 0; i < 5; ++i) *fields[i] = nb::cast<int64_t>(sizes[i]);
    problem.dtype = ParseDtype(dtype);
    problem.per_key = per_key;
    problem.softplus = softplus;
    problem.scale = scale;
    problem.eps = eps;
    ReadInto(problem.v_strides, strides[0]);
    ReadInto(problem.s_strides, strides[1]);
    if (gates == "ssd") {
      problem.gates = CONVSCAN_GATES_SSD;
      std::swap(problem.s_strides[2], problem.s_strides[3]);  // its states have keys behind values
      ReadInto(problem.g_strides, strides[2]);
      ReadInto(problem.rate_stride, strides[3]);
      ReadInto(problem.k_strides, strides[4]);
      ReadInto(problem.q_strides, strides[5]);
      int64_t skip[2];
      ReadInto(skip, strides[6]);
      problem.skip_head_stride = skip[0];
      problem.skip_channel_stride = skip[1];
      ReadInto(problem.z_strides, strides[7]);
      ReadInto(problem.bias_stride, strides[8]);
      ReadInto(problem.y_strides, strides[9]);
    } else if (gates == "mlstm") {
      problem.gates = CONVSCAN_GATES_MLSTM;
      ReadInto(problem.n_strides, strides[2]);
      ReadInto(problem.m_strides, strides[3]);
      ReadInto(problem.q_strides, strides[4]);
      ReadInto(problem.k_strides, strides[5]);
      ReadInto(problem.i_strides, strides[6]);
      ReadInto(problem.g_strides, strides[7]);
      ReadInto(problem.y_strides, strides[8]);
    } else if (gates == "decay") {
      problem.gates = CONVSCAN_GATES_DECAY;
      ReadInto(problem.q_strides, strides[2]);
      ReadInto(problem.k_strides, strides[3]);
      ReadInto(problem.g_strides, strides[4]);
      ReadInto(problem.y_strides, strides[5]);
    } else if (gates == "delta") {
      problem.gates = CONVSCAN_GATES_DELTA;
      ReadInto(problem.q_strides, strides[2]);
      ReadInto(problem.k_strides, strides[3]);
      ReadInto(problem.g_strides, strides[4]);
      ReadInto(problem.i_strides, strides[5]);
      ReadInto(problem.y_strides, strides[6]);
    } else {
      throw nb::value_error(("unknown gates: " + gates).c_str());
    }
  }

  void RunOn(const Address *at) const override {
    convscan_attention_step p = problem;
    p.v = Pointer<const void>(at[0]);
    p.s = Pointer<void>(at[1]);
    switch (p.gates) {
      case CONVSCAN_GATES_SSD:
        p.g = Pointer<const void>(at[2]);
        p.rate = Pointer<const void>(at[3]);
        p.k = Pointer<const void>(at[4]);
        p.q = Pointer<const void>(at[5]);
        p.skip = Pointer<const void>(at[6]);
        p.z = Pointer<const void>(at[7]);
        p.bias = Pointer<const void>(at[8]);
        p.y = Pointer<void>(at[9]);
        break;
      case CONVSCAN_GATES_MLSTM:
        p.n = Pointer<void>(at[2]);
        p.m = Pointer<void>(at[3]);
        p.q = Pointer<const void>(at[4]);
        p.k = Pointer<const void>(at[5]);
        p.i = Pointer<const void>(at[6]);
        p.g = Pointer<const void>(at[7]);
        p.y = Pointer<void>(at[8]);
        break;
      case CONVSCAN_GATES_DECAY:
        p.q = Pointer<const void>(at[2]);
        p.k = Pointer<const void>(at[3]);
        p.g = Pointer<const void>(at[4]);
        p.y = Pointer<void>(at[5]);
        break;
      case CONVSCAN_GATES_DELTA:
        p.q = Pointer<const void>(at[2]);
        p.k = Pointer<const void>(at[3]);
        p.g = Pointer<const void>(at[4]);
        p.i = Pointer<const void>(at[5]);
        p.y = Pointer<void>(at[6]);
        break;
    }
    convscan_status status;
    {
      const ReleasedGil released;
      status = convscan_attention_step_in_place(&p);
    }
    if (status == CONVSCAN_INVALID_ARGUMENT)
      throw nb::value_error("step: a state must be memory that no argument and no other element of it shares; it "
                            "overlaps. Pass a copy of it");
    Raise(status, "step");
  }

  void RunOnTensors(const nb::args &tensors) const {
    Address addresses[10] = {};
    if (tensors.size() > 10) throw nb::type_error("step: too many tensors");
    for (size_t i = 0; i < tensors.size(); ++i) addresses[i] = TensorAddress(tensors[i]);
    RunOn(addresses);
  }

 private:
  static void ReadInto(int64_t (&steps)[2], const nb::handle &from) { Fill(steps, 2, from); }
  static void ReadInto(int64_t (&steps)[3], const nb::handle &from) { Fill(steps, 3, from); }
  static void ReadInto(int64_t (&steps)[4], const nb::handle &from) { Fill(steps, 4, from); }
  static void ReadInto(int64_t &step, const nb::handle &from) { Fill(&step, 1, from); }
  static void ReadInto(convscan_step_strides &strides, const nb::handle &from) {
    int64_t steps[3];
    Fill(steps, 3, from);
    strides = {steps[0], steps[1], steps[2]};
  }
  static void Fill(int64_t *steps, size_t count, const nb::handle &from) {
    const nb::tuple given = nb::cast<nb::tuple>(from);
    for (size_t i = 0; i < count; ++i) steps[i] = i < given.size() ? nb::cast<int64_t>(given[i]) : 0;
  }
};

}  // namespace

void DefineAttention(nb::module_ &m) {
  using namespace nb::literals;
  m.def("attention", &Attention, "dtype"_a, "sizes"_a, "boundaries"_a, "scale"_a, "per_key"_a, "inputs"_a, "outputs"_a,
        "threads"_a = 0);
  m.def("attention_gradient", &AttentionGradient, "dtype"_a, "sizes"_a, "boundaries"_a, "scale"_a, "per_key"_a,
        "inputs"_a, "block"_a, "has_sums"_a, "gradients"_a, "outputs"_a, "threads"_a = 0);
  nb::class_<AttentionStepCall, NativeCall>(m, "AttentionStepCall", "One step in place, all but its addresses.")
      .def(nb::init<const std::string &, const std::string &, const nb::tuple &, bool, bool, double, double,
                    const nb::tuple &>(),
           "gates"_a, "dtype"_a, "sizes"_a, "per_key"_a, "softplus"_a, "scale"_a, "eps"_a, "strides"_a)
      .def("__call__", &AttentionStepCall::RunOnTensors, "tensors"_a);
}

}  // namespace convscan::python
