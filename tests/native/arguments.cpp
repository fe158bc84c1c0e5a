// What the C interface must refuse, and what it must accept without touching memory.
#include "check.h"

namespace tests {
namespace {

constexpr int64_t kHuge = INT64_MAX / 2;

using ConvKernel = convscan_status (*)(const convscan_conv *);
using ScanKernel = convscan_status (*)(const convscan_scan *);

convscan_status ConvFft(const convscan_conv *p) { return convscan_conv_fft(p, 0); }
convscan_status FilterGradientFft(const convscan_filter_gradient *p) { return convscan_filter_gradient_fft(p, 0); }

struct ConvProblem {
  float x[24] = {}, h[12] = {}, bias[3] = {}, state[18] = {}, y[24] = {};
  convscan_conv p{};

  ConvProblem() {
    p.batch = 2;
    p.length = 4;
    p.channels = 3;
    p.taps = 4;
    p.dtype = CONVSCAN_FLOAT32;
    p.x = x;
    p.x_strides = p.y_strides = {12, 3, 1};
    p.h = h;
    p.h_tap_stride = 3;
    p.h_channel_stride = 1;
    p.bias = bias;
    p.bias_stride = 1;
    p.state = state;
    p.state_strides = {9, 3, 1};
    p.y = y;
  }
};

constexpr int64_t kBoundaries[] = {0, 2, 2, 4, 0, 3, 1, 4};

// Each entry breaks a valid problem in one way.
struct ConvBreak {
  const char *what;
  void (*apply)(ConvProblem &);
};

const ConvBreak kConvBreaks[] = {
    {"null x", [](ConvProblem &c) { c.p.x = nullptr; }},
    {"null h", [](ConvProblem &c) { c.p.h = nullptr; }},
    {"null y", [](ConvProblem &c) { c.p.y = nullptr; }},
    {"negative batch", [](ConvProblem &c) { c.p.batch = -1; }},
    {"negative length", [](ConvProblem &c) { c.p.length = -1; }},
    {"negative channels", [](ConvProblem &c) { c.p.channels = -1; }},
    {"no taps", [](ConvProblem &c) { c.p.taps = 0; }},
    {"negative taps", [](ConvProblem &c) { c.p.taps = -4; }},
    {"negative threads", [](ConvProblem &c) { c.p.threads = -1; }},
    {"negative origin", [](ConvProblem &c) { c.p.origin = -1; }},
    {"origin past the filter", [](ConvProblem &c) { c.p.origin = 4; }},
    {"state with an origin", [](ConvProblem &c) { c.p.origin = 1; }},
    {"dtype -1", [](ConvProblem &c) { c.p.dtype = static_cast<convscan_dtype>(-1); }},
    {"dtype 7", [](ConvProblem &c) { c.p.dtype = static_cast<convscan_dtype>(7); }},
    {"activation 3", [](ConvProblem &c) { c.p.activation = static_cast<convscan_activation>(3); }},
    {"too many elements", [](ConvProblem &c) { c.p.batch = c.p.length = c.p.channels = int64_t{1} << 40; }},
    {"length overflows", [](ConvProblem &c) { c.p.length = kHuge; }},
    {"taps overflow", [](ConvProblem &c) { c.p.taps = kHuge; }},
    {"x stride overflows", [](ConvProblem &c) { c.p.x_strides.batch = kHuge; }},
    {"x reaches below zero", [](ConvProblem &c) { c.p.x_strides.time = -(int64_t{1} << 60); }},
    {"y stride overflows", [](ConvProblem &c) { c.p.y_strides.time = kHuge; }},
    {"h stride overflows", [](ConvProblem &c) { c.p.h_tap_stride = -kHuge; }},
    {"state stride overflows", [](ConvProblem &c) { c.p.state_strides.time = kHuge; }},
    {"bias stride overflows", [](ConvProblem &c) { c.p.bias_stride = kHuge; }},
    {"misaligned x", [](ConvProblem &c) { c.p.x = reinterpret_cast<char *>(c.x) + 2; }},
    {"misaligned h", [](ConvProblem &c) { c.p.h = reinterpret_cast<char *>(c.h) + 1; }},
    {"misaligned y", [](ConvProblem &c) { c.p.y = reinterpret_cast<char *>(c.y) + 3; }},
    {"misaligned bias", [](ConvProblem &c) { c.p.bias = reinterpret_cast<char *>(c.bias) + 2; }},
    {"misaligned state", [](ConvProblem &c) { c.p.state = reinterpret_cast<char *>(c.state) + 2; }},
    {"y folded onto itself over channels", [](ConvProblem &c) { c.p.y_strides.channel = 0; }},
    {"y folded onto itself over time", [](ConvProblem &c) { c.p.y_strides.time = 0; }},
    {"y rows overlap", [](ConvProblem &c) { c.p.y_strides.time = 2; }},
    {"y batches overlap", [](ConvProblem &c) { c.p.y_strides.batch = 9; }},
    {"y one element into x", [](ConvProblem &c) { c.p.y = c.x + 1; }},
    {"y one step into x", [](ConvProblem &c) { c.p.y = c.x + 3; }},
    {"y is x in another order",
     [](ConvProblem &c) {
       c.p.y = c.x;
       c.p.y_strides = {12, 1, 4};
     }},
    {"y is h",
     [](ConvProblem &c) {
       c.p.y = c.h;
       c.p.batch = 1;
     }},
    {"y covers the bias",
     [](ConvProblem &c) {
       c.p.bias = c.y + 5;
     }},
    {"y covers the state", [](ConvProblem &c) { c.p.state = c.y + 2; }},
    {"negative group", [](ConvProblem &c) { c.p.filter_group = -1; }},
    {"h overflows over the batch", [](ConvProblem &c) { c.p.h_batch_stride = kHuge; }},
    {"y covers the gate before",
     [](ConvProblem &c) {
       c.p.pre_gate = c.y;
       c.p.pre_gate_strides = c.p.y_strides;
     }},
    {"y covers the gate behind", [](ConvProblem &c) { c.p.post_gate = c.y + 1; }},
    {"gate overflows",
     [](ConvProblem &c) {
       c.p.pre_gate = c.x;
       c.p.pre_gate_strides.time = kHuge;
     }},
    {"misaligned gate", [](ConvProblem &c) { c.p.post_gate = reinterpret_cast<char *>(c.x) + 2; }},
    {"no sequences", [](ConvProblem &c) { c.p.boundaries = kBoundaries; }},
    {"boundaries that begin late",
     [](ConvProblem &c) {
       c.p.boundaries = kBoundaries + 1;
       c.p.sequences = 2;
     }},
    {"boundaries that end early",
     [](ConvProblem &c) {
       c.p.boundaries = kBoundaries;
       c.p.sequences = 1;
     }},
    {"boundaries that decrease",
     [](ConvProblem &c) {
       c.p.boundaries = kBoundaries + 4;
       c.p.sequences = 3;
     }},
    {"y covers the state of a later sequence",
     [](ConvProblem &c) {
       c.p.boundaries = kBoundaries;
       c.p.sequences = 3;
       c.p.state_sequence_stride = c.y - c.state;
     }},
};

// The filters of a convolution, their spectra, and the convolution with those.
struct SpectrumProblem {
  ConvProblem conv;
  alignas(64) float spectra[3 * 2 * 512];
  alignas(64) unsigned char pattern[4096] = {};
  unsigned char keep[512] = {};
  convscan_spectrum s{};

