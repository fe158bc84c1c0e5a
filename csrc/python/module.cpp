// The only code that knows Python. A call object holds everything of a problem but its addresses, so that running it
// passes a few integers; PyTorch is not needed to build this.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <pthread.h>

#include <string>
#include <tuple>

#include "convscan.h"
#include "python/calls.h"
#include "python/selective.h"
#include "python/tensors.h"

namespace nb = nanobind;

namespace {

using convscan::python::Address;
using convscan::python::NativeCall;
using convscan::python::ParseDtype;
using convscan::python::Pointer;
using convscan::python::Raise;
using convscan::python::ReleasedGil;
using convscan::python::TensorAddress;

convscan_activation ParseActivation(const std::string &name) {
  if (name == "identity") return CONVSCAN_IDENTITY;
  if (name == "silu") return CONVSCAN_SILU;
  if (name == "gelu") return CONVSCAN_GELU;
  throw nb::value_error(("unknown activation: " + name).c_str());
}

using Triple = std::tuple<int64_t, int64_t, int64_t>;
using Pair = std::tuple<int64_t, int64_t>;

using Quadruple = std::tuple<int64_t, int64_t, int64_t, int64_t>;  // batch, sequence, time, channel

convscan_strides Strides(const Triple &t) { return {std::get<0>(t), std::get<1>(t), std::get<2>(t)}; }

template <class Problem>
void SetState(Problem &problem, const Quadruple &strides) {
  convscan_strides &s = problem.state_strides;
  std::tie(s.batch, problem.state_sequence_stride, s.time, s.channel) = strides;
}

convscan_spectrum_storage ParseStorage(bool is_bfloat16) {
  return is_bfloat16 ? CONVSCAN_SPECTRUM_BFLOAT16 : CONVSCAN_SPECTRUM_FULL;
}

// Of the kernels fft_kept and fft_sparse, h is the address of the kept spectra; pattern_offset is the number of bytes from
// there to the pattern.
struct ConvCall final : NativeCall {
  enum class Kernel { direct, toeplitz, fft, fft_kept, fft_sparse, recurrence } kernel;
  convscan_conv problem{};
  int64_t transform_length;
  convscan_spectrum_storage storage;
  int64_t pattern_offset;

  ConvCall(const std::string &name, const std::string &dtype, int64_t batch, int64_t length, int64_t channels,
           int64_t taps, const Triple &x_strides, const Triple &h_strides, const Triple &y_strides,
           const Pair &bias_strides, const Quadruple &state_strides, const Triple &pre_gate_strides,
           const Triple &post_gate_strides, int64_t filter_group, int64_t origin, const std::string &activation,
           int64_t transform_length, bool bfloat16_spectra, int64_t pattern_offset)
      : transform_length(transform_length), storage(ParseStorage(bfloat16_spectra)), pattern_offset(pattern_offset) {
    if (name == "direct") kernel = Kernel::direct;
    else if (name == "toeplitz") kernel = Kernel::toeplitz;
    else if (name == "fft") kernel = Kernel::fft;
    else if (name == "fft_kept") kernel = Kernel::fft_kept;
    else if (name == "fft_sparse") kernel = Kernel::fft_sparse;
    else if (name == "recurrence") kernel = Kernel::recurrence;
    else throw nb::value_error(("unknown kernel: " + name).c_str());
    problem.batch = batch;
    problem.length = length;
    problem.channels = channels;
    problem.taps = taps;
    problem.origin = origin;
    problem.dtype = ParseDtype(dtype);
    problem.activation = ParseActivation(activation);
    problem.x_strides = Strides(x_strides);
    std::tie(problem.h_batch_stride, problem.h_tap_stride, problem.h_channel_stride) = h_strides;
    problem.filter_group = filter_group;
    problem.y_strides = Strides(y_strides);
    std::tie(problem.bias_batch_stride, problem.bias_stride) = bias_strides;
    SetState(problem, state_strides);
    problem.pre_gate_strides = Strides(pre_gate_strides);
    problem.post_gate_strides = Strides(post_gate_strides);
  }

