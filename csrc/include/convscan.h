/* convscan: causal convolutions and linear recurrences over (batch, time, channel) arrays.
 *
 * A plain C interface: no exceptions cross it, it needs neither Python nor PyTorch, and every function
 * returns a status. All sizes are counts of elements, all strides are in elements (never bytes) and may
 * be negative or zero except where noted. Arrays are aligned to their element type.
 *
 *   convolution   y[b,i,n] = act( post[b,i,n] (sum_k h[k,n] pre[b,j,n] x[b,j,n] + bias[n]) ),   j = i+origin-k
 *   recurrence    y[b,i,n] = a[b,i,n] y[b,i-1,n] + x[b,i,n],   y[b,-1,n] = y_init[b,n]
 *   selective     recurrences with several states per channel, whose coefficients the input chooses
 *
 * The output may be the input itself (same address, same strides); any other overlap is refused.
 */
#ifndef CONVSCAN_H
#define CONVSCAN_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define CONVSCAN_API __attribute__((visibility("default")))

typedef enum convscan_status {
  CONVSCAN_OK = 0,
  CONVSCAN_OUT_OF_MEMORY = 1,    /* workspace could not be allocated; nothing was written */
  CONVSCAN_INVALID_ARGUMENT = 2, /* null pointer, bad size or enumerator, misaligned or overlapping memory */
  CONVSCAN_UNSUPPORTED = 3       /* this kernel does not run this dtype or these strides; another one does */
} convscan_status;

typedef enum convscan_dtype {
  CONVSCAN_FLOAT32 = 0,
  CONVSCAN_FLOAT64 = 1,
  CONVSCAN_BFLOAT16 = 2, /* half types are stored half and computed in float32 */
  CONVSCAN_FLOAT16 = 3,
  CONVSCAN_COMPLEX64 = 4, /* interleaved real and imaginary parts */
  CONVSCAN_COMPLEX128 = 5,
  CONVSCAN_WIDE_FLOAT32 = 6 /* float32 in memory, float64 in arithmetic; convolutions only */
} convscan_dtype;

typedef enum convscan_activation {
  CONVSCAN_IDENTITY = 0,
  CONVSCAN_SILU = 1, /* z / (1 + exp(-z)) */
  CONVSCAN_GELU = 2  /* z (1 + erf(z / sqrt 2)) / 2 */
} convscan_activation;

/* How kept spectra are stored: as they were computed, or rounded to bfloat16 (relative error 2^-9 of each number). */
typedef enum convscan_spectrum_storage {
  CONVSCAN_SPECTRUM_FULL = 0,
  CONVSCAN_SPECTRUM_BFLOAT16 = 1
} convscan_spectrum_storage;

typedef struct convscan_strides {
  int64_t batch, time, channel;
} convscan_strides;

/* y[b,i,n] = act( post_gate[b,i,n] (sum_k h[k,n] u[b,i+origin-k,n] + bias[n]) ), 0 <= k < taps, where u is x times
 * pre_gate. Samples of u outside 0 <= t < length are zero, except that, where `state` is given (origin = 0 only),
 * u[b,-(taps-1)+j,n] = state[b,j,n], 0 <= j < taps-1. Any stride of a gate may be zero.
 *
 * With `boundaries`, sequences lie behind one another along time: sequence s has the steps boundaries[s] <= t <
 * boundaries[s+1] and is a convolution of its own, with its own state. */
typedef struct convscan_conv {
  int64_t batch, length, channels, taps;
  int64_t origin; /* 0 <= origin < taps: 0 is causal, taps-1 anti-causal */
  convscan_dtype dtype;
  convscan_activation activation;
  const void *x;
  convscan_strides x_strides;
  const void *h;
  int64_t h_tap_stride, h_channel_stride; /* channel stride 0: one filter for all channels */
  int64_t h_batch_stride;                 /* 0: the same filters for all of the batch */
  int64_t filter_group;                   /* channel n has filter n / filter_group; 0 is 1 */
  const void *bias;                       /* null for none */
  int64_t bias_stride, bias_batch_stride;
  const void *pre_gate; /* null for none */
  convscan_strides pre_gate_strides;
  const void *post_gate; /* null for none */
  convscan_strides post_gate_strides;
  const void *state; /* null for zeros */
  convscan_strides state_strides;
  int64_t sequences;
  const int64_t *boundaries; /* sequences + 1, from 0 to length, none below the one before it; null for one sequence */
  int64_t state_sequence_stride;
  void *y;
  convscan_strides y_strides;
  int threads; /* 0: as many as the host uses */
} convscan_conv;

