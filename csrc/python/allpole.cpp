// The call of all-pole filters.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <string>
#include <tuple>

#include "convscan.h"
#include "python/calls.h"
#include "python/tensors.h"

namespace nb = nanobind;

namespace convscan::python {
namespace {

using Triple = std::tuple<int64_t, int64_t, int64_t>;

convscan_strides Strides(const Triple &t) { return {std::get<0>(t), std::get<1>(t), std::get<2>(t)}; }

struct AllpoleCall final : NativeCall {
  convscan_allpole problem{};

  AllpoleCall(const std::string &dtype, int64_t batch, int64_t length, int64_t channels, int64_t order, bool transposed,
              const Triple &x_strides, const Triple &a_strides, int64_t a_order_stride, const Triple &state_strides,
              const Triple &y_strides) {
    problem.batch = batch;
    problem.length = length;
    problem.channels = channels;
    problem.order = order;
    problem.dtype = ParseDtype(dtype);
    problem.transposed = transposed;
    problem.x_strides = Strides(x_strides);
    problem.a_strides = Strides(a_strides);
    problem.a_order_stride = a_order_stride;
    problem.state_strides = Strides(state_strides);
    problem.y_strides = Strides(y_strides);
  }

  void Run(Address x, Address a, Address state, Address y, int threads) const {
    convscan_allpole p = problem;
    p.x = Pointer<const void>(x);
    p.a = Pointer<const void>(a);
    p.state = Pointer<const void>(state);
    p.y = Pointer<void>(y);
    p.threads = threads;
    convscan_status status;
    {
      const ReleasedGil released;
      status = convscan_allpole_filter(&p);
    }
    Raise(status, "allpole_filter");
  }

  void RunOn(const Address *at) const override { Run(at[0], at[1], at[2], at[3], 0); }

  void RunOnTensors(nb::handle x, nb::handle a, nb::handle state, nb::handle y) const {
    Run(TensorAddress(x), TensorAddress(a), TensorAddress(state), TensorAddress(y), 0);
  }
};

}  // namespace

void DefineAllpole(nb::module_ &m) {
  using namespace nb::literals;
  nb::class_<AllpoleCall, NativeCall>(m, "AllpoleCall", "An all-pole filter, all but its addresses.")
      .def(nb::init<const std::string &, int64_t, int64_t, int64_t, int64_t, bool, const Triple &, const Triple &,
                    int64_t, const Triple &, const Triple &>(),
           "dtype"_a, "batch"_a, "length"_a, "channels"_a, "order"_a, "transposed"_a, "x_strides"_a, "a_strides"_a,
           "a_order_stride"_a, "state_strides"_a, "y_strides"_a)
      .def("__call__", &AllpoleCall::Run, "x"_a, "a"_a, "state"_a, "y"_a, "threads"_a = 0)
      .def("__call__", &AllpoleCall::RunOnTensors, "x"_a, "a"_a, "state"_a.none(), "y"_a);
}

}  // namespace convscan::python
