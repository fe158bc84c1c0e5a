// The selective scan as a call object, which holds everything of a problem but its addresses.
#include "python/selective.h"

#include <nanobind/stl/array.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <array>
#include <tuple>

#include "python/calls.h"
#include "python/tensors.h"

namespace nb = nanobind;

namespace convscan::python {
namespace {

using Triple = std::tuple<int64_t, int64_t, int64_t>;
using Pair = std::tuple<int64_t, int64_t>;
using Quadruple = std::tuple<int64_t, int64_t, int64_t, int64_t>;
using Sizes = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t>;

convscan_strides Strides(const Triple &s) { return {std::get<0>(s), std::get<1>(s), std::get<2>(s)}; }
// Strides (batch, channel, state, sequence).
convscan_states States(const Quadruple &s) {
  return {nullptr, std::get<0>(s), std::get<1>(s), std::get<2>(s), std::get<3>(s)};
}
convscan_projection Projection(const Quadruple &s, bool is_constant) {
  return {nullptr, is_constant, std::get<0>(s), std::get<1>(s), std::get<2>(s), std::get<3>(s)};
}

struct SelectiveCall final : NativeCall {
  bool over_states, in_place;
  convscan_selective problem{};

  SelectiveCall(const std::string &name, const std::string &dtype, const Sizes &sizes, bool is_complex, bool softplus,
                const Triple &u, const Triple &delta, const Pair &a, const Quadruple &b, bool b_is_constant,
                const Quadruple &c, bool c_is_constant, int64_t d, const Triple &z, int64_t delta_bias,
                const Quadruple &initial_state, const Triple &y, const Quadruple &final_state, bool in_place)
      : over_states(name == "over_states"), in_place(in_place) {
    if (!over_states && name != "over_channels") throw nb::value_error(("unknown kernel: " + name).c_str());
    std::tie(problem.batch, problem.length, problem.channels, problem.states, problem.groups,
             problem.sequences) = sizes;
    problem.dtype = ParseDtype(dtype);
    problem.is_complex = is_complex;
    problem.softplus = softplus;
    problem.u_strides = Strides(u);
    problem.delta_strides = Strides(delta);
    problem.a = States({0, std::get<0>(a), std::get<1>(a), 0});
    problem.b = Projection(b, b_is_constant);
    problem.c = Projection(c, c_is_constant);
    problem.d_stride = d;
    problem.z_strides = Strides(z);
    problem.delta_bias_stride = delta_bias;
    problem.initial_state = States(initial_state);
    problem.y_strides = Strides(y);
    problem.final_state = States(final_state);
  }

  // Addresses of u, delta, A, B, C, D, z, delta_bias, initial_state, boundaries, final_state, checkpoints, y. A state that
  // is overwritten is given once, as the final one.
  static constexpr size_t kAddresses = 13;

  convscan_selective Bind(const Address *at, int threads) const {
    convscan_selective p = problem;
    p.u = Pointer<const void>(at[0]);
    p.delta = Pointer<const void>(at[1]);
    p.a.data = Pointer<void>(at[2]);
    p.b.data = Pointer<const void>(at[3]);
    p.c.data = Pointer<const void>(at[4]);
    p.d = Pointer<const void>(at[5]);
    p.z = Pointer<const void>(at[6]);
    p.delta_bias = Pointer<const void>(at[7]);
    p.initial_state.data = Pointer<void>(at[in_place ? 10 : 8]);
    p.boundaries = Pointer<const int64_t>(at[9]);
    p.final_state.data = Pointer<void>(at[10]);
    p.checkpoints = Pointer<void>(at[11]);
    p.y = Pointer<void>(at[12]);
    p.threads = threads;
    return p;
  }

  void Run(const Address *at) const {
    const convscan_selective p = Bind(at, 0);
    convscan_status status;
    {
      const ReleasedGil released;
      status = over_states ? convscan_selective_over_states(&p) : convscan_selective_over_channels(&p);
    }
    Raise(status, "selective_scan");
  }

  void RunOn(const Address *at) const override { Run(at); }