/* Register-tiled sum, lanes over channels or over segments of time. */
CONVSCAN_API convscan_status convscan_conv_direct(const convscan_conv *problem);
/* Blocked product with the Toeplitz matrix T[i,j] = h[i-j], which is never stored. */
CONVSCAN_API convscan_status convscan_conv_toeplitz(const convscan_conv *problem);
/* One complex FFT per block of time (see fft/transform.h). transform_length is the number of complex points, one of
 * convscan_fft_length()'s; 0 takes the smallest that needs a single block. Shorter ones overlap-save. */
CONVSCAN_API convscan_status convscan_conv_fft(const convscan_conv *problem, int64_t transform_length);
/* The same with spectra that convscan_filter_spectrum has made, for the same taps, of one filter (h_channel_stride 0) or
 * of one for each channel; h is not read. origin is 0, or taps-1, which takes the filters reversed in time: the transpose
 * of the convolution with origin 0. Blocks of time as above. */
CONVSCAN_API convscan_status convscan_conv_fft_kept(const convscan_conv *problem, int64_t transform_length,
                                                    const void *spectra, convscan_spectrum_storage storage);
/* The same with spectra of which only a part was kept, and with the pattern that was made along with them: transforms leave
 * out what meets nothing. A single block: 2 transform_length >= length + taps - 1;
 * no state and no boundaries. Without the dropped frequencies a filter
 * is as long as the transform and neither causal nor finite: this is the product of spectra, modulo X^2M + 1. */
CONVSCAN_API convscan_status convscan_conv_fft_sparse(const convscan_conv *problem, int64_t transform_length,
                                                      const void *spectra, convscan_spectrum_storage storage,
                                                      const void *pattern);
/* Companion form: one step at a time with taps-1 states per channel. */
CONVSCAN_API convscan_status convscan_conv_recurrence(const convscan_conv *problem);
/* The one of direct, toeplitz and fft that should be fastest on this instruction set, by the shipped table of costs. The
 * choice depends on sizes, dtype, memory order and the number of threads, never on a clock. */
CONVSCAN_API convscan_status convscan_conv_auto(const convscan_conv *problem);

/* The transforms of filters, to be kept. Their layout is opaque and that of the instruction set in use: with another one
 * they are to be made again. dtype is that of h and decides the arithmetic. */
typedef struct convscan_spectrum {
  int64_t filters, taps;
  int64_t transform_length; /* complex points, one of convscan_fft_length()'s; 2 transform_length >= taps */
  convscan_dtype dtype;
  convscan_spectrum_storage storage;
  const void *h;
  int64_t h_tap_stride, h_filter_stride;
  void *spectra; /* convscan_spectrum_bytes() of them, aligned to 64 bytes */
  /* Null keeps all frequencies. Otherwise one flag for each of (k + 1/2) / (2 transform_length) cycles a sample,
   * 0 <= k < transform_length: the spectrum is zero where the flag is. */
  const uint8_t *keep;
  void *pattern; /* where keep is given: convscan_pattern_bytes() in the same opaque order, aligned to 64 bytes */
  int threads;
} convscan_spectrum;

CONVSCAN_API convscan_status convscan_filter_spectrum(const convscan_spectrum *problem);
/* Bytes of the spectrum of one filter; 0 where the length is not supported. */
CONVSCAN_API int64_t convscan_spectrum_bytes(int64_t transform_length, convscan_dtype dtype,
                                             convscan_spectrum_storage storage);

CONVSCAN_API int64_t convscan_pattern_bytes(int64_t transform_length, convscan_dtype dtype);

/* Smallest supported transform of at least `points` complex points for dtype; 0 when there is none. */
CONVSCAN_API int64_t convscan_fft_length(int64_t points, convscan_dtype dtype);

/* dh[k,n] = sum_{b,i} dz_gate[b,i,n] dz[b,i,n] u[b,i+origin-k,n], the gradient of a convolution with respect to its
 * filter, where u is x times x_gate. u outside 0 <= t < length reads `state` (or zero) as above, and boundaries are those
 * of packed sequences. dh has the type of the arithmetic, float32 or float64, and is overwritten. Sums over the batch in
 * a fixed order, or, where dh_batch_stride is not 0, over each element of the batch for itself. */
