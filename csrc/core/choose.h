// Which kernel should be fastest, by the costs that the Python package chooses by.
#pragma once

#include "convscan.h"

namespace convscan {

enum class ConvMethod { kDirect, kToeplitz, kFft };

struct ConvChoice {
  ConvMethod method;
  int64_t transform_length;  // of kFft
};

// Problems are valid ones. `isa` is the name of the instruction set in use.
ConvChoice ChooseConv(const convscan_conv &problem, const char *isa,
                      int64_t (*fft_length)(int64_t points, convscan_dtype));

enum class ScanMethod { kSequential, kTiled, kParallel };

ScanMethod ChooseScan(const convscan_scan &problem, const char *isa);

}  // namespace convscan
