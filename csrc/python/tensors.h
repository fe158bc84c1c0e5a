// PyTorch's tensors as Python objects: PyTorch is not needed to build this.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>

namespace convscan::python {

// A kernel with everything of a problem but its addresses.
struct NativeCall {
  virtual ~NativeCall() = default;
  // Addresses in the order in which the functions that rows prepare take tensors, the output last; 0 for None.
  virtual void RunOn(const uintptr_t *addresses) const = 0;
};

// The address of the first element, 0 for None. Raises for what is no tensor with memory on the CPU.
uintptr_t TensorAddress(nanobind::handle tensor);

// Defines NativeCall, configuration, use_torch, is_plain, call_key and run_prepared.
void DefinePreparedCalls(nanobind::module_ &m);

// Defines OnlineCall, after NativeCall.
void DefineOnline(nanobind::module_ &m);

}  // namespace convscan::python