typedef struct convscan_filter_gradient {
  int64_t batch, length, channels, taps;
  int64_t origin;
  convscan_dtype dtype;
  const void *x;
  convscan_strides x_strides;
  const void *x_gate; /* null for none */
  convscan_strides x_gate_strides;
  const void *dz;
  convscan_strides dz_strides;
  const void *dz_gate; /* null for none */
  convscan_strides dz_gate_strides;
  const void *state;
  convscan_strides state_strides;
  int64_t sequences;
  const int64_t *boundaries; /* null for one sequence */
  int64_t state_sequence_stride;
  void *dh;
  int64_t dh_tap_stride, dh_channel_stride; /* both non-zero: one gradient per channel */
  int64_t dh_batch_stride;
  int threads;
} convscan_filter_gradient;

CONVSCAN_API convscan_status convscan_filter_gradient_direct(const convscan_filter_gradient *problem);
CONVSCAN_API convscan_status convscan_filter_gradient_fft(const convscan_filter_gradient *problem,
                                                          int64_t transform_length);

/* Every gradient of y = act(post_gate (T(h) (pre_gate x) + bias)), see convscan_conv, from one pass over each channel: `filter`
 * has x, pre_gate as x_gate, the gradient of y as dz, post_gate as dz_gate, the state, boundaries and dh. What is not asked
 * for is null, dh too. Where `spectra` is given (of length transform_length, see convscan_filter_spectrum; origin 0), h is
 * not read. Empty problems and dh_batch_stride are not supported. Gradients of gates have the extents of x: the caller adds
 * up what a gate's stride of zero shares. dx may be the gradient of y itself, unless other gradients are asked for. */
typedef struct convscan_conv_gradient {
  convscan_filter_gradient filter; /* x, dy, gates, state, boundaries, dh, sizes, threads */
  const void *h;
  int64_t h_tap_stride, h_channel_stride; /* channel stride 0: one filter for all channels */
  int64_t filter_group;                   /* channel n has filter n / filter_group; 0 is 1 */
  const void *spectra;                    /* null for none */
  convscan_spectrum_storage storage;
  const void *bias; /* null for none */
  int64_t bias_stride;
  convscan_activation activation;
  void *dx;
  convscan_strides dx_strides;
  void *dpre_gate;
  convscan_strides dpre_gate_strides;
  void *dpost_gate;
  convscan_strides dpost_gate_strides;
  void *dstate;
  convscan_strides dstate_strides;
  int64_t dstate_sequence_stride;
  void *dbias; /* of the type of dh, summed over the batch */
  int64_t dbias_stride;
} convscan_conv_gradient;

/* Sums, for short filters, from tiles that go through the arrays once. No spectra; dx apart from the gradient of y. */
CONVSCAN_API convscan_status convscan_conv_gradient_direct(const convscan_conv_gradient *problem);
CONVSCAN_API convscan_status convscan_conv_gradient_fft(const convscan_conv_gradient *problem,
                                                        int64_t transform_length);

/* y[b,i,n] = a[b,i,n] y[b,i-1,n] + x[b,i,n]; with reverse, y[b,i,n] = a[b,i,n] y[b,i+1,n] + x[b,i,n] from the end.
 * Any stride of a may be zero. Strides count elements of the dtype (a complex number is one element). With `boundaries`,
 * sequence s has the steps boundaries[s] <= i < boundaries[s+1] and starts from y_init[b,s,n]; it may be empty. */
typedef struct convscan_scan {
  int64_t batch, length, channels;
  convscan_dtype dtype;
  int reverse;
  const void *x;
  convscan_strides x_strides;
  const void *a;
  convscan_strides a_strides;
  const void *y_init; /* null for zeros */
  int64_t y_init_batch_stride, y_init_channel_stride;
  void *y;
  convscan_strides y_strides;
  int threads;
  const int64_t *boundaries; /* null: one sequence. sequences + 1 values, from 0 to length, none below the one before */
  int64_t sequences, y_init_sequence_stride; /* not read without boundaries */
} convscan_scan;

/* One pass in time order. */
CONVSCAN_API convscan_status convscan_scan_sequential(const convscan_scan *problem);
/* Two passes over tiles of time: products and last states of each tile, then the tiles with their true start. */
CONVSCAN_API convscan_status convscan_scan_tiled(const convscan_scan *problem);
/* Work-efficient scan inside vector registers along time. */
CONVSCAN_API convscan_status convscan_scan_parallel(const convscan_scan *problem);
/* The one of these that should be fastest, chosen as convscan_conv_auto chooses. */
CONVSCAN_API convscan_status convscan_scan_auto(const convscan_scan *problem);

