// convscan_executorch::causal_conv.out: convolutions, causal and two-sided, with all that they take in Python.
#include <string_view>

#include "executorch/call.h"

namespace convscan::executorch_operators {
namespace {

enum Index { kX, kH, kBias, kState, kPreGate, kPostGate, kOut, kOperands };

Tensor &CausalConv(KernelRuntimeContext &context, const Tensor &x, const Tensor &h, const OptionalTensor &bias,
                   const OptionalTensor &initial_state, const OptionalTensor &pre_gate, const OptionalTensor &post_gate,
                   const OptionalTensor &cu_seqlens, std::optional<std::string_view> activation, int64_t origin,
                   bool transposed, std::string_view precision, executorch::aten::ArrayRef<int64_t> views,
                   int64_t channels, Tensor &out) {
  constexpr const char *kName = "causal_conv";
  convscan_conv problem = {};
  const OptionalTensor *const optional[] = {&bias, &initial_state, &pre_gate, &post_gate, &cu_seqlens};
  bool fits = views.size() == 12 && x.dim() >= 2 && h.dim() >= 2 && IsPlain(x) && IsPlain(h) &&
              Dtype(x, &problem.dtype) && h.scalar_type() == x.scalar_type();
  for (const OptionalTensor *tensor : optional)
    fits = fits && (!tensor->has_value() || (IsPlain(**tensor) && (tensor == &cu_seqlens ||
                                                                   (*tensor)->scalar_type() == x.scalar_type())));
  if (!fits) return Fail(context, kName, "tensors must be dense, of one real floating point type"), out;
  const auto view = [&](int index) { return View{views[2 * index] != 0, views[2 * index + 1]}; };
  const Boundaries boundaries = ReadBoundaries(context, kName, cu_seqlens);
  if (boundaries.failed) return out;

  Operand all[kOperands];
  all[kX] = Read(x, view(0), channels);
  all[kH] = Read(h, view(1), 0);
  all[kBias] = Read(bias, {false, 0}, 0, 1);
  all[kState] = Read(initial_state, view(2), 0, cu_seqlens.has_value() ? 3 : 2);
  all[kPreGate] = Read(pre_gate, view(3), channels);
  all[kPostGate] = Read(post_gate, view(4), channels);

  SizesType sizes[kMaxLeading + 2];
  const size_t axes = static_cast<size_t>(x.dim());
  for (size_t axis = 0; axis + 2 < axes; ++axis) sizes[axis] = x.size(static_cast<ssize_t>(axis));
  const bool out_time_last = views[10] != 0;
  sizes[axes - (out_time_last ? 1 : 2)] = static_cast<SizesType>(all[kX].times);
  sizes[axes - (out_time_last ? 2 : 1)] = static_cast<SizesType>(channels);
  if (!Resize(context, kName, out, sizes, axes)) return out;
  all[kOut] = Read(out, view(5), 0);

  problem.length = all[kX].times;
  problem.channels = channels;
  problem.taps = all[kH].times;
  problem.origin = transposed ? problem.taps - 1 - origin : origin;
  if (activation.has_value()) {
    if (*activation != "silu" && *activation != "gelu") return Fail(context, kName, "unknown activation"), out;
    problem.activation = *activation == "silu" ? CONVSCAN_SILU : CONVSCAN_GELU;
  }
  if (precision == "high" && problem.dtype == CONVSCAN_FLOAT32) problem.dtype = CONVSCAN_WIDE_FLOAT32;
  problem.h_tap_stride = transposed ? -all[kH].time_stride : all[kH].time_stride;
  const bool shared = all[kH].channels == 1;
  if (!shared && (all[kH].channels < 1 || channels % all[kH].channels != 0))
    return Fail(context, kName, "h must have a filter for each channel, one for all, or one for equal groups"), out;
  problem.h_channel_stride = shared ? 0 : all[kH].channel_stride;
  problem.filter_group = shared ? 1 : channels / all[kH].channels;
  problem.bias_stride = all[kBias].channel_stride;
  problem.sequences = boundaries.sequences;
  problem.boundaries = boundaries.values;
  if (all[kState].data != nullptr) {
    if (problem.taps == 1) {
      all[kState].data = nullptr;
    } else if (cu_seqlens.has_value()) {
      problem.state_sequence_stride = all[kState].times * all[kState].channels;
    }
  }

  const Operand *operands[kOperands];
  for (int k = 0; k < kOperands; ++k) operands[k] = &all[k];
  const auto strides = [&](int k, const Folded &folded) {
    const Operand &one = all[k];
    return convscan_strides{folded.batch_strides[k], one.times == 1 && problem.length != 1 ? 0 : one.time_stride,
                            one.channels == 1 && channels != 1 ? 0 : one.channel_stride};
  };
  const HostPool pool;
  Report(context, kName, OverLeadingAxes(operands, kOperands, all[kX], [&](const Folded &folded) {
    convscan_conv one = problem;
    one.batch = folded.batch;
    one.x = folded.data[kX];
    one.x_strides = strides(kX, folded);
    one.h = folded.data[kH] + (transposed ? all[kH].element * (problem.taps - 1) * all[kH].time_stride : 0);
    one.h_batch_stride = folded.batch_strides[kH];
    one.bias = folded.data[kBias];
    one.pre_gate = folded.data[kPreGate];
    one.pre_gate_strides = strides(kPreGate, folded);
    one.post_gate = folded.data[kPostGate];
    one.post_gate_strides = strides(kPostGate, folded);
    one.state = folded.data[kState];
    one.state_strides = {folded.batch_strides[kState], all[kState].time_stride, all[kState].channel_stride};
    one.y = folded.data[kOut];
    one.y_strides = {folded.batch_strides[kOut], all[kOut].time_stride, all[kOut].channel_stride};
    return convscan_conv_auto(&one);
  }));
  return out;
}

EXECUTORCH_LIBRARY(convscan_executorch, "causal_conv.out", CausalConv);

}  // namespace
}  // namespace convscan::executorch_operators