  SpectrumProblem() {
    s.filters = 3;
    s.taps = 4;
    s.transform_length = convscan_fft_length(8, CONVSCAN_FLOAT32);
    s.h = conv.h;
    s.h_tap_stride = 3;
    s.h_filter_stride = 1;
    s.spectra = spectra;
  }
  convscan_status ConvolveSparse() const {
    return convscan_conv_fft_sparse(&conv.p, s.transform_length, s.spectra, s.storage, s.pattern);
  }
  convscan_status Make() const { return convscan_filter_spectrum(&s); }
  convscan_status Convolve() const { return convscan_conv_fft_kept(&conv.p, s.transform_length, s.spectra, s.storage); }
};

struct SpectrumBreak {
  const char *what;
  convscan_status (*apply)(SpectrumProblem &);
  convscan_status expected = CONVSCAN_INVALID_ARGUMENT;
};

const SpectrumBreak kSpectrumBreaks[] = {
    {"null problem", [](SpectrumProblem &) { return convscan_filter_spectrum(nullptr); }},
    {"null h", [](SpectrumProblem &k) { return k.s.h = nullptr, k.Make(); }},
    {"null spectra", [](SpectrumProblem &k) { return k.s.spectra = nullptr, k.Make(); }},
    {"null spectra to convolve with", [](SpectrumProblem &k) { return k.s.spectra = nullptr, k.Convolve(); }},
    {"misaligned spectra", [](SpectrumProblem &k) { return k.s.spectra = k.spectra + 4, k.Make(); }},
    {"misaligned spectra to convolve with", [](SpectrumProblem &k) { return k.s.spectra = k.spectra + 4, k.Convolve(); }},
    {"no taps", [](SpectrumProblem &k) { return k.s.taps = 0, k.Make(); }},
    {"more taps than the transform holds",
     [](SpectrumProblem &k) { return k.s.taps = 2 * k.s.transform_length + 1, k.Make(); }},
    {"a negative number of filters", [](SpectrumProblem &k) { return k.s.filters = -1, k.Make(); }},
    {"storage 2", [](SpectrumProblem &k) { return k.s.storage = static_cast<convscan_spectrum_storage>(2), k.Make(); }},
    {"storage 2 to convolve with",
     [](SpectrumProblem &k) { return k.s.storage = static_cast<convscan_spectrum_storage>(2), k.Convolve(); }},
    {"an origin inside the filter",
     [](SpectrumProblem &k) { return k.conv.p.state = nullptr, k.conv.p.origin = 1, k.Convolve(); }},
    {"spectra over h", [](SpectrumProblem &k) { return k.s.h = k.spectra + 5, k.Make(); }},
    {"y over the spectra", [](SpectrumProblem &k) { return k.conv.p.y = k.spectra + 7, k.Convolve(); }},
    {"a length that is none", [](SpectrumProblem &k) { return ++k.s.transform_length, k.Make(); }, CONVSCAN_UNSUPPORTED},
    {"a length of 0", [](SpectrumProblem &k) { return k.s.transform_length = 0, k.Convolve(); }, CONVSCAN_UNSUPPORTED},
    {"keep without a pattern",
     [](SpectrumProblem &k) { return k.s.keep = k.keep, k.s.pattern = nullptr, k.Make(); }},
    {"a pattern inside the spectra",
     [](SpectrumProblem &k) { return k.s.keep = k.keep, k.s.pattern = k.spectra + 16, k.Make(); }},
    {"a null pattern to convolve with",
     [](SpectrumProblem &k) { return k.conv.p.state = nullptr, k.s.pattern = nullptr, k.ConvolveSparse(); }},
    {"a misaligned pattern to convolve with",
     [](SpectrumProblem &k) { return k.conv.p.state = nullptr, k.s.pattern = k.pattern + 4, k.ConvolveSparse(); }},
    {"a state with sparse spectra", [](SpectrumProblem &k) { return k.s.pattern = k.pattern, k.ConvolveSparse(); }},
    {"complex filters", [](SpectrumProblem &k) { return k.s.dtype = CONVSCAN_COMPLEX64, k.Make(); },
     CONVSCAN_UNSUPPORTED},
};

struct ScanProblem {
  alignas(8) float x[24] = {}, a[24] = {}, y_init[6] = {}, y[24] = {}, dy[24] = {}, dx[24] = {}, da[24] = {},
                   dy_init[6] = {};
  int64_t boundaries[3] = {0, 1, 4};
  convscan_scan p{};
  convscan_scan_gradient g{};

