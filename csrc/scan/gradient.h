// The gradient of the scan where arrays lie along time.
#pragma once

#include "convscan.h"
#include "core/vector.h"

namespace convscan::CONVSCAN_ISA {

// Whether steps are neighbours in memory, of all arrays alike, or all channels of a step and few of them, and da is not
// summed: then the kernels of the scan itself run along time.
bool GradientRunsAlongTime(const convscan_scan_gradient &);
convscan_status ScanGradientAlongTime(const convscan_scan_gradient &);

}  // namespace convscan::CONVSCAN_ISA
