#include "executorch/call.h"

namespace convscan::executorch_operators {

Operand Read(const Tensor &tensor, View view, int64_t channels, int rank) {
  Operand found;
  found.element = static_cast<int64_t>(tensor.element_size());
  const int axes = static_cast<int>(tensor.dim());
  int64_t strides[kMaxLeading + 2];
  int64_t stride = 1;
  for (int axis = axes - 1; axis >= 0; --axis) {
    strides[axis] = stride;
    stride *= tensor.size(axis);
  }
  const auto axis_of = [&](int from_last, int64_t *size, int64_t *step) {
    const int axis = axes - from_last;
    if (axis < 0) return;
    *size = tensor.size(axis);
    *step = strides[axis];
  };
  axis_of(view.time_last ? 1 : 2, &found.times, &found.time_stride);
  axis_of(view.time_last ? 2 : 1, &found.channels, &found.channel_stride);
  found.data = static_cast<char *>(const_cast<void *>(tensor.const_data_ptr())) +
               found.element * view.first * found.channel_stride;
  if (channels > 0 && found.channels > 1) found.channels = channels;
  found.leading = axes > rank ? axes - rank : 0;
  for (int axis = 0; axis < found.leading; ++axis) {
    found.sizes[axis] = tensor.size(axis);
    found.strides[axis] = strides[axis];
  }
  return found;
}

Operand Read(const OptionalTensor &tensor, View view, int64_t channels, int rank) {
  return tensor.has_value() ? Read(*tensor, view, channels, rank) : Operand();
}

bool Dtype(const Tensor &tensor, convscan_dtype *dtype) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: *dtype = CONVSCAN_FLOAT32; return true;
    case ScalarType::Double: *dtype = CONVSCAN_FLOAT64; return true;
    case ScalarType::Half: *dtype = CONVSCAN_FLOAT16; return true;
    case ScalarType::BFloat16: *dtype = CONVSCAN_BFLOAT16; return true;
    default: return false;
  }
}

namespace {

// The stride of an operand along a leading axis of the output, whose axes it has the last of.
int64_t LeadingStride(const Operand &operand, int leading, int axis) {
  const int own = axis - (leading - operand.leading);
  return operand.data == nullptr || own < 0 || operand.sizes[own] == 1 ? 0 : operand.strides[own];
}

}  // namespace

convscan_status OverLeadingAxes(const Operand *const *operands, int count, const int64_t *sizes, int leading, RunFolded run,
                                void *context) {
  Folded folded = {};
  folded.batch = 1;
  int axis = leading - 1;
  for (; axis >= 0; --axis) {
    if (sizes[axis] == 1) continue;
    bool folds = true;
    for (int k = 0; k < count && folded.batch > 1; ++k)
      folds = folds && LeadingStride(*operands[k], leading, axis) == folded.batch * folded.batch_strides[k];
    if (!folds) break;
    if (folded.batch == 1)
      for (int k = 0; k < count; ++k) folded.batch_strides[k] = LeadingStride(*operands[k], leading, axis);
    folded.batch *= sizes[axis];
  }
  int64_t turns = 1;
  for (int other = 0; other <= axis; ++other) turns *= sizes[other];
  for (int64_t turn = 0; turn < turns; ++turn) {
    for (int k = 0; k < count; ++k) {
      int64_t rest = turn, offset = 0;
      for (int other = axis; other >= 0; --other) {
        offset += rest % sizes[other] * LeadingStride(*operands[k], leading, other);
        rest /= sizes[other];
      }
      folded.data[k] = operands[k]->data == nullptr ? nullptr : operands[k]->data + operands[k]->element * offset;
    }
    const convscan_status status = run(context, folded);
    if (status != CONVSCAN_OK) return status;
  }
  return CONVSCAN_OK;
}

namespace {

int PoolThreads(void *) { return static_cast<int>(::executorch::extension::get_thread_count()); }

void RunInPool(void *, int64_t count, int, void (*task)(void *, int64_t), void *context) {
  const auto work = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) task(context, i);
  };
  if (!::executorch::extension::parallel_for(0, count, 1, work)) work(0, count);
}

constexpr convscan_pool kPool = {nullptr, PoolThreads, RunInPool};

}  // namespace

HostPool::HostPool() { convscan_use_pool(&kPool); }
HostPool::~HostPool() { convscan_use_pool(nullptr); }

void Fail(KernelRuntimeContext &context, const char *name, const char *what, Error error) {
  ET_LOG(Error, "convscan::%s: %s", name, what);
  context.fail(error);
}

void Report(KernelRuntimeContext &context, const char *name, convscan_status status) {
  if (status == CONVSCAN_OK) return;
  const Error error = status == CONVSCAN_OUT_OF_MEMORY ? Error::MemoryAllocationFailed
                      : status == CONVSCAN_UNSUPPORTED ? Error::NotSupported
                                                       : Error::InvalidArgument;
  Fail(context, name, convscan_status_message(status), error);
}

bool Resize(KernelRuntimeContext &context, const char *name, Tensor &out, const SizesType *sizes, size_t count) {
  const Error error = ::executorch::runtime::resize_tensor(out, {sizes, count});
  if (error != Error::Ok) Fail(context, name, "the output cannot have the shape of this input", error);
  return error == Error::Ok;
}

bool IsPlain(const Tensor &tensor) {
  return tensor.dim() <= kMaxLeading && ::executorch::runtime::tensor_is_default_dim_order(tensor);
}

Boundaries ReadBoundaries(KernelRuntimeContext &context, const char *name, const OptionalTensor &cu_seqlens) {
  Boundaries found;
  if (!cu_seqlens.has_value()) return found;
  const Tensor &tensor = *cu_seqlens;
  found.sequences = static_cast<int64_t>(tensor.numel()) - 1;
  if (tensor.scalar_type() == ScalarType::Long) {
    found.values = tensor.const_data_ptr<int64_t>();
  } else if (tensor.scalar_type() == ScalarType::Int) {
    const auto memory = context.allocate_temp(static_cast<size_t>(tensor.numel()) * sizeof(int64_t), alignof(int64_t));
    if (memory.ok()) {
      int64_t *const values = static_cast<int64_t *>(memory.get());
      for (ssize_t k = 0; k < tensor.numel(); ++k) values[k] = tensor.const_data_ptr<int32_t>()[k];
      found.values = values;
    }
  }
  found.failed = found.values == nullptr || found.sequences < 0;
  if (found.failed) Fail(context, name, "cu_seqlens must be int32 or int64, and there must be memory to read them");
  return found;
}

}  // namespace convscan::executorch_operators
