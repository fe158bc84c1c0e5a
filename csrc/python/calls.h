// What the files that define native calls share: the interpreter while a kernel runs, statuses as exceptions, names.
#pragma once

#include <nanobind/nanobind.h>
#include <unistd.h>

#include <cstdint>
#include <new>
#include <string>
#include <utility>

#include "convscan.h"

namespace convscan::python {

// Releases the interpreter while a kernel runs, until the interpreter begins to exit: a daemon thread that then asks for
// it back is ended by unwinding its stack, which C++ answers with std::terminate. At exit, WaitForKernels lets kernels
// that released it finish; later ones keep it.
class ReleasedGil {
 public:
  ReleasedGil() {
    if (exiting_) return;
    ++running_;
    state_ = PyEval_SaveThread();
  }
  ~ReleasedGil() {
    if (state_ == nullptr) return;
    PyEval_RestoreThread(state_);
    --running_;
  }
  ReleasedGil(const ReleasedGil &) = delete;
  ReleasedGil &operator=(const ReleasedGil &) = delete;

  // A forked child inherits the count without the threads.
  static void ForgetOtherThreads() { running_ = 0; }
  static void WaitForKernels() {
    exiting_ = true;
    while (running_ > 0) {
      PyThreadState *const state = PyEval_SaveThread();
      usleep(1000);
      PyEval_RestoreThread(state);
    }
  }

 private:
  static inline bool exiting_ = false;  // both change only while the interpreter is held
  static inline int64_t running_ = 0;
  PyThreadState *state_ = nullptr;
};

using Address = uintptr_t;

template <class T>
T *Pointer(Address address) {
  return reinterpret_cast<T *>(address);
}

inline void Raise(convscan_status status, const char *kernel) {
  if (status == CONVSCAN_OUT_OF_MEMORY) throw std::bad_alloc();
  // The operators have checked everything else by now.
  if (status == CONVSCAN_INVALID_ARGUMENT)
    throw nanobind::value_error((std::string(kernel) + ": out must be x itself or memory that no input and no other "
                                                       "element of out shares; it overlaps. Pass another out, or none")
                                    .c_str());
  if (status != CONVSCAN_OK)
    throw nanobind::value_error((std::string(kernel) + ": " + convscan_status_message(status)).c_str());
}

inline convscan_dtype ParseDtype(const std::string &name) {
  static const std::pair<const char *, convscan_dtype> kNames[] = {
      {"float32", CONVSCAN_FLOAT32},   {"float64", CONVSCAN_FLOAT64},     {"bfloat16", CONVSCAN_BFLOAT16},
      {"float16", CONVSCAN_FLOAT16},   {"complex64", CONVSCAN_COMPLEX64}, {"complex128", CONVSCAN_COMPLEX128},
      {"wide_float32", CONVSCAN_WIDE_FLOAT32}};
  for (const auto &[text, dtype] : kNames)
    if (name == text) return dtype;
  throw nanobind::value_error(("unknown dtype: " + name).c_str());
}

// An array as Python describes it: (address, strides), or None where it is not given.
using Described = nanobind::object;

template <size_t N>
void *Read(const Described &array, int64_t (&strides)[N]) {
  for (int64_t &stride : strides) stride = 0;
  if (array.is_none()) return nullptr;
  const nanobind::tuple pair = nanobind::cast<nanobind::tuple>(array), steps = nanobind::cast<nanobind::tuple>(pair[1]);
  for (size_t i = 0; i < N && i < steps.size(); ++i) strides[i] = nanobind::cast<int64_t>(steps[i]);
  return Pointer<void>(nanobind::cast<Address>(pair[0]));
}

inline void *Read(const Described &array, convscan_head_strides &strides) {
  int64_t steps[4];
  void *const address = Read(array, steps);
  strides = {steps[0], steps[1], steps[2], steps[3]};
  return address;
}

// Each defines an operator's native calls, in a file of its own.
void DefineAttention(nanobind::module_ &m);
void DefineAllpole(nanobind::module_ &m);
void DefineDeltaRule(nanobind::module_ &m);

}  // namespace convscan::python