  void Run(Address x, Address h, Address bias, Address state, Address pre_gate, Address post_gate, Address y,
           int threads, Address boundaries, int64_t sequences) const {
    convscan_conv p = problem;
    p.x = Pointer<const void>(x);
    p.h = Pointer<const void>(h);
    p.bias = Pointer<const void>(bias);
    p.state = Pointer<const void>(state);
    p.pre_gate = Pointer<const void>(pre_gate);
    p.post_gate = Pointer<const void>(post_gate);
    p.y = Pointer<void>(y);
    p.threads = threads;
    p.boundaries = Pointer<const int64_t>(boundaries);
    p.sequences = sequences;
    convscan_status status = CONVSCAN_UNSUPPORTED;
    {
      const ReleasedGil released;
      switch (kernel) {
        case Kernel::direct: status = convscan_conv_direct(&p); break;
        case Kernel::toeplitz: status = convscan_conv_toeplitz(&p); break;
        case Kernel::fft: status = convscan_conv_fft(&p, transform_length); break;
        case Kernel::fft_kept: status = convscan_conv_fft_kept(&p, transform_length, p.h, storage); break;
        case Kernel::fft_sparse:
          status = convscan_conv_fft_sparse(&p, transform_length, p.h, storage,
                                            Pointer<const void>(h + static_cast<Address>(pattern_offset)));
          break;
        case Kernel::recurrence: status = convscan_conv_recurrence(&p); break;
      }
    }
    Raise(status, "causal_conv");
  }

  void RunOn(const Address *at) const override { Run(at[0], at[1], at[2], at[3], at[4], at[5], at[6], 0, 0, 0); }

  void RunOnTensors(nb::handle x, nb::handle h, nb::handle bias, nb::handle state, nb::handle pre_gate,
                    nb::handle post_gate, nb::handle y) const {
    Run(TensorAddress(x), TensorAddress(h), TensorAddress(bias), TensorAddress(state), TensorAddress(pre_gate),
        TensorAddress(post_gate), TensorAddress(y), 0, 0, 0);
  }
};

void FilterSpectrum(const std::string &dtype, int64_t filters, int64_t taps, int64_t transform_length,
                    const Pair &h_strides, bool bfloat16_spectra, Address h, Address spectra, Address keep,
                    Address pattern, int threads) {
  convscan_spectrum p{};
  p.filters = filters;
  p.taps = taps;
  p.transform_length = transform_length;
  p.dtype = ParseDtype(dtype);
  p.storage = ParseStorage(bfloat16_spectra);
  p.h = Pointer<const void>(h);
  std::tie(p.h_tap_stride, p.h_filter_stride) = h_strides;
  p.spectra = Pointer<void>(spectra);
  p.keep = Pointer<const uint8_t>(keep);
  p.pattern = Pointer<void>(pattern);
  p.threads = threads;
  convscan_status status;
  {
    const ReleasedGil released;
    status = convscan_filter_spectrum(&p);
  }
  Raise(status, "FilterSpectrum");
}

struct FilterGradientCall {
  bool is_fft;
  convscan_filter_gradient problem{};
  int64_t transform_length;

  FilterGradientCall(const std::string &name, const std::string &dtype, int64_t batch, int64_t length,
                     int64_t channels, int64_t taps, const Triple &x_strides, const Triple &dz_strides,
                     const Quadruple &state_strides, const Triple &dh_strides, const Triple &x_gate_strides,
                     const Triple &dz_gate_strides, int64_t origin, int64_t transform_length)
      : is_fft(name == "fft"), transform_length(transform_length) {
    if (name != "fft" && name != "direct") throw nb::value_error(("unknown kernel: " + name).c_str());
    problem.batch = batch;
    problem.length = length;
    problem.channels = channels;
    problem.taps = taps;
    problem.origin = origin;
    problem.dtype = ParseDtype(dtype);
    problem.x_strides = Strides(x_strides);
    problem.dz_strides = Strides(dz_strides);
    SetState(problem, state_strides);
    problem.x_gate_strides = Strides(x_gate_strides);
    problem.dz_gate_strides = Strides(dz_gate_strides);
    std::tie(problem.dh_batch_stride, problem.dh_tap_stride, problem.dh_channel_stride) = dh_strides;
  }