/* Gradients of the scan, one fused pass: g[i] = dy[i] + conj(a[i+1]) g[i+1], dx = g, da[i] = g[i] conj(y[i-1]),
 * dy_init = conj(a[0]) g[0] (mirrored for reverse). `forward` describes the forward call; its x is not read.
 * da has the extent 1 where its stride is zero: those axes are summed (fixed order). */
typedef struct convscan_scan_gradient {
  convscan_scan forward; /* a, y, y_init, sizes, reverse, threads */
  const void *dy;
  convscan_strides dy_strides;
  void *dx; /* may be dy itself */
  convscan_strides dx_strides;
  void *da; /* null when not needed */
  convscan_strides da_strides;
  void *dy_init; /* null when not needed */
  int64_t dy_init_batch_stride, dy_init_channel_stride;
  int64_t dy_init_sequence_stride; /* not read without boundaries */
} convscan_scan_gradient;

CONVSCAN_API convscan_status convscan_scan_gradient_sequential(const convscan_scan_gradient *problem);

/* Numbers for channels and states, in the type computed in: float32, float64 for float64, complex where is_complex. */
typedef struct convscan_states {
  void *data; /* null for zeros, or where not needed */
  int64_t batch, channel, state; /* strides */
  int64_t sequence;              /* another one, not read without boundaries */
} convscan_states;

/* B or C of a selective scan, in the same type: per step, shared by the channels of a group, or constant. */
typedef struct convscan_projection {
  const void *data;
  int is_constant;                    /* then `group` is the stride of channels, and batch and time do not count */
  int64_t batch, time, group, state; /* strides */
} convscan_projection;

/* The selective scan of Mamba: with dt = delta + delta_bias, or its softplus,
 *   h[b,t,d,n] = exp(dt a[d,n]) h[b,t-1,d,n] + dt u[b,t,d] B[b,t,g(d),n],
 *   y[b,t,d] = (sum_n C[b,t,g(d),n] h[b,t,d,n] + D[d] u[b,t,d]) silu(z[b,t,d]),
 * and y = 2 Re sum_n C h for complex numbers. D and delta_bias have the (real) type computed in. Channels per group:
 * channels / groups.
 *
 * With `boundaries`, sequences lie behind one another along time: sequence s has the steps boundaries[s] <= t <
 * boundaries[s+1], an initial and a final state of its own. */
typedef struct convscan_selective {
  int64_t batch, length, channels, states, groups;
  int64_t sequences;         /* 1 without boundaries */
  const int64_t *boundaries; /* sequences + 1, from 0 to length, none below the one before it; null for one sequence */
  convscan_dtype dtype; /* of u, delta, z and y: real */
  int is_complex;       /* a, B, C and states */
  int softplus;
  const void *u;
  convscan_strides u_strides;
  const void *delta;
  convscan_strides delta_strides;
  convscan_states a; /* the batch does not count */
  convscan_projection b, c;
  const void *d; /* null for none, as the following ones */
  int64_t d_stride;
  const void *z;
  convscan_strides z_strides;
  const void *delta_bias;
  int64_t delta_bias_stride;
  convscan_states initial_state;
  void *y;
  convscan_strides y_strides;
  convscan_states final_state; /* may be initial_state */
  void *checkpoints;           /* null, or where the gradient's convscan_selective_checkpoints() numbers go */
  int threads;
} convscan_selective;

/* Lanes over channels: a tile of time after the other. */
CONVSCAN_API convscan_status convscan_selective_over_channels(const convscan_selective *problem);
/* Lanes over states, for single steps and few channels. No checkpoints, no boundaries. */
CONVSCAN_API convscan_status convscan_selective_over_states(const convscan_selective *problem);
/* Gradients of the scan. `forward` describes the forward call with its checkpoints; its y and final_state are not used.
 * What inputs have in common is summed in a fixed order over time, but not over batch entries, nor over shards of
 * `shard_channels` channels of a group (fewer in its last one): the caller adds these up. Arrays without strides are
 * contiguous, in the type computed in. For complex numbers, gradients are those of real and imaginary parts. */
