// convscan_executorch::linear_recurrence.out.
#include "executorch/call.h"

namespace convscan::executorch_operators {
namespace {

enum Index { kX, kStart, kA, kOut, kOperands };

Tensor &LinearRecurrence(KernelRuntimeContext &context, const Tensor &x, const OptionalTensor &y_init, const Tensor &a,
                         const OptionalTensor &cu_seqlens, bool reverse, executorch::aten::ArrayRef<int64_t> views,
                         int64_t channels, Tensor &out) {
  constexpr const char *kName = "linear_recurrence";
  convscan_scan problem = {};
  const bool fits = views.size() == 6 && x.dim() >= 2 && IsPlain(x) && IsPlain(a) && Dtype(x, &problem.dtype) &&
                    a.scalar_type() == x.scalar_type() &&
                    (!y_init.has_value() || (IsPlain(*y_init) && y_init->scalar_type() == x.scalar_type()));
  if (!fits) return Fail(context, kName, "tensors must be dense, of one real floating point type"), out;
  const auto view = [&](int index) { return View{views[2 * index] != 0, views[2 * index + 1]}; };
  const Boundaries boundaries = ReadBoundaries(context, kName, cu_seqlens);
  if (boundaries.failed) return out;

  Operand all[kOperands];
  all[kX] = Read(x, view(0), channels);
  all[kA] = Read(a, view(1), channels);
  const bool packed = cu_seqlens.has_value();
  all[kStart] = Read(y_init, {false, 0}, 0, packed ? 2 : 1);

  SizesType sizes[kMaxLeading + 2];
  const size_t axes = static_cast<size_t>(x.dim());
  for (size_t axis = 0; axis + 2 < axes; ++axis) sizes[axis] = x.size(static_cast<ssize_t>(axis));
  const bool out_time_last = views[4] != 0;
  sizes[axes - (out_time_last ? 1 : 2)] = static_cast<SizesType>(all[kX].times);
  sizes[axes - (out_time_last ? 2 : 1)] = static_cast<SizesType>(channels);
  if (!Resize(context, kName, out, sizes, axes)) return out;
  all[kOut] = Read(out, view(2), 0);

  problem.length = all[kX].times;
  problem.channels = channels;
  problem.reverse = reverse;
  problem.sequences = boundaries.sequences;
  problem.boundaries = boundaries.values;
  problem.y_init_channel_stride = all[kStart].channel_stride;
  problem.y_init_sequence_stride = packed ? all[kStart].time_stride : 0;

  const Operand *operands[kOperands];
  for (int k = 0; k < kOperands; ++k) operands[k] = &all[k];
  const HostPool pool;
  Report(context, kName, OverLeadingAxes(operands, kOperands, all[kX], [&](const Folded &folded) {
    convscan_scan one = problem;
    const auto strides = [&](int k) {
      return convscan_strides{folded.batch_strides[k], all[k].times == 1 && one.length != 1 ? 0 : all[k].time_stride,
                              all[k].channels == 1 && channels != 1 ? 0 : all[k].channel_stride};
    };
    one.batch = folded.batch;
    one.x = folded.data[kX];
    one.x_strides = strides(kX);
    one.a = folded.data[kA];
    one.a_strides = strides(kA);
    one.y_init = folded.data[kStart];
    one.y_init_batch_stride = folded.batch_strides[kStart];
    one.y = folded.data[kOut];
    one.y_strides = strides(kOut);
    return convscan_scan_auto(&one);
  }));
  return out;
}

EXECUTORCH_LIBRARY(convscan_executorch, "linear_recurrence.out", LinearRecurrence);

}  // namespace
}  // namespace convscan::executorch_operators