  ScanProblem() {
    p.batch = 2;
    p.length = 4;
    p.channels = 3;
    p.dtype = CONVSCAN_FLOAT32;
    p.x = x;
    p.a = a;
    p.y = y;
    p.x_strides = p.a_strides = p.y_strides = {12, 3, 1};
    p.y_init = y_init;
    p.y_init_batch_stride = 3;
    p.y_init_channel_stride = 1;
    g.dy = dy;
    g.dx = dx;
    g.da = da;
    g.dy_strides = g.dx_strides = g.da_strides = {12, 3, 1};
    g.dy_init = dy_init;
    g.dy_init_batch_stride = 3;
    g.dy_init_channel_stride = 1;
  }

  // Two sequences behind one another.
  void Pack() {
    p.boundaries = boundaries;
    p.sequences = 2;
    p.y_init = nullptr;
    g.dy_init = nullptr;
  }
};

struct ScanBreak {
  const char *what;
  void (*apply)(ScanProblem &);
};

const ScanBreak kScanBreaks[] = {
    {"null x", [](ScanProblem &s) { s.p.x = nullptr; }},
    {"null a", [](ScanProblem &s) { s.p.a = nullptr; }},
    {"null y", [](ScanProblem &s) { s.p.y = nullptr; }},
    {"negative batch", [](ScanProblem &s) { s.p.batch = -1; }},
    {"negative length", [](ScanProblem &s) { s.p.length = -4; }},
    {"negative channels", [](ScanProblem &s) { s.p.channels = -3; }},
    {"negative threads", [](ScanProblem &s) { s.p.threads = -2; }},
    {"dtype 7", [](ScanProblem &s) { s.p.dtype = static_cast<convscan_dtype>(7); }},
    {"too many elements", [](ScanProblem &s) { s.p.length = s.p.channels = int64_t{1} << 30; }},
    {"x stride overflows", [](ScanProblem &s) { s.p.x_strides.time = kHuge; }},
    {"a stride overflows", [](ScanProblem &s) { s.p.a_strides.batch = kHuge; }},
    {"y_init stride overflows", [](ScanProblem &s) { s.p.y_init_batch_stride = kHuge; }},
    {"misaligned x", [](ScanProblem &s) { s.p.x = reinterpret_cast<char *>(s.x) + 2; }},
    {"misaligned a", [](ScanProblem &s) { s.p.a = reinterpret_cast<char *>(s.a) + 2; }},
    {"misaligned y", [](ScanProblem &s) { s.p.y = reinterpret_cast<char *>(s.y) + 2; }},
    {"misaligned y_init", [](ScanProblem &s) { s.p.y_init = reinterpret_cast<char *>(s.y_init) + 2; }},
    {"y folded onto itself", [](ScanProblem &s) { s.p.y_strides.time = 0; }},
    {"y one step into x", [](ScanProblem &s) { s.p.y = s.x + 3; }},
    {"y is a", [](ScanProblem &s) { s.p.y = s.a; }},
    {"y covers y_init", [](ScanProblem &s) { s.p.y_init = s.y + 2; }},
    {"no sequences", [](ScanProblem &s) { s.Pack(), s.p.sequences = 0; }},
    {"too many sequences", [](ScanProblem &s) { s.Pack(), s.p.sequences = INT64_MAX; }},
    {"boundaries after the start", [](ScanProblem &s) { s.Pack(), s.boundaries[0] = 1; }},
    {"boundaries that decrease", [](ScanProblem &s) { s.Pack(), s.boundaries[1] = 5; }},
    {"boundaries before the end", [](ScanProblem &s) { s.Pack(), s.boundaries[2] = 3; }},
    {"misaligned boundaries",
     [](ScanProblem &s) { s.Pack(), s.p.boundaries = reinterpret_cast<const int64_t *>(s.y_init + 1); }},
    {"y covers boundaries", [](ScanProblem &s) { s.Pack(), s.p.y = s.boundaries; }},
};

const ScanBreak kScanGradientBreaks[] = {
    {"null dy", [](ScanProblem &s) { s.g.dy = nullptr; }},
    {"null dx", [](ScanProblem &s) { s.g.dx = nullptr; }},
    {"null a", [](ScanProblem &s) { s.p.a = nullptr; }},
    {"null y", [](ScanProblem &s) { s.p.y = nullptr; }},
    {"negative length", [](ScanProblem &s) { s.p.length = -1; }},
    {"misaligned dy", [](ScanProblem &s) { s.g.dy = reinterpret_cast<char *>(s.dy) + 1; }},
    {"misaligned da", [](ScanProblem &s) { s.g.da = reinterpret_cast<char *>(s.da) + 2; }},
    {"misaligned dy_init", [](ScanProblem &s) { s.g.dy_init = reinterpret_cast<char *>(s.dy_init) + 2; }},
    {"dx folded onto itself", [](ScanProblem &s) { s.g.dx_strides.channel = 0; }},
    {"dx one step into dy", [](ScanProblem &s) { s.g.dx = s.dy + 3; }},
    {"dx is a", [](ScanProblem &s) { s.g.dx = s.a; }},
    {"dx is y", [](ScanProblem &s) { s.g.dx = s.y; }},
    {"da is dx", [](ScanProblem &s) { s.g.da = s.dx; }},
    {"da is dy", [](ScanProblem &s) { s.g.da = s.dy; }},
    {"da is y", [](ScanProblem &s) { s.g.da = s.y; }},
    {"dy_init inside dx", [](ScanProblem &s) { s.g.dy_init = s.dx + 4; }},
    {"dy_init inside da", [](ScanProblem &s) { s.g.dy_init = s.da + 4; }},
    {"dy_init is y_init", [](ScanProblem &s) { s.g.dy_init = s.y_init; }},
    {"dx covers y_init", [](ScanProblem &s) { s.p.y_init = s.dx + 4; }},
    {"da covers y_init", [](ScanProblem &s) { s.p.y_init = s.da + 4; }},
    {"dx stride overflows", [](ScanProblem &s) { s.g.dx_strides.time = kHuge; }},
    {"boundaries that decrease", [](ScanProblem &s) { s.Pack(), s.boundaries[1] = 5; }},
    {"dx covers boundaries", [](ScanProblem &s) { s.Pack(), s.g.dx = s.boundaries; }},
    {"da covers boundaries", [](ScanProblem &s) { s.Pack(), s.g.da = s.boundaries; }},
    {"da rows overlap", [](ScanProblem &s) { s.g.da_strides.time = 1; }},
};

struct FilterGradientProblem {
  float x[24] = {}, dz[24] = {}, dh[12] = {}, state[18] = {};
  convscan_filter_gradient p{};