typedef struct convscan_selective_gradient {
  convscan_selective forward;
  const void *dy;
  convscan_strides dy_strides;
  convscan_states dfinal_state;
  void *du;
  convscan_strides du_strides;
  void *ddelta;
  convscan_strides ddelta_strides;
  void *dz; /* where there is z */
  convscan_strides dz_strides;
  void *da;           /* (batch, channels, states) */
  void *db, *dc;      /* (shards, batch, length, groups, states), or where constant (batch, channels, states) */
  void *dd;           /* (batch, channels) or null, as the next */
  void *ddelta_bias;
  void *dinitial_state; /* (batch, sequences, channels, states) or null */
  int64_t shard_channels;
} convscan_selective_gradient;

CONVSCAN_API convscan_status convscan_selective_gradient_over_channels(const convscan_selective_gradient *problem);

/* Numbers of the type of a that checkpoints take for each batch entry, channel and state. */
CONVSCAN_API int64_t convscan_selective_checkpoints(int64_t length, int64_t sequences);

/* y[b,i,n] = x[b,i,n] + sum_k a[b,i,k-1,n] y[b,i-k,n], 1 <= k <= order; outputs before the first one are zeros or those
 * of `state`, y[b,j-order,n] = state[b,j,n], 0 <= j < order. With transposed, without state,
 * y[b,i,n] = x[b,i,n] + sum_k a[b,i+k,k-1,n] y[b,i+k,n], the transpose of that matrix. Any stride of a may be zero:
 * that of time where coefficients are constant. Real dtypes; y may be x. */
typedef struct convscan_allpole {
  int64_t batch, length, channels, order; /* 1 <= order <= 1024 */
  convscan_dtype dtype;
  int transposed;
  const void *x;
  convscan_strides x_strides;
  const void *a;
  convscan_strides a_strides;
  int64_t a_order_stride;
  const void *state;
  convscan_strides state_strides;
  void *y;
  convscan_strides y_strides;
  int threads;
} convscan_allpole;

CONVSCAN_API convscan_status convscan_allpole_filter(const convscan_allpole *problem);

/* y[r,l] = Re sum_n c[r,n] l (l-1) ... (l-order+1) a[r,n]^(l-order), 0 <= l < length: the kernel of a diagonal
 * state-space layer, and with order > 0 its derivatives. dtype is that of c, COMPLEX64 or COMPLEX128; y is real, of its
 * precision, with consecutive steps. a has a dtype of its own: powers are computed in double precision, and a rounded
 * to single would spoil them. Strides of c and a may be zero. 0 to the power 0 is 1. */
typedef struct convscan_vandermonde {
  int64_t rows, terms, length;
  int order; /* 0 <= order */
  convscan_dtype dtype, a_dtype;
  const void *c;
  int64_t c_row_stride, c_term_stride;
  const void *a;
  int64_t a_row_stride, a_term_stride;
  void *y;
  int64_t y_row_stride;
  int threads;
} convscan_vandermonde;

CONVSCAN_API convscan_status convscan_vandermonde_product(const convscan_vandermonde *problem);

/* The transpose: w[r,n] = sum_l g[r,l] l (l-1) ... (l-order+1) a[r,n]^(l-order). dtype is that of w, which has
 * consecutive terms; g is real, of its precision. */
typedef struct convscan_vandermonde_adjoint {
  int64_t rows, terms, length;
  int order;
  convscan_dtype dtype, a_dtype;
  const void *g;
  int64_t g_row_stride, g_time_stride;
  const void *a;
  int64_t a_row_stride, a_term_stride;
  void *w;
  int64_t w_row_stride;
  int threads;
} convscan_vandermonde_adjoint;

CONVSCAN_API convscan_status convscan_vandermonde_adjoint_product(const convscan_vandermonde_adjoint *problem);

/* k[s,r,w] = sum_n v[s,r,n] / (z[r,w] - lambda[r,n])^power for `sides` right hand sides. dtype is COMPLEX64 or 128;
 * k has consecutive points; the strides of the inputs may be zero. */
typedef struct convscan_cauchy {
  int64_t sides, rows, terms, points;
  int power; /* 1 <= power */
  convscan_dtype dtype;
  const void *v;
  int64_t v_side_stride, v_row_stride, v_term_stride;
  const void *lambda;
  int64_t lambda_row_stride, lambda_term_stride;
  const void *z;
  int64_t z_row_stride, z_point_stride;
  void *k;
  int64_t k_side_stride, k_row_stride;
  int threads;
} convscan_cauchy;

CONVSCAN_API convscan_status convscan_cauchy_product(const convscan_cauchy *problem);

