// A head's state between the caller's memory and a task's.
#pragma once

#include "chunk/tile.h"

namespace convscan::CONVSCAN_ISA {

// The addresses of one head's S and n; null where there are none.
template <class T>
struct HeadState {
  T *s = nullptr, *n = nullptr;
  int64_t s_key, s_value, n_key;

  HeadState(const convscan_attention_state &of, int64_t batch, int64_t sequence, int64_t head)
      : s_key(of.s_strides[3]), s_value(of.s_strides[4]), n_key(of.n_strides[3]) {
    if (of.s != nullptr)
      s = static_cast<T *>(of.s) + batch * of.s_strides[0] + sequence * of.s_strides[1] + head * of.s_strides[2];
    if (of.n != nullptr)
      n = static_cast<T *>(of.n) + batch * of.n_strides[0] + sequence * of.n_strides[1] + head * of.n_strides[2];
  }
};

// to[keys][values] = these columns of a state, n behind them, with zeros around.
template <class T>
void LoadState(const convscan_attention_state &from, const convscan_attention &p, int64_t batch, int64_t sequence,
               int64_t head, const Columns &columns, const TileSizes &sizes, T *to) {
  const HeadState<T> state(from, batch, sequence, head);
  __builtin_memset(to, 0, sizeof(T) * static_cast<size_t>(sizes.keys * sizes.values));
  for (int64_t i = 0; i < p.keys; ++i, to += sizes.values) {
    if (state.s != nullptr)
      for (int64_t c = 0; c < columns.count; ++c)
        to[c] = state.s[i * state.s_key + (columns.first + c) * state.s_value];
    if (state.n != nullptr && columns.has_sum) to[columns.count] = state.n[i * state.n_key];
  }
}

template <class T>
void StoreState(const convscan_attention_state &to, const convscan_attention &p, int64_t batch, int64_t sequence,
                int64_t head, const Columns &columns, const TileSizes &sizes, const T *from) {
  const HeadState<T> state(to, batch, sequence, head);
  for (int64_t i = 0; i < p.keys; ++i, from += sizes.values) {
    if (state.s != nullptr)
      for (int64_t c = 0; c < columns.count; ++c)
        state.s[i * state.s_key + (columns.first + c) * state.s_value] = from[c];
    if (state.n != nullptr && columns.has_sum) state.n[i * state.n_key] = from[columns.count];
  }
}

}  // namespace convscan::CONVSCAN_ISA
