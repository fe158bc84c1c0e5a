// What the operators share: tensors of ExecuTorch as addresses and strides, leading axes folded into a batch, the host's
// threads, and errors. Operators here are the runtime's side of convscan.integrations.executorch.
#pragma once

#include <executorch/extension/kernel_util/make_boxed_from_unboxed_functor.h>
#include <executorch/runtime/kernel/kernel_includes.h>
#include <executorch/runtime/kernel/thread_parallel_interface.h>

#include <optional>

#include "convscan.h"

namespace convscan::executorch_operators {

using executorch::aten::ScalarType;
using executorch::aten::SizesType;
using executorch::aten::Tensor;
using executorch::runtime::Error;
using executorch::runtime::KernelRuntimeContext;
using OptionalTensor = std::optional<Tensor>;

constexpr int kMaxLeading = 14;

// A tensor as an operator reads it: its last two axes are time and channels, in this order or, `time_last`, the other way
// round, and of the channels those from `first` on. So operators read what a transpose or a slice would have copied.
struct Operand {
  char *data = nullptr;  // null: not given
  int leading = 0;
  int64_t sizes[kMaxLeading] = {}, strides[kMaxLeading] = {};  // of the leading axes
  int64_t times = 1, channels = 1;
  int64_t time_stride = 0, channel_stride = 0;  // zero where the one number stands for all
  int64_t element = 0;
};

struct View {
  bool time_last;
  int64_t first;
};

// `rank` is the number of axes of its own, of which time and channels are the last two: an axis that is missing repeats.
// `channels`: how many of the channels (0: all that there are).
Operand Read(const Tensor &tensor, View view, int64_t channels, int rank = 2);
Operand Read(const OptionalTensor &tensor, View view, int64_t channels, int rank = 2);

// CONVSCAN dtype of a tensor's; false for one that has none.
bool Dtype(const Tensor &tensor, convscan_dtype *dtype);

// Calls one(batch, strides, addresses) for leading axes `sizes` of the output: once where all operands' leading axes fold
// into one batch, else once for each index of the axes that do not. Operands broadcast.
struct Folded {
  int64_t batch;
  int64_t batch_strides[8];
  char *data[8];
};
using RunFolded = convscan_status (*)(void *context, const Folded &folded);
convscan_status OverLeadingAxes(const Operand *const *operands, int count, const int64_t *sizes, int leading, RunFolded run,
                                void *context);
template <class Function>
convscan_status OverLeadingAxes(const Operand *const *operands, int count, const Operand &like, const Function &function) {
  return OverLeadingAxes(
      operands, count, like.sizes, like.leading,
      [](void *context, const Folded &folded) { return (*static_cast<const Function *>(context))(folded); },
      const_cast<void *>(static_cast<const void *>(&function)));
}

// Calls inside use ExecuTorch's thread pool, which XNNPACK uses too.
class HostPool {
 public:
  HostPool();
  ~HostPool();
};

// Tells the runtime that a call failed, and the log why.
void Fail(KernelRuntimeContext &context, const char *name, const char *what, Error error = Error::InvalidArgument);
void Report(KernelRuntimeContext &context, const char *name, convscan_status status);

// Gives `out` its sizes; false where it cannot have them.
bool Resize(KernelRuntimeContext &context, const char *name, Tensor &out, const SizesType *sizes, size_t count);

// Whether the tensor's axes lie in memory in their order, densely: operators read no other.
bool IsPlain(const Tensor &tensor);

// The boundaries of packed sequences as the kernels read them, int64, in memory of the call.
struct Boundaries {
  const int64_t *values = nullptr;
  int64_t sequences = 0;
  bool failed = false;
};
Boundaries ReadBoundaries(KernelRuntimeContext &context, const char *name, const OptionalTensor &cu_seqlens);

}  // namespace convscan::executorch_operators