/* A convolution whose input comes a few samples at a time: y[b,i,n] = sum_k h[k,n] x[b,i-k,n], in amortised O(log² taps)
 * per sample (see csrc/conv/online.cpp). Between calls everything is in three arrays of the caller, aligned to their
 * elements, which are those of the type that is computed in (float32 for half types) and int64_t for the clock:
 *
 *   filter  made of h by convscan_online_prepare; read only afterwards, and shared by any number of signals
 *   state   of `batch` signals one after another; zeros at the beginning of time
 *   clock   of the position, common to all signals of a state; zeros at the beginning of time
 *
 * Copies of state and clock are states too; their layout does not depend on the instruction set. */
typedef enum convscan_online_schedule {
  CONVSCAN_ONLINE_GROWING = 0, /* least work; now and then a sample takes a large block's transforms */
  CONVSCAN_ONLINE_SPREAD = 1,  /* about twice the work, in equal shares for every sample */
  CONVSCAN_ONLINE_UNIFORM = 2  /* whole blocks of `block` samples only */
} convscan_online_schedule;

typedef struct convscan_online {
  int64_t batch, length, channels, taps;
  int64_t block;      /* CONVSCAN_ONLINE_UNIFORM: a power of two from 16 on, of which length is a multiple */
  int64_t max_rewind; /* how far convscan_online_rewind may go back */
  convscan_online_schedule schedule;
  int shares_filter; /* one filter for all channels */
  convscan_dtype dtype;
  const void *x;
  convscan_strides x_strides;
  void *y; /* null: the samples are taken in without outputs, in O(taps log taps) for any number of them */
  convscan_strides y_strides;
  void *filter, *state;
  int64_t *clock;
  int threads;
} convscan_online;

typedef struct convscan_online_sizes {
  int64_t filter, state, clock; /* elements; of the state, for one signal */
  int64_t lanes, history;       /* a signal's state has a part for every `lanes` channels, which begins with a ring of
                                 * `history` rows of its lanes: sample t is in row t mod history */
} convscan_online_sizes;

/* Reads sizes, dtype and schedule only. */
CONVSCAN_API convscan_status convscan_online_measure(const convscan_online *problem, convscan_online_sizes *sizes);
/* Writes problem->filter. */
CONVSCAN_API convscan_status convscan_online_prepare(const convscan_online *problem, const void *h, int64_t h_tap_stride,
                                                     int64_t h_channel_stride);
/* Takes `length` samples and gives as many outputs. y may be x. */
CONVSCAN_API convscan_status convscan_online_extend(const convscan_online *problem);
/* Goes back by `steps` samples, which leaves state and clock as if they had never come. Not further back than max_rewind
 * before the latest sample that was ever taken, and a multiple of `block` where there is one. */
CONVSCAN_API convscan_status convscan_online_rewind(const convscan_online *problem, int64_t steps);
typedef struct convscan_head_strides {
  int64_t batch, time, head, channel;
} convscan_head_strides;

/* Linear attention with decay: for every batch b, sequence and head h, a state S of keys x values,
 *
 *   S[t] = diag(exp(g[t])) S[t-1] + w[t] k[t] v[t]^T,   y[t] = scale S[t]^T q[t] + skip v[t]
 *
 * and, where `sums` is given, n[t] = exp(g[t]) n[t-1] + w[t] k[t], sums[t] = scale n[t]^T q[t]. Gates: g may be minus
 * infinity. A group of heads / groups heads shares q and k. Sequences lie behind one another along time, the s-th one
 * at boundaries[s] <= t < boundaries[s+1]; without boundaries there is one.
 *
 * q, k, v and y have the dtype, which is real; g, w, skip, sums and all states that of its arithmetic: float32 for half
 * types. Strides of inputs may be zero; q and k have those of groups where others have those of heads. States are
 * indexed by (batch, sequence, head, key, value), n by (batch, sequence, head, key). */
typedef struct convscan_attention_state {
  void *s; /* null: the state is zero, or is not wanted */
  void *n; /* null unless sums are computed, and where s is null */
  int64_t s_strides[5];
  int64_t n_strides[4];
} convscan_attention_state;

