// The gated delta rule.
#include "api/run.h"

using namespace convscan;

namespace {

// The states of a problem, which may be absent.
void AddState(Arrays &arrays, const convscan_delta_rule &p, const void *address, const int64_t (&strides)[5]) {
  const int64_t element = ComputeBytes(p.dtype);
  Array state = {reinterpret_cast<uintptr_t>(address), element, {p.batch, p.sequences, p.heads, p.keys, p.values}, {}};
  for (int i = 0; i < kAxes; ++i) state.strides[i] = strides[i];
  if (p.keys != 0 && p.values != 0) arrays.Add(state, element);
}

// A signal of heads, or of groups of them; false where it has elements and no memory.
bool AddHeads(Arrays &arrays, const convscan_delta_rule &p, const void *address, int64_t element, int64_t heads,
              int64_t channels, const convscan_head_strides &strides) {
  if (p.length == 0 || channels == 0) return true;
  arrays.Add(Heads(address, element, p.batch, p.length, heads, channels, strides), element);
  return address != nullptr;
}

// Everything of the problem but its outputs.
convscan_status CheckInputs(const convscan_delta_rule &p, Arrays &in) {
  if (!IsKnown(p.dtype) || !HeadSizesAreValid(p)) return CONVSCAN_INVALID_ARGUMENT;
  if (!IsReal(p.dtype) || p.dtype == CONVSCAN_WIDE_FLOAT32) return CONVSCAN_UNSUPPORTED;
  if (p.batch == 0 || p.heads == 0) return CONVSCAN_OK;
  const int64_t element = ElementBytes(p.dtype), arithmetic = ComputeBytes(p.dtype);
  const bool complete = AddHeads(in, p, p.q, element, p.groups, p.keys, p.q_strides) &&
                        AddHeads(in, p, p.k, element, p.groups, p.keys, p.k_strides) &&
                        AddHeads(in, p, p.v, element, p.heads, p.values, p.v_strides) &&
                        AddHeads(in, p, p.g, arithmetic, p.heads, p.per_key ? p.keys : 1, p.g_strides) &&
                        AddHeads(in, p, p.beta, arithmetic, p.heads, 1, p.beta_strides);
  return complete && in.AreValid() ? CONVSCAN_OK : CONVSCAN_INVALID_ARGUMENT;
}

convscan_status Check(const convscan_delta_rule *p) {
  if (p == nullptr) return CONVSCAN_INVALID_ARGUMENT;
  Arrays in, out;
  const convscan_status status = CheckInputs(*p, in);
  if (status != CONVSCAN_OK || p->batch == 0 || p->heads == 0) return status;
  const bool complete = AddHeads(out, *p, p->y, ElementBytes(p->dtype), p->heads, p->values, p->y_strides);
  AddState(out, *p, p->last, p->last_strides);
  // In place, a state is read before it is written: exactly the same memory is no conflict.
  bool in_place = p->initial == p->last;
  for (int i = 0; i < kAxes; ++i) in_place = in_place && p->initial_strides[i] == p->last_strides[i];
  if (!in_place) AddState(in, *p, p->initial, p->initial_strides);
  return complete && in.AreValid() && out.AreValid() && AreApart(in, out) ? CONVSCAN_OK : CONVSCAN_INVALID_ARGUMENT;
}

convscan_status Check(const convscan_delta_rule_gradient *p) {
  if (p == nullptr) return CONVSCAN_INVALID_ARGUMENT;
  const convscan_delta_rule &f = p->forward;
  Arrays in, out;
  const convscan_status status = CheckInputs(f, in);
  if (status != CONVSCAN_OK || f.batch == 0 || f.heads == 0) return status;
  const int64_t element = ElementBytes(f.dtype), arithmetic = ComputeBytes(f.dtype);
  const bool complete = AddHeads(in, f, p->dy, element, f.heads, f.values, p->dy_strides) &&
                        AddHeads(out, f, p->dq, arithmetic, f.heads, f.keys, p->dq_strides) &&
                        AddHeads(out, f, p->dk, arithmetic, f.heads, f.keys, p->dk_strides) &&
                        AddHeads(out, f, p->dv, element, f.heads, f.values, p->dv_strides) &&
                        AddHeads(out, f, p->dg, arithmetic, f.heads, f.per_key ? f.keys : 1, p->dg_strides) &&
                        AddHeads(out, f, p->dbeta, arithmetic, f.heads, 1, p->dbeta_strides);
  AddState(in, f, f.initial, f.initial_strides);
  AddState(in, f, p->dlast, p->dlast_strides);
  AddState(out, f, p->dinitial, p->dinitial_strides);
  return complete && in.AreValid() && out.AreValid() && AreApart(in, out) ? CONVSCAN_OK : CONVSCAN_INVALID_ARGUMENT;
}

bool IsEmpty(const convscan_delta_rule &p) { return p.batch == 0 || p.heads == 0; }
bool IsEmpty(const convscan_delta_rule_gradient &p) { return IsEmpty(p.forward); }

}  // namespace

extern "C" {

convscan_status convscan_delta_rule_chunked(const convscan_delta_rule *p) {
  return Run(p, Check(p), IsEmpty, &Kernels::delta_rule_chunked);
}
convscan_status convscan_delta_rule_gradient_chunked(const convscan_delta_rule_gradient *p) {
  return Run(p, Check(p), IsEmpty, &Kernels::delta_rule_gradient_chunked);
}

}  // extern "C"