  convscan_filter_gradient Bind(Address x, Address dz, Address state, Address x_gate, Address dz_gate, Address dh,
                                int threads) const {
    convscan_filter_gradient p = problem;
    p.x = Pointer<const void>(x);
    p.dz = Pointer<const void>(dz);
    p.state = Pointer<const void>(state);
    p.x_gate = Pointer<const void>(x_gate);
    p.dz_gate = Pointer<const void>(dz_gate);
    p.dh = Pointer<void>(dh);
    p.threads = threads;
    return p;
  }

  void Run(Address x, Address dz, Address state, Address x_gate, Address dz_gate, Address dh, int threads,
           Address boundaries, int64_t sequences) const {
    convscan_filter_gradient p = Bind(x, dz, state, x_gate, dz_gate, dh, threads);
    p.boundaries = Pointer<const int64_t>(boundaries);
    p.sequences = sequences;
    convscan_status status;
    {
      const ReleasedGil released;
      status = is_fft ? convscan_filter_gradient_fft(&p, transform_length) : convscan_filter_gradient_direct(&p);
    }
    Raise(status, "causal_conv backward");
  }
};

struct ConvGradientCall {
  FilterGradientCall filter;
  convscan_conv_gradient problem{};

  ConvGradientCall(const FilterGradientCall &filter, const Pair &h_strides, const Triple &dx_strides, bool has_spectra,
                   bool bfloat16_spectra, int64_t filter_group, int64_t bias_stride, const std::string &activation,
                   const Triple &dpre_gate_strides, const Triple &dpost_gate_strides, const Quadruple &dstate_strides)
      : filter(filter), has_spectra(has_spectra) {
    problem.storage = ParseStorage(bfloat16_spectra);
    std::tie(problem.h_tap_stride, problem.h_channel_stride) = h_strides;
    problem.filter_group = filter_group;
    problem.dx_strides = Strides(dx_strides);
    problem.bias_stride = bias_stride;
    problem.activation = ParseActivation(activation);
    problem.dpre_gate_strides = Strides(dpre_gate_strides);
    problem.dpost_gate_strides = Strides(dpost_gate_strides);
    std::tie(problem.dstate_strides.batch, problem.dstate_sequence_stride, problem.dstate_strides.time,
             problem.dstate_strides.channel) = dstate_strides;
    problem.dbias_stride = 1;
  }

  void Run(Address x, Address h, Address dy, Address dx, Address dh, Address state, Address pre_gate, Address post_gate,
           Address bias, Address dstate, Address dpre_gate, Address dpost_gate, Address dbias, int threads,
           Address boundaries, int64_t sequences) const {
    convscan_conv_gradient p = problem;
    p.filter = filter.Bind(x, dy, state, pre_gate, post_gate, dh, threads);
    p.filter.boundaries = Pointer<const int64_t>(boundaries);
    p.filter.sequences = sequences;
    (has_spectra ? p.spectra : p.h) = Pointer<const void>(h);
    p.bias = Pointer<const void>(bias);
    p.dx = Pointer<void>(dx);
    p.dstate = Pointer<void>(dstate);
    p.dpre_gate = Pointer<void>(dpre_gate);
    p.dpost_gate = Pointer<void>(dpost_gate);
    p.dbias = Pointer<void>(dbias);
    convscan_status status;
    {
      const ReleasedGil released;
      status = filter.is_fft ? convscan_conv_gradient_fft(&p, filter.transform_length)
                             : convscan_conv_gradient_direct(&p);
    }
    Raise(status, "causal_conv backward");
  }

 private:
  bool has_spectra;
};

struct ScanCall final : NativeCall {
  enum class Kernel { sequential, tiled, parallel } kernel;
  convscan_scan problem{};