typedef struct convscan_attention {
  int64_t batch, length, groups, heads, keys, values, sequences;
  const int64_t *boundaries; /* sequences + 1, or null for one sequence */
  convscan_dtype dtype;
  double scale;
  int per_key; /* whether g has one number for each key, or one a step, at channel 0 */
  const void *q, *k, *v, *g;
  convscan_head_strides q_strides, k_strides, v_strides, g_strides;
  const void *w; /* null: one */
  convscan_head_strides w_strides; /* at channel 0 */
  const void *skip; /* null: zero */
  int64_t skip_head_stride, skip_channel_stride;
  convscan_attention_state initial;
  void *y;
  convscan_head_strides y_strides;
  void *sums; /* null when not needed */
  convscan_head_strides sums_strides; /* at channel 0 */
  convscan_attention_state final;
  int threads; /* 0: convscan_thread_count() */
} convscan_attention;

CONVSCAN_API convscan_status convscan_attention_chunked(const convscan_attention *problem);

/* Its gradients. `forward` describes the forward call; its skip, y, sums and final are not read. dq and dk are summed
 * over blocks of `block` heads of each group only, one result for each block. They have the type of arithmetic, like dg,
 * dw and the gradients of states; dv has the dtype. */
typedef struct convscan_attention_gradient {
  convscan_attention forward;
  int64_t block;
  const void *dy;
  convscan_head_strides dy_strides;
  const void *dsums; /* null: zero; not null only where `has_sums` */
  convscan_head_strides dsums_strides;
  int has_sums;
  convscan_attention_state dfinal; /* null: zero */
  void *dq, *dk;
  convscan_head_strides dq_strides, dk_strides; /* of groups */
  int64_t dq_block_stride, dk_block_stride;
  void *dv;
  convscan_head_strides dv_strides;
  void *dg;
  convscan_head_strides dg_strides;
  void *dw; /* null when not needed */
  convscan_head_strides dw_strides; /* at channel 0 */
  convscan_attention_state dinitial; /* null when not needed */
} convscan_attention_gradient;

CONVSCAN_API convscan_status convscan_attention_gradient_chunked(const convscan_attention_gradient *problem);

/* One step, in place: S = exp(g) S + w k v^T and y = silu(z) (scale S^T q / divisor + skip v), of gates that are
 *   DECAY   w = 1, divisor = 1
 *   DELTA   v - (exp(g) S)^T k for v, w = i, divisor = 1
 *   SSD     w = g + bias, or softplus of it, and exp(rate w) for exp(g)
 *   MLSTM   next m = max(log sigmoid(g) + m, i), w = exp(i - next m), exp(log sigmoid(g) + m - next m) for exp(g),
 *           n = exp(g) n + w k, divisor = max(|scale n^T q|, exp(-next m)) + eps
 * Types as above; strides of bias and rate are those of heads. */
typedef enum convscan_gates {
  CONVSCAN_GATES_DECAY = 0,
  CONVSCAN_GATES_SSD = 1,
  CONVSCAN_GATES_MLSTM = 2,
  CONVSCAN_GATES_DELTA = 3
} convscan_gates;

typedef struct convscan_step_strides {
  int64_t batch, head, channel;
} convscan_step_strides;

typedef struct convscan_attention_step {
  int64_t batch, groups, heads, keys, values;
  convscan_dtype dtype;
  convscan_gates gates;
  double scale, eps;
  int per_key, softplus;
  void *s; /* (batch, head, key, value) */
  int64_t s_strides[4];
  void *n, *m; /* (batch, head, key) and (batch, head); null unless MLSTM */
  int64_t n_strides[3], m_strides[2];
  const void *q, *k, *v, *g;
  convscan_step_strides q_strides, k_strides, v_strides, g_strides;
  const void *i, *bias, *rate; /* i: MLSTM and DELTA; bias (or null) and rate: SSD */
  convscan_step_strides i_strides;
  int64_t bias_stride, rate_stride;
  const void *skip, *z; /* null: zero, and no gate */
  int64_t skip_head_stride, skip_channel_stride;
  convscan_step_strides z_strides;
  void *y;
  convscan_step_strides y_strides;
  int threads;
} convscan_attention_step;

CONVSCAN_API convscan_status convscan_attention_step_in_place(const convscan_attention_step *problem);

/* The gated delta rule: for every batch b, sequence and head h, a state S of keys x values,
 *
 *   S[t] = (I - beta[t] k[t] k[t]^T) diag(exp(g[t])) S[t-1] + beta[t] k[t] v[t]^T,   y[t] = scale S[t]^T q[t]
 *
 * g may be minus infinity. Sequences lie behind one another along time, the s-th one at
 * boundaries[s] <= t < boundaries[s+1], and may be empty; without boundaries there is one. q, k, v and y have the dtype,
 * which is real; g, beta (at channel 0) and states that of its arithmetic: float32 for half types. Strides of states are
 * those of (batch, sequence, head, key, value). The last state may be the initial one. */
