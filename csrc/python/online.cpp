// Convolutions whose input comes a few samples at a time, as Python sees them.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <tuple>

#include "python/calls.h"
#include "python/tensors.h"

namespace nb = nanobind;

namespace convscan::python {
namespace {

using Triple = std::tuple<int64_t, int64_t, int64_t>;

convscan_online_schedule ParseSchedule(const std::string &name) {
  if (name == "growing") return CONVSCAN_ONLINE_GROWING;
  if (name == "spread") return CONVSCAN_ONLINE_SPREAD;
  if (name == "uniform") return CONVSCAN_ONLINE_UNIFORM;
  throw nb::value_error(("unknown schedule: " + name).c_str());
}

// Tensors come as (x, y). Bound to filter, state and clock, which must outlive it: a step looks at one tensor only.
struct OnlineCall final : NativeCall {
  convscan_online problem{};

  OnlineCall(const std::string &schedule, const std::string &dtype, int64_t batch, int64_t length, int64_t channels,
             int64_t taps, bool shares_filter, int64_t block, int64_t max_rewind, const Triple &x_strides,
             const Triple &y_strides) {
    problem.schedule = ParseSchedule(schedule);
    problem.dtype = ParseDtype(dtype);
    problem.batch = batch;
    problem.length = length;
    problem.channels = channels;
    problem.taps = taps;
    problem.shares_filter = shares_filter;
    problem.block = block;
    problem.max_rewind = max_rewind;
    std::tie(problem.x_strides.batch, problem.x_strides.time, problem.x_strides.channel) = x_strides;
    std::tie(problem.y_strides.batch, problem.y_strides.time, problem.y_strides.channel) = y_strides;
  }

  void Bind(nb::handle filter, nb::handle state, nb::handle clock) {
    problem.filter = Pointer<void>(TensorAddress(filter));
    problem.state = Pointer<void>(TensorAddress(state));
    problem.clock = Pointer<int64_t>(TensorAddress(clock));
  }

  // Runs without the interpreter.
  template <class Function>
  static void Run(const Function &function) {
    convscan_status status;
    {
      const ReleasedGil released;
      status = function();
    }
    Raise(status, "ConvStream");
  }

  void RunOn(const Address *at) const override {
    convscan_online p = problem;
    p.x = Pointer<const void>(at[0]);
    p.y = Pointer<void>(at[1]);
    Run([&] { return convscan_online_extend(&p); });
  }

  // y is None where no outputs are asked for.
  void Extend(nb::handle x, nb::handle y) const {
    const Address at[] = {TensorAddress(x), TensorAddress(y)};
    RunOn(at);
  }

  void Rewind(int64_t steps) const {
    Run([&] { return convscan_online_rewind(&problem, steps); });
  }

  void Prepare(nb::handle h, int64_t tap_stride, int64_t channel_stride) const {
    const void *const taps = Pointer<const void>(TensorAddress(h));
    Run([&] { return convscan_online_prepare(&problem, taps, tap_stride, channel_stride); });
  }

  // Elements of filter, state and clock, lanes, rows of history.
  std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t> Sizes() const {
    convscan_online_sizes sizes;
    Raise(convscan_online_measure(&problem, &sizes), "ConvStream");
    return {sizes.filter, sizes.state, sizes.clock, sizes.lanes, sizes.history};
  }
};

}  // namespace

void DefineOnline(nb::module_ &m) {
  using namespace nb::literals;
  nb::class_<OnlineCall, NativeCall>(m, "OnlineCall", "Samples of a convolution that goes on, all but the addresses.")
      .def(nb::init<const std::string &, const std::string &, int64_t, int64_t, int64_t, int64_t, bool, int64_t,
                    int64_t, const Triple &, const Triple &>(),
           "schedule"_a, "dtype"_a, "batch"_a, "length"_a, "channels"_a, "taps"_a, "shares_filter"_a, "block"_a,
           "max_rewind"_a, "x_strides"_a = Triple{0, 0, 0}, "y_strides"_a = Triple{0, 0, 0})
      .def("bind", &OnlineCall::Bind, "filter"_a, "state"_a.none(), "clock"_a.none())
      .def("__call__", &OnlineCall::Extend, "x"_a, "y"_a.none())
      .def("rewind", &OnlineCall::Rewind, "steps"_a)
      .def("prepare", &OnlineCall::Prepare, "h"_a, "tap_stride"_a, "channel_stride"_a)
      .def("sizes", &OnlineCall::Sizes);
}

}  // namespace convscan::python