  ScanCall(const std::string &name, const std::string &dtype, int64_t batch, int64_t length, int64_t channels,
           bool reverse, const Triple &x_strides, const Triple &a_strides, const Triple &y_init_strides,
           const Triple &y_strides, int64_t sequences) {
    if (name == "sequential") kernel = Kernel::sequential;
    else if (name == "tiled") kernel = Kernel::tiled;
    else if (name == "parallel") kernel = Kernel::parallel;
    else throw nb::value_error(("unknown kernel: " + name).c_str());
    problem.batch = batch;
    problem.length = length;
    problem.channels = channels;
    problem.dtype = ParseDtype(dtype);
    problem.reverse = reverse;
    problem.x_strides = Strides(x_strides);
    problem.a_strides = Strides(a_strides);
    problem.y_init_batch_stride = std::get<0>(y_init_strides);
    problem.y_init_sequence_stride = std::get<1>(y_init_strides);
    problem.y_init_channel_stride = std::get<2>(y_init_strides);
    problem.sequences = sequences;
    problem.y_strides = Strides(y_strides);
  }

  convscan_scan Bind(Address x, Address a, Address y_init, Address boundaries, Address y, int threads) const {
    convscan_scan p = problem;
    p.x = Pointer<const void>(x);
    p.a = Pointer<const void>(a);
    p.y_init = Pointer<const void>(y_init);
    p.boundaries = Pointer<const int64_t>(boundaries);
    p.y = Pointer<void>(y);
    p.threads = threads;
    return p;
  }

  void Run(Address x, Address a, Address y_init, Address boundaries, Address y, int threads) const {
    const convscan_scan p = Bind(x, a, y_init, boundaries, y, threads);
    convscan_status status = CONVSCAN_UNSUPPORTED;
    {
      const ReleasedGil released;
      switch (kernel) {
        case Kernel::sequential: status = convscan_scan_sequential(&p); break;
        case Kernel::tiled: status = convscan_scan_tiled(&p); break;
        case Kernel::parallel: status = convscan_scan_parallel(&p); break;
      }
    }
    Raise(status, "linear_recurrence");
  }

  void RunOn(const Address *at) const override { Run(at[0], at[2], at[1], at[3], at[4], 0); }

  void RunOnTensors(nb::handle x, nb::handle y_init, nb::handle a, nb::handle boundaries, nb::handle y) const {
    Run(TensorAddress(x), TensorAddress(a), TensorAddress(y_init), TensorAddress(boundaries), TensorAddress(y), 0);
  }
};

struct ScanGradientCall {
  ScanCall forward;
  convscan_scan_gradient problem{};

  ScanGradientCall(const ScanCall &forward, const Triple &dy_strides, const Triple &dx_strides,
                   const Triple &da_strides, const Triple &dy_init_strides)
      : forward(forward) {
    problem.dy_strides = Strides(dy_strides);
    problem.dx_strides = Strides(dx_strides);
    problem.da_strides = Strides(da_strides);
    problem.dy_init_batch_stride = std::get<0>(dy_init_strides);
    problem.dy_init_sequence_stride = std::get<1>(dy_init_strides);
    problem.dy_init_channel_stride = std::get<2>(dy_init_strides);
  }