typedef struct convscan_delta_rule {
  int64_t batch, length, groups, heads, keys, values, sequences; /* q and k have groups, of heads / groups heads each */
  const int64_t *boundaries; /* sequences + 1, or null for one sequence */
  convscan_dtype dtype;
  double scale;
  int per_key; /* whether g has one number for each key, or one a step, at channel 0 */
  const void *q, *k, *v, *g, *beta;
  convscan_head_strides q_strides, k_strides, v_strides, g_strides, beta_strides;
  const void *initial; /* null for zeros */
  int64_t initial_strides[5];
  void *y;
  convscan_head_strides y_strides;
  void *last; /* null when not needed */
  int64_t last_strides[5];
  int threads; /* 0: convscan_thread_count() */
} convscan_delta_rule;

CONVSCAN_API convscan_status convscan_delta_rule_chunked(const convscan_delta_rule *problem);

/* Its gradients. `forward` describes the forward call; its y and last are not read. dq and dk are what every head by itself
 * contributes, (batch, length, heads, keys), which the caller adds up for groups. dv has the dtype, all others that of its
 * arithmetic. */
typedef struct convscan_delta_rule_gradient {
  convscan_delta_rule forward;
  const void *dy, *dlast; /* dlast: null for zeros */
  convscan_head_strides dy_strides;
  int64_t dlast_strides[5];
  void *dq, *dk, *dv, *dg, *dbeta;
  convscan_head_strides dq_strides, dk_strides, dv_strides, dg_strides, dbeta_strides;
  void *dinitial; /* null when not needed */
  int64_t dinitial_strides[5];
} convscan_delta_rule_gradient;

CONVSCAN_API convscan_status convscan_delta_rule_gradient_chunked(const convscan_delta_rule_gradient *problem);

/* Instruction sets. The best one the processor supports is used until convscan_set_isa names another. */
CONVSCAN_API const char *convscan_isa(void);                  /* in use: "baseline", "avx2", "avx512", "neon" */
CONVSCAN_API int convscan_isa_count(void);                    /* how many this build has and this processor runs */
CONVSCAN_API const char *convscan_isa_name(int index);        /* null out of range */
CONVSCAN_API convscan_status convscan_set_isa(const char *name); /* not thread-safe against running kernels */

/* Does `rounds` rounds of float32 multiply-adds on each of `threads` threads (0: convscan_thread_count()), and nothing else:
 * timed, the most that the arithmetic of this processor can do. Returns the multiplications and additions of all threads. */
CONVSCAN_API int64_t convscan_multiply_adds(int64_t rounds, int threads);

/* Threads used when `threads` is 0: OpenMP's setting in the Python package. 1 in a forked child. */
CONVSCAN_API int convscan_thread_count(void);

/* A host's own threads. `run` calls task(context, index) once for every 0 <= index < count, on at most `threads` threads and
 * in any order, and returns when all are done; count is at most `threads`, and a thread that keeps its index from call to call
 * finds in its caches what it left there. Workspace of the threads is kept until they end. */
typedef struct convscan_pool {
  void *host; /* what the two functions are given */
  int (*thread_count)(void *host);
  void (*run)(void *host, int64_t count, int threads, void (*task)(void *context, int64_t index), void *context);
} convscan_pool;

/* From now on calls that the calling thread makes use this pool, which must stay where it is; null: the library's threads
 * again. Other threads are not concerned. */
CONVSCAN_API void convscan_use_pool(const convscan_pool *pool);

/* Workspace held by all threads together, in bytes, and its high-water mark since the last reset. Plan tables
 * (twiddle factors), shared by all threads, are counted apart. */
CONVSCAN_API int64_t convscan_workspace_current(void);
CONVSCAN_API int64_t convscan_workspace_peak(void);
CONVSCAN_API int64_t convscan_tables_current(void);
CONVSCAN_API void convscan_workspace_reset_peak(void); /* also frees workspace of the calling thread and idle workers */

/* Asks the kernel for huge pages over fresh memory of 2 MiB and more, before its first touch. Advice only. */
CONVSCAN_API void convscan_advise_huge_pages(void *address, size_t bytes);

CONVSCAN_API const char *convscan_status_message(convscan_status status);

#ifdef __cplusplus
}
#endif
#endif