  FilterGradientProblem() {
    p.batch = 2;
    p.length = 4;
    p.channels = 3;
    p.taps = 4;
    p.dtype = CONVSCAN_FLOAT32;
    p.x = x;
    p.dz = dz;
    p.x_strides = p.dz_strides = {12, 3, 1};
    p.state = state;
    p.state_strides = {9, 3, 1};
    p.dh = dh;
    p.dh_tap_stride = 3;
    p.dh_channel_stride = 1;
  }
};

struct FilterGradientBreak {
  const char *what;
  void (*apply)(FilterGradientProblem &);
};

const FilterGradientBreak kFilterGradientBreaks[] = {
    {"null x", [](FilterGradientProblem &f) { f.p.x = nullptr; }},
    {"null dz", [](FilterGradientProblem &f) { f.p.dz = nullptr; }},
    {"null dh", [](FilterGradientProblem &f) { f.p.dh = nullptr; }},
    {"no taps", [](FilterGradientProblem &f) { f.p.taps = 0; }},
    {"negative length", [](FilterGradientProblem &f) { f.p.length = -1; }},
    {"negative threads", [](FilterGradientProblem &f) { f.p.threads = -1; }},
    {"dtype 7", [](FilterGradientProblem &f) { f.p.dtype = static_cast<convscan_dtype>(7); }},
    {"x stride overflows", [](FilterGradientProblem &f) { f.p.x_strides.time = kHuge; }},
    {"dh stride overflows", [](FilterGradientProblem &f) { f.p.dh_tap_stride = kHuge; }},
    {"misaligned x", [](FilterGradientProblem &f) { f.p.x = reinterpret_cast<char *>(f.x) + 1; }},
    {"misaligned dh", [](FilterGradientProblem &f) { f.p.dh = reinterpret_cast<char *>(f.dh) + 2; }},
    {"misaligned state", [](FilterGradientProblem &f) { f.p.state = reinterpret_cast<char *>(f.state) + 2; }},
    {"dh folded onto itself", [](FilterGradientProblem &f) { f.p.dh_channel_stride = 0; }},
    {"dh is x", [](FilterGradientProblem &f) { f.p.dh = f.x; }},
    {"dh is dz", [](FilterGradientProblem &f) { f.p.dh = f.dz; }},
    {"dh is inside the state", [](FilterGradientProblem &f) { f.p.dh = f.state + 2; }},
};

// A valid problem must run or be declined, never be called invalid: otherwise the refusals below prove nothing.
bool IsAccepted(convscan_status status) { return status == CONVSCAN_OK || status == CONVSCAN_UNSUPPORTED; }

}  // namespace

void TestArguments() {
  const ConvKernel conv_kernels[] = {convscan_conv_direct, convscan_conv_toeplitz, ConvFft, convscan_conv_recurrence};
  for (ConvKernel kernel : conv_kernels) {
    context = "null problem";
    CHECK(kernel(nullptr) == CONVSCAN_INVALID_ARGUMENT);
    context = "valid convolution";
    ConvProblem valid;
    CHECK(IsAccepted(kernel(&valid.p)));
    for (const ConvBreak &broken : kConvBreaks) {
      context = broken.what;
      ConvProblem problem;
      broken.apply(problem);
      CHECK(kernel(&problem.p) == CONVSCAN_INVALID_ARGUMENT);
    }
    context = "in place";
    ConvProblem in_place;
    in_place.p.y = in_place.x;
    CHECK(IsAccepted(kernel(&in_place.p)));
    context = "complex";
    ConvProblem is_complex;
    is_complex.p.dtype = CONVSCAN_COMPLEX64;
    CHECK(kernel(&is_complex.p) == CONVSCAN_UNSUPPORTED);
    context = "halves of the channels of one array";
    ConvProblem interleaved;
    float both[48] = {};
    interleaved.p.x = both;
    interleaved.p.y = both + 3;
    interleaved.p.x_strides = interleaved.p.y_strides = {24, 6, 1};
    CHECK(IsAccepted(kernel(&interleaved.p)));
    for (int axis = 0; axis < 3; ++axis) {
      context = "empty convolution, null pointers";
      convscan_conv empty{};
      empty.batch = axis != 0;
      empty.length = axis != 1;
      empty.channels = axis != 2;
      empty.taps = 1;
      CHECK(kernel(&empty) == CONVSCAN_OK);
    }
  }

  for (const SpectrumBreak &broken : kSpectrumBreaks) {
    context = std::string("kept spectra: ") + broken.what;
    SpectrumProblem problem;
    CHECK(convscan_filter_spectrum(&problem.s) == CONVSCAN_OK);
    CHECK(problem.Convolve() == CONVSCAN_OK);
    CHECK(broken.apply(problem) == broken.expected);
  }

  using GradientKernel = convscan_status (*)(const convscan_filter_gradient *);
  const GradientKernel gradient_kernels[] = {convscan_filter_gradient_direct, FilterGradientFft};
  for (GradientKernel kernel : gradient_kernels) {
    context = "null filter gradient";
    CHECK(kernel(nullptr) == CONVSCAN_INVALID_ARGUMENT);
    context = "valid filter gradient";
    FilterGradientProblem valid;
    CHECK(IsAccepted(kernel(&valid.p)));
    for (const FilterGradientBreak &broken : kFilterGradientBreaks) {
      context = std::string("filter gradient: ") + broken.what;
      FilterGradientProblem problem;
      broken.apply(problem);
      CHECK(kernel(&problem.p) == CONVSCAN_INVALID_ARGUMENT);
    }
    for (int axis = 0; axis < 2; ++axis) {
      context = "filter gradient of an empty sum is zero";
      FilterGradientProblem empty;
      for (float &value : empty.dh) value = 7;
      (axis == 0 ? empty.p.batch : empty.p.length) = 0;
      const convscan_status status = kernel(&empty.p);
      CHECK(IsAccepted(status));
      for (float value : empty.dh) CHECK(status == CONVSCAN_UNSUPPORTED || value == 0);
    }
  }

  const ScanKernel scan_kernels[] = {convscan_scan_sequential, convscan_scan_tiled, convscan_scan_parallel};
  for (ScanKernel kernel : scan_kernels) {
    context = "null recurrence";
    CHECK(kernel(nullptr) == CONVSCAN_INVALID_ARGUMENT);
    context = "valid recurrence";
    ScanProblem valid;
    CHECK(IsAccepted(kernel(&valid.p)));
    valid.Pack();
    CHECK(IsAccepted(kernel(&valid.p)));
    for (const ScanBreak &broken : kScanBreaks) {
      context = std::string("recurrence: ") + broken.what;
      ScanProblem problem;
      broken.apply(problem);
      CHECK(kernel(&problem.p) == CONVSCAN_INVALID_ARGUMENT);
    }
    for (int axis = 0; axis < 3; ++axis) {
      context = "empty recurrence, null pointers";
      convscan_scan empty{};
      empty.batch = axis != 0;
      empty.length = axis != 1;
      empty.channels = axis != 2;
      CHECK(kernel(&empty) == CONVSCAN_OK);
    }
  }

  context = "null recurrence gradient";
  CHECK(convscan_scan_gradient_sequential(nullptr) == CONVSCAN_INVALID_ARGUMENT);
  context = "valid recurrence gradient";
  ScanProblem valid;
  valid.g.forward = valid.p;
  CHECK(IsAccepted(convscan_scan_gradient_sequential(&valid.g)));
  for (const ScanBreak &broken : kScanGradientBreaks) {
    context = std::string("recurrence gradient: ") + broken.what;
    ScanProblem problem;
    broken.apply(problem);
    problem.g.forward = problem.p;
    CHECK(convscan_scan_gradient_sequential(&problem.g) == CONVSCAN_INVALID_ARGUMENT);
  }

  context = "instruction sets";
  CHECK(convscan_isa_count() >= 1);
  CHECK(convscan_isa_name(-1) == nullptr);
  CHECK(convscan_isa_name(convscan_isa_count()) == nullptr);
  const std::string in_use = convscan_isa();
  CHECK(convscan_set_isa("mmx") == CONVSCAN_INVALID_ARGUMENT);
  CHECK(convscan_set_isa(nullptr) == CONVSCAN_INVALID_ARGUMENT);
  CHECK(in_use == convscan_isa());

  context = "transform lengths";
  CHECK(convscan_fft_length(0, CONVSCAN_FLOAT32) == 0);
  CHECK(convscan_fft_length(-5, CONVSCAN_FLOAT32) == 0);
  CHECK(convscan_fft_length(INT64_MAX, CONVSCAN_FLOAT32) == 0);
  CHECK(convscan_fft_length(64, CONVSCAN_COMPLEX64) == 0);

  context = "messages";
  for (int status = CONVSCAN_OK; status <= CONVSCAN_UNSUPPORTED + 1; ++status)
    CHECK(convscan_status_message(static_cast<convscan_status>(status)) != nullptr);

  context = "huge pages";
  convscan_advise_huge_pages(nullptr, size_t{1} << 30);
  float little[4] = {1, 2, 3, 4};
  convscan_advise_huge_pages(little, sizeof little);
  CHECK(little[0] == 1 && little[3] == 4);
}

}  // namespace tests