  void Run(Address a, Address y_init, Address boundaries, Address y, Address dy, Address dx, Address da,
           Address dy_init, int threads) const {
    convscan_scan_gradient p = problem;
    p.forward = forward.Bind(0, a, y_init, boundaries, y, threads);
    p.dy = Pointer<const void>(dy);
    p.dx = Pointer<void>(dx);
    p.da = Pointer<void>(da);
    p.dy_init = Pointer<void>(dy_init);
    convscan_status status;
    {
      const ReleasedGil released;
      status = convscan_scan_gradient_sequential(&p);
    }
    Raise(status, "linear_recurrence backward");
  }
};

// State-space kernels take milliseconds: plain calls, whose arguments cost nothing beside that.
void Vandermonde(const std::string &dtype, const std::string &a_dtype, int64_t rows, int64_t terms, int64_t length,
                 int order, const Pair &c_strides, const Pair &a_strides, int64_t y_row_stride, Address c, Address a,
                 Address y, int threads) {
  convscan_vandermonde p{};
  p.rows = rows;
  p.terms = terms;
  p.length = length;
  p.order = order;
  p.dtype = ParseDtype(dtype);
  p.a_dtype = ParseDtype(a_dtype);
  p.c = Pointer<const void>(c);
  std::tie(p.c_row_stride, p.c_term_stride) = c_strides;
  p.a = Pointer<const void>(a);
  std::tie(p.a_row_stride, p.a_term_stride) = a_strides;
  p.y = Pointer<void>(y);
  p.y_row_stride = y_row_stride;
  p.threads = threads;
  convscan_status status;
  {
    const ReleasedGil released;
    status = convscan_vandermonde_product(&p);
  }
  Raise(status, "vandermonde");
}

void VandermondeAdjoint(const std::string &dtype, const std::string &a_dtype, int64_t rows, int64_t terms,
                        int64_t length, int order, const Pair &g_strides, const Pair &a_strides,
                        int64_t w_row_stride, Address g, Address a, Address w, int threads) {
  convscan_vandermonde_adjoint p{};
  p.rows = rows;
  p.terms = terms;
  p.length = length;
  p.order = order;
  p.dtype = ParseDtype(dtype);
  p.a_dtype = ParseDtype(a_dtype);
  p.g = Pointer<const void>(g);
  std::tie(p.g_row_stride, p.g_time_stride) = g_strides;
  p.a = Pointer<const void>(a);
  std::tie(p.a_row_stride, p.a_term_stride) = a_strides;
  p.w = Pointer<void>(w);
  p.w_row_stride = w_row_stride;
  p.threads = threads;
  convscan_status status;
  {
    const ReleasedGil released;
    status = convscan_vandermonde_adjoint_product(&p);
  }
  Raise(status, "vandermonde_adjoint");
}

void Cauchy(const std::string &dtype, int64_t sides, int64_t rows, int64_t terms, int64_t points, int power,
            const Triple &v_strides, const Pair &lambda_strides, const Pair &z_strides, const Pair &k_strides,
            Address v, Address lambda, Address z, Address k, int threads) {
  convscan_cauchy p{};
  p.sides = sides;
  p.rows = rows;
  p.terms = terms;
  p.points = points;
  p.power = power;
  p.dtype = ParseDtype(dtype);
  p.v = Pointer<const void>(v);
  std::tie(p.v_side_stride, p.v_row_stride, p.v_term_stride) = v_strides;
  p.lambda = Pointer<const void>(lambda);
  std::tie(p.lambda_row_stride, p.lambda_term_stride) = lambda_strides;
  p.z = Pointer<const void>(z);
  std::tie(p.z_row_stride, p.z_point_stride) = z_strides;
  p.k = Pointer<void>(k);
  std::tie(p.k_side_stride, p.k_row_stride) = k_strides;
  p.threads = threads;
  convscan_status status;
  {
    const ReleasedGil released;
    status = convscan_cauchy_product(&p);
  }
  Raise(status, "cauchy");
}

}  // namespace

