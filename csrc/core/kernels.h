// The table of kernels that every instruction set provides. Kernels trust their problem: csrc/api has checked it.
#pragma once

#include "convscan.h"

namespace convscan {

struct Kernels {
  const char *isa;
  convscan_status (*conv_direct)(const convscan_conv &);
  convscan_status (*conv_toeplitz)(const convscan_conv &);
  convscan_status (*conv_fft)(const convscan_conv &, int64_t transform_length);
  convscan_status (*conv_fft_kept)(const convscan_conv &, int64_t transform_length, const void *spectra,
                                   convscan_spectrum_storage);
  convscan_status (*conv_fft_sparse)(const convscan_conv &, int64_t transform_length, const void *spectra,
                                     convscan_spectrum_storage, const void *pattern);
  int64_t (*pattern_bytes)(int64_t transform_length, convscan_dtype);
  convscan_status (*filter_spectrum)(const convscan_spectrum &);
  convscan_status (*conv_recurrence)(const convscan_conv &);
  int64_t (*fft_length)(int64_t points, convscan_dtype);
  convscan_status (*filter_gradient_direct)(const convscan_filter_gradient &);
  convscan_status (*filter_gradient_fft)(const convscan_filter_gradient &, int64_t transform_length);
  convscan_status (*conv_gradient_direct)(const convscan_conv_gradient &);
  convscan_status (*conv_gradient_fft)(const convscan_conv_gradient &, int64_t transform_length);
  convscan_status (*scan_sequential)(const convscan_scan &);
  convscan_status (*scan_tiled)(const convscan_scan &);
  convscan_status (*scan_parallel)(const convscan_scan &);
  convscan_status (*scan_gradient_sequential)(const convscan_scan_gradient &);
  convscan_status (*selective_over_channels)(const convscan_selective &);
  convscan_status (*selective_over_states)(const convscan_selective &);
  convscan_status (*selective_gradient_over_channels)(const convscan_selective_gradient &);
  convscan_status (*allpole)(const convscan_allpole &);
  convscan_status (*vandermonde)(const convscan_vandermonde &);
  convscan_status (*vandermonde_adjoint)(const convscan_vandermonde_adjoint &);
  convscan_status (*cauchy)(const convscan_cauchy &);
  void (*online_measure)(const convscan_online &, convscan_online_sizes &);
  convscan_status (*online_prepare)(const convscan_online &, const void *h, int64_t tap_stride, int64_t channel_stride);
  convscan_status (*online_extend)(const convscan_online &);
  convscan_status (*online_rewind)(const convscan_online &, int64_t steps);
  convscan_status (*attention_chunked)(const convscan_attention &);
  convscan_status (*attention_gradient_chunked)(const convscan_attention_gradient &);
  convscan_status (*attention_step)(const convscan_attention_step &);
  convscan_status (*delta_rule_chunked)(const convscan_delta_rule &);
  convscan_status (*delta_rule_gradient_chunked)(const convscan_delta_rule_gradient &);
  int64_t (*multiply_adds)(int64_t rounds, int threads);
};

}  // namespace convscan
