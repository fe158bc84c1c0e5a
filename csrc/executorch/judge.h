/* What a library of kernels has that is handed in to be judged (convscan device submit kernels.so): C functions of these
 * names, one or both of the first two. They return 0, or another number for a shape that they do not run.
 *
 *   causal_conv        y[n,i] = sum_k h[n,k] x[n,i-k];  x, y (channels, length), h (channels, taps)
 *   linear_recurrence  y[n,i] = a[n,i] y[n,i-1] + x[n,i], y[n,-1] = y_init[n];  a, x, y (channels, length), y_init (channels)
 *   workspace_bytes    the most scratch memory that was held since the library was loaded
 *
 * All of float, time contiguous. threads is how many may be used; 0: all. */
#ifndef CONVSCAN_JUDGE_H
#define CONVSCAN_JUDGE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct judge_shape {
  int64_t channels, length, taps;
  int threads;
} judge_shape;

typedef int judge_causal_conv(const judge_shape *shape, const float *x, const float *h, float *y);
typedef int judge_linear_recurrence(const judge_shape *shape, const float *y_init, const float *a, const float *x, float *y);
typedef int64_t judge_workspace_bytes(void);

#ifdef __cplusplus
}
#endif
#endif
