// The selective scan's part of the module.
#pragma once

#include <nanobind/nanobind.h>

namespace convscan::python {

void DefineSelectiveCalls(nanobind::module_ &m);

}  // namespace convscan::python