  void RunOnTensors(nb::args tensors) const {
    if (tensors.size() != kAddresses) throw nb::type_error("SelectiveCall: expected 13 tensors or None");
    std::array<Address, kAddresses> at;
    for (size_t i = 0; i < kAddresses; ++i) at[i] = TensorAddress(tensors[i]);
    Run(at.data());
  }

  void RunAt(const std::array<Address, kAddresses> &at) const { Run(at.data()); }
};

struct SelectiveGradientCall {
  SelectiveCall forward;
  convscan_selective_gradient problem{};

  SelectiveGradientCall(const SelectiveCall &forward, const Triple &dy, const Quadruple &dfinal_state, const Triple &du,
                        const Triple &ddelta, const Triple &dz, int64_t shard_channels)
      : forward(forward) {
    problem.dy_strides = Strides(dy);
    problem.dfinal_state = States(dfinal_state);
    problem.du_strides = Strides(du);
    problem.ddelta_strides = Strides(ddelta);
    problem.dz_strides = Strides(dz);
    problem.shard_channels = shard_channels;
  }

  // Those of the forward call, then dy, dfinal_state, and the gradients of u, delta, A, B, C, D, z, delta_bias,
  // initial_state.
  static constexpr size_t kAddresses = SelectiveCall::kAddresses + 11;

  void Run(nb::args tensors) const {
    if (tensors.size() != kAddresses) throw nb::type_error("SelectiveGradientCall: expected 24 tensors or None");
    std::array<Address, kAddresses> addresses;
    for (size_t i = 0; i < kAddresses; ++i) addresses[i] = TensorAddress(tensors[i]);
    const Address *const at = addresses.data() + SelectiveCall::kAddresses;
    convscan_selective_gradient p = problem;
    p.forward = forward.Bind(addresses.data(), 0);
    p.dy = Pointer<const void>(at[0]);
    p.dfinal_state.data = Pointer<void>(at[1]);
    p.du = Pointer<void>(at[2]);
    p.ddelta = Pointer<void>(at[3]);
    p.da = Pointer<void>(at[4]);
    p.db = Pointer<void>(at[5]);
    p.dc = Pointer<void>(at[6]);
    p.dd = Pointer<void>(at[7]);
    p.dz = Pointer<void>(at[8]);
    p.ddelta_bias = Pointer<void>(at[9]);
    p.dinitial_state = Pointer<void>(at[10]);
    convscan_status status;
    {
      const ReleasedGil released;
      status = convscan_selective_gradient_over_channels(&p);
    }
    Raise(status, "selective_scan backward");
  }
};

}  // namespace

void DefineSelectiveCalls(nb::module_ &m) {
  using namespace nb::literals;
  nb::class_<SelectiveCall, NativeCall>(m, "SelectiveCall", "A selective scan, all but its addresses.")
      .def(nb::init<const std::string &, const std::string &, const Sizes &, bool, bool, const Triple &, const Triple &,
                    const Pair &, const Quadruple &, bool, const Quadruple &, bool, int64_t, const Triple &, int64_t,
                    const Quadruple &, const Triple &, const Quadruple &, bool>(),
           "kernel"_a, "dtype"_a, "sizes"_a, "is_complex"_a, "softplus"_a, "u"_a, "delta"_a, "a"_a, "b"_a,
           "b_is_constant"_a, "c"_a, "c_is_constant"_a, "d"_a, "z"_a, "delta_bias"_a, "initial_state"_a, "y"_a,
           "final_state"_a, "in_place"_a)
      .def("run_at", &SelectiveCall::RunAt, "addresses"_a)
      .def("__call__", &SelectiveCall::RunOnTensors, "tensors"_a);
  nb::class_<SelectiveGradientCall>(m, "SelectiveGradientCall", "The gradients of a selective scan.")
      .def(nb::init<const SelectiveCall &, const Triple &, const Quadruple &, const Triple &, const Triple &,
                    const Triple &, int64_t>(),
           "forward"_a, "dy"_a, "dfinal_state"_a, "du"_a, "ddelta"_a, "dz"_a, "shard_channels"_a)
      .def("__call__", &SelectiveGradientCall::Run, "tensors"_a);
}

}  // namespace convscan::python