NB_MODULE(_native, m) {
  using namespace nb::literals;
  nb::module_::import_("atexit").attr("register")(nb::cpp_function(&ReleasedGil::WaitForKernels));
  pthread_atfork(nullptr, nullptr, &ReleasedGil::ForgetOtherThreads);
  nb::set_leak_warnings(false);  // interpreter exit order is not ours to judge
  m.doc() = "Native kernels of convscan: addresses, sizes and strides in; nothing checked twice.";

  convscan::python::DefinePreparedCalls(m);
  convscan::python::DefineOnline(m);
  convscan::python::DefineAttention(m);
  convscan::python::DefineSelectiveCalls(m);
  convscan::python::DefineAllpole(m);
  convscan::python::DefineDeltaRule(m);
  nb::class_<ConvCall, NativeCall>(m, "ConvCall", "A convolution, all but its addresses.")
      .def(nb::init<const std::string &, const std::string &, int64_t, int64_t, int64_t, int64_t, const Triple &,
                    const Triple &, const Triple &, const Pair &, const Quadruple &, const Triple &, const Triple &,
                    int64_t, int64_t, const std::string &, int64_t, bool, int64_t>(),
           "kernel"_a, "dtype"_a, "batch"_a, "length"_a, "channels"_a, "taps"_a, "x_strides"_a, "h_strides"_a,
           "y_strides"_a, "bias_strides"_a = Pair{0, 1}, "state_strides"_a = Quadruple{0, 0, 0, 0},
           "pre_gate_strides"_a = Triple{0, 0, 0}, "post_gate_strides"_a = Triple{0, 0, 0}, "filter_group"_a = 1,
           "origin"_a = 0, "activation"_a = "identity", "transform_length"_a = 0, "bfloat16_spectra"_a = false,
           "pattern_offset"_a = 0)
      .def("__call__", &ConvCall::Run, "x"_a, "h"_a, "bias"_a, "state"_a, "pre_gate"_a, "post_gate"_a, "y"_a,
           "threads"_a = 0, "boundaries"_a = 0, "sequences"_a = 0)
      .def("__call__", &ConvCall::RunOnTensors, "x"_a, "h"_a, "bias"_a.none(), "state"_a.none(), "pre_gate"_a.none(),
           "post_gate"_a.none(), "y"_a);
  nb::class_<FilterGradientCall>(m, "FilterGradientCall", "The gradient of a convolution's filter.")
      .def(nb::init<const std::string &, const std::string &, int64_t, int64_t, int64_t, int64_t, const Triple &,
                    const Triple &, const Quadruple &, const Triple &, const Triple &, const Triple &, int64_t,
                    int64_t>(),
           "kernel"_a, "dtype"_a, "batch"_a, "length"_a, "channels"_a, "taps"_a, "x_strides"_a, "dz_strides"_a,
           "state_strides"_a, "dh_strides"_a, "x_gate_strides"_a = Triple{0, 0, 0},
           "dz_gate_strides"_a = Triple{0, 0, 0}, "origin"_a = 0, "transform_length"_a = 0)
      .def("__call__", &FilterGradientCall::Run, "x"_a, "dz"_a, "state"_a, "x_gate"_a, "dz_gate"_a, "dh"_a,
           "threads"_a = 0, "boundaries"_a = 0, "sequences"_a = 0);
  nb::class_<ConvGradientCall>(m, "ConvGradientCall", "Every gradient of a convolution in one pass.")
      .def(nb::init<const FilterGradientCall &, const Pair &, const Triple &, bool, bool, int64_t, int64_t,
                    const std::string &, const Triple &, const Triple &, const Quadruple &>(),
           "filter"_a, "h_strides"_a, "dx_strides"_a, "has_spectra"_a = false, "bfloat16_spectra"_a = false,
           "filter_group"_a = 1, "bias_stride"_a = 1, "activation"_a = "identity",
           "dpre_gate_strides"_a = Triple{0, 0, 0}, "dpost_gate_strides"_a = Triple{0, 0, 0},
           "dstate_strides"_a = Quadruple{0, 0, 0, 0})
      .def("__call__", &ConvGradientCall::Run, "x"_a, "h"_a, "dy"_a, "dx"_a, "dh"_a, "state"_a = 0, "pre_gate"_a = 0,
           "post_gate"_a = 0, "bias"_a = 0, "dstate"_a = 0, "dpre_gate"_a = 0, "dpost_gate"_a = 0, "dbias"_a = 0,
           "threads"_a = 0, "boundaries"_a = 0, "sequences"_a = 0);
  nb::class_<ScanCall, NativeCall>(m, "ScanCall", "A linear recurrence, all but its addresses.")
      .def(nb::init<const std::string &, const std::string &, int64_t, int64_t, int64_t, bool, const Triple &,
                    const Triple &, const Triple &, const Triple &, int64_t>(),
           "kernel"_a, "dtype"_a, "batch"_a, "length"_a, "channels"_a, "reverse"_a, "x_strides"_a, "a_strides"_a,
           "y_init_strides"_a, "y_strides"_a, "sequences"_a = 0)
      .def("__call__", &ScanCall::Run, "x"_a, "a"_a, "y_init"_a, "boundaries"_a, "y"_a, "threads"_a = 0)
      .def("__call__", &ScanCall::RunOnTensors, "x"_a, "y_init"_a.none(), "a"_a, "boundaries"_a.none(), "y"_a);
  nb::class_<ScanGradientCall>(m, "ScanGradientCall", "The gradients of a linear recurrence.")
      .def(nb::init<const ScanCall &, const Triple &, const Triple &, const Triple &, const Triple &>(), "forward"_a,
           "dy_strides"_a, "dx_strides"_a, "da_strides"_a, "dy_init_strides"_a)
      .def("__call__", &ScanGradientCall::Run, "a"_a, "y_init"_a, "boundaries"_a, "y"_a, "dy"_a, "dx"_a, "da"_a,
           "dy_init"_a, "threads"_a = 0);

  m.def("vandermonde", &Vandermonde, "dtype"_a, "a_dtype"_a, "rows"_a, "terms"_a, "length"_a, "order"_a,
        "c_strides"_a, "a_strides"_a, "y_row_stride"_a, "c"_a, "a"_a, "y"_a, "threads"_a = 0);
  m.def("vandermonde_adjoint", &VandermondeAdjoint, "dtype"_a, "a_dtype"_a, "rows"_a, "terms"_a, "length"_a,
        "order"_a, "g_strides"_a, "a_strides"_a, "w_row_stride"_a, "g"_a, "a"_a, "w"_a, "threads"_a = 0);
  m.def("cauchy", &Cauchy, "dtype"_a, "sides"_a, "rows"_a, "terms"_a, "points"_a, "power"_a, "v_strides"_a,
        "lambda_strides"_a, "z_strides"_a, "k_strides"_a, "v"_a, "lambda_"_a, "z"_a, "k"_a, "threads"_a = 0);

  m.def("filter_spectrum", &FilterSpectrum, "dtype"_a, "filters"_a, "taps"_a, "transform_length"_a, "h_strides"_a,
        "bfloat16_spectra"_a, "h"_a, "spectra"_a, "keep"_a = 0, "pattern"_a = 0, "threads"_a = 0);
  m.def("pattern_bytes", [](int64_t transform_length, const std::string &dtype) {
    return convscan_pattern_bytes(transform_length, ParseDtype(dtype));
  });
  m.def("spectrum_bytes", [](int64_t transform_length, const std::string &dtype, bool bfloat16_spectra) {
    return convscan_spectrum_bytes(transform_length, ParseDtype(dtype), ParseStorage(bfloat16_spectra));
  });
  m.def("fft_length", [](int64_t points, const std::string &dtype) {
    return convscan_fft_length(points, ParseDtype(dtype));
  });
  m.def("isa", [] { return std::string(convscan_isa()); });
  m.def("isa_names", [] {
    nb::list names;
    for (int i = 0; i < convscan_isa_count(); ++i) names.append(convscan_isa_name(i));
    return names;
  });
  m.def("set_isa", [](const std::string &name) { return convscan_set_isa(name.c_str()) == CONVSCAN_OK; });
  m.def("thread_count", &convscan_thread_count);
  m.def("multiply_adds", &convscan_multiply_adds, "rounds"_a, "threads"_a, nb::call_guard<nb::gil_scoped_release>());
  m.def("workspace_current", &convscan_workspace_current);
  m.def("workspace_peak", &convscan_workspace_peak);
  m.def("tables_current", &convscan_tables_current);
  m.def("reset_workspace_peak", &convscan_workspace_reset_peak);
  m.def("advise_huge_pages",
        [](Address address, size_t bytes) { convscan_advise_huge_pages(Pointer<void>(address), bytes); });
}
