// Linear attention with decay.
#include "api/run.h"

using namespace convscan;

namespace {

// The states of a problem, of which those that are not given are left out.
void AddState(Arrays &arrays, const convscan_attention_state &of, int64_t element, const convscan_attention &p) {
  Array s = {reinterpret_cast<uintptr_t>(of.s), element, {p.batch, p.sequences, p.heads, p.keys, p.values}, {}};
  Array n = {reinterpret_cast<uintptr_t>(of.n), element, {p.batch, p.sequences, p.heads, p.keys, 1}, {}};
  for (int i = 0; i < kAxes; ++i) s.strides[i] = of.s_strides[i];
  for (int i = 0; i < 4; ++i) n.strides[i] = of.n_strides[i];
  if (p.keys == 0) return;
  if (p.values != 0) arrays.Add(s, element);
  arrays.Add(n, element);
}

// Everything of the problem but its outputs.
convscan_status CheckInputs(const convscan_attention &p, Arrays &in) {
  if (!IsKnown(p.dtype) || !HeadSizesAreValid(p)) return CONVSCAN_INVALID_ARGUMENT;
  if (!IsReal(p.dtype)) return CONVSCAN_UNSUPPORTED;
  if (p.batch == 0 || p.heads == 0) return CONVSCAN_OK;
  const int64_t element = ElementBytes(p.dtype), arithmetic = ComputeBytes(p.dtype);
  if (p.length != 0) {
    if (p.keys != 0) {
      if (p.q == nullptr || p.k == nullptr) return CONVSCAN_INVALID_ARGUMENT;
      in.Add(Heads(p.q, element, p.batch, p.length, p.groups, p.keys, p.q_strides), element);
      in.Add(Heads(p.k, element, p.batch, p.length, p.groups, p.keys, p.k_strides), element);
    }
    const int64_t decays = p.per_key ? p.keys : 1;
    if ((p.values != 0 && p.v == nullptr) || (decays != 0 && p.g == nullptr)) return CONVSCAN_INVALID_ARGUMENT;
    if (p.values != 0) in.Add(Heads(p.v, element, p.batch, p.length, p.heads, p.values, p.v_strides), element);
    if (decays != 0) in.Add(Heads(p.g, arithmetic, p.batch, p.length, p.heads, decays, p.g_strides), arithmetic);
    in.Add(Heads(p.w, arithmetic, p.batch, p.length, p.heads, 1, p.w_strides), arithmetic);
  }
  if (p.values != 0)
    in.Add(Plane(p.skip, arithmetic, p.heads, p.values, p.skip_head_stride, p.skip_channel_stride), arithmetic);
  AddState(in, p.initial, arithmetic, p);
  return in.AreValid() ? CONVSCAN_OK : CONVSCAN_INVALID_ARGUMENT;
}

convscan_status Check(const convscan_attention *p) {
  if (p == nullptr) return CONVSCAN_INVALID_ARGUMENT;
  Arrays in, out;
  const convscan_status status = CheckInputs(*p, in);
  if (status != CONVSCAN_OK || p->batch == 0 || p->heads == 0) return status;
  const int64_t element = ElementBytes(p->dtype), arithmetic = ComputeBytes(p->dtype);
  if (p->length != 0) {
    if (p->values != 0 && p->y == nullptr) return CONVSCAN_INVALID_ARGUMENT;
    if (p->values != 0) out.Add(Heads(p->y, element, p->batch, p->length, p->heads, p->values, p->y_strides), element);
    out.Add(Heads(p->sums, arithmetic, p->batch, p->length, p->heads, 1, p->sums_strides), arithmetic);
  }
  AddState(out, p->final, arithmetic, *p);
  return out.AreValid() && AreApart(in, out) ? CONVSCAN_OK : CONVSCAN_INVALID_ARGUMENT;
}

convscan_status Check(const convscan_attention_gradient *p) {
  if (p == nullptr) return CONVSCAN_INVALID_ARGUMENT;
  const convscan_attention &f = p->forward;
  Arrays in, out;
  const convscan_status status = CheckInputs(f, in);
  if (status != CONVSCAN_OK || f.batch == 0 || f.heads == 0) return status;
  if (p->block < 1 || (p->dsums != nullptr && !p->has_sums)) return CONVSCAN_INVALID_ARGUMENT;
  const int64_t element = ElementBytes(f.dtype), arithmetic = ComputeBytes(f.dtype);
  const int64_t in_group = f.heads / f.groups, blocks = in_group / p->block + (in_group % p->block != 0);
  const auto of_blocks = [&](void *address, const convscan_head_strides &s, int64_t block_stride) {
    Array array = Heads(address, arithmetic, f.batch, f.length, f.groups, f.keys, s);
    array.sizes[4] = blocks;
    array.strides[4] = block_stride;
    out.Add(array, arithmetic);
  };
  if (f.length != 0) {
    if (f.values != 0) {
      if (p->dy == nullptr || p->dv == nullptr) return CONVSCAN_INVALID_ARGUMENT;
      in.Add(Heads(p->dy, element, f.batch, f.length, f.heads, f.values, p->dy_strides), element);
      out.Add(Heads(p->dv, element, f.batch, f.length, f.heads, f.values, p->dv_strides), element);
    }
    in.Add(Heads(p->dsums, arithmetic, f.batch, f.length, f.heads, 1, p->dsums_strides), arithmetic);
    const int64_t decays = f.per_key ? f.keys : 1;
    if ((f.keys != 0 && (p->dq == nullptr || p->dk == nullptr)) || (decays != 0 && p->dg == nullptr))
      return CONVSCAN_INVALID_ARGUMENT;
    if (f.keys != 0) {
      of_blocks(p->dq, p->dq_strides, p->dq_block_stride);
      of_blocks(p->dk, p->dk_strides, p->dk_block_stride);
    }
    if (decays != 0) out.Add(Heads(p->dg, arithmetic, f.batch, f.length, f.heads, decays, p->dg_strides), arithmetic);
    out.Add(Heads(p->dw, arithmetic, f.batch, f.length, f.heads, 1, p->dw_strides), arithmetic);
  }
  AddState(in, p->dfinal, arithmetic, f);
  AddState(out, p->dinitial, arithmetic, f);
  return in.AreValid() && out.AreValid() && AreApart(in, out) ? CONVSCAN_OK : CONVSCAN_INVALID_ARGUMENT;
}

convscan_status Check(const convscan_attention_step *p) {
  if (p == nullptr || !SizesAreValid(p->batch, p->heads, p->keys, p->threads) ||
      !SizesAreValid(p->batch, p->heads, p->values, 0) || !IsKnown(p->dtype) || p->gates < CONVSCAN_GATES_DECAY ||
      p->gates > CONVSCAN_GATES_DELTA || p->groups < 0)
    return CONVSCAN_INVALID_ARGUMENT;
  if (p->heads != 0 && (p->groups == 0 || p->heads % p->groups != 0)) return CONVSCAN_INVALID_ARGUMENT;
  int64_t state;
  if (__builtin_mul_overflow(p->keys, p->values, &state) || !SizesAreValid(p->batch, p->heads, state, 0))
    return CONVSCAN_INVALID_ARGUMENT;
  if (!IsReal(p->dtype)) return CONVSCAN_UNSUPPORTED;
  if (p->batch == 0 || p->heads == 0) return CONVSCAN_OK;
  const int64_t element = ElementBytes(p->dtype), arithmetic = ComputeBytes(p->dtype);
  const bool is_mlstm = p->gates == CONVSCAN_GATES_MLSTM, is_ssd = p->gates == CONVSCAN_GATES_SSD;
  const int64_t decays = p->per_key && !is_mlstm && !is_ssd ? p->keys : 1;
  Arrays in, out;
  bool complete = true;
  const auto add = [&](Arrays &to, const void *address, int64_t bytes, int64_t heads, int64_t channels,
                       const convscan_step_strides &s, bool is_needed) {
    if (heads * channels == 0) return;
    complete = complete && (address != nullptr || !is_needed);
    to.Add(Heads(address, bytes, p->batch, 1, heads, channels, {s.batch, 0, s.head, s.channel}), bytes);
  };
  add(in, p->q, element, p->groups, p->keys, p->q_strides, true);
  add(in, p->k, element, p->groups, p->keys, p->k_strides, true);
  add(in, p->v, element, p->heads, p->values, p->v_strides, true);
  add(in, p->g, arithmetic, p->heads, decays, p->g_strides, true);
  add(in, p->i, arithmetic, p->heads, 1, p->i_strides, is_mlstm || p->gates == CONVSCAN_GATES_DELTA);
  add(in, p->bias, arithmetic, p->heads, 1, {0, p->bias_stride, 0}, false);
  add(in, p->rate, arithmetic, p->heads, 1, {0, p->rate_stride, 0}, is_ssd);
  add(in, p->skip, arithmetic, p->heads, p->values, {0, p->skip_head_stride, p->skip_channel_stride}, false);
  add(in, p->z, element, p->heads, p->values, p->z_strides, false);
  add(out, p->y, element, p->heads, p->values, p->y_strides, true);
  Array s = {reinterpret_cast<uintptr_t>(p->s), arithmetic, {p->batch, p->heads, p->keys, p->values, 1}, {}};
  for (int i = 0; i < 4; ++i) s.strides[i] = p->s_strides[i];
  Array n = {reinterpret_cast<uintptr_t>(p->n), arithmetic, {p->batch, p->heads, p->keys, 1, 1}, {}};
  for (int i = 0; i < 3; ++i) n.strides[i] = p->n_strides[i];
  Array m = {reinterpret_cast<uintptr_t>(p->m), arithmetic, {p->batch, p->heads, 1, 1, 1}, {}};
  for (int i = 0; i < 2; ++i) m.strides[i] = p->m_strides[i];
  if (state != 0) out.Add(s, arithmetic);
  if (p->keys != 0) out.Add(n, arithmetic);
  out.Add(m, arithmetic);
  complete = complete && (state == 0 || p->s != nullptr) &&
             (!is_mlstm || (p->m != nullptr && (p->keys == 0 || p->n != nullptr)));
  return complete && in.AreValid() && out.AreValid() && AreApart(in, out) ? CONVSCAN_OK : CONVSCAN_INVALID_ARGUMENT;
}

bool IsEmpty(const convscan_attention_step &p) { return p.batch == 0 || p.heads == 0; }
bool IsEmpty(const convscan_attention &p) { return p.batch == 0 || p.heads == 0; }
bool IsEmpty(const convscan_attention_gradient &p) { return IsEmpty(p.forward); }

}  // namespace

extern "C" {

convscan_status convscan_attention_chunked(const convscan_attention *p) {
  return Run(p, Check(p), IsEmpty, &Kernels::attention_chunked);
}
convscan_status convscan_attention_gradient_chunked(const convscan_attention_gradient *p) {
  return Run(p, Check(p), IsEmpty, &Kernels::attention_gradient_chunked);
}
convscan_status convscan_attention_step_in_place(const convscan_attention_step *p) {
  return Run(p, Check(p), IsEmpty, &Kernels::attention_step);
}

}  // extern "C"
