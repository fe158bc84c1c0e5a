/* Smooths a signal and runs a leaky integrator over it, with nothing but the C interface.
 *
 *   cc examples/c/smooth.c $(pkg-config --cflags --libs convscan) -o smooth
 */
#include <stdio.h>

#include "convscan.h"

enum { kLength = 8, kChannels = 2, kTaps = 3 };

int main(void) {
  float x[kLength][kChannels] = {{0, 1}, {0, 0}, {3, 0}, {3, 0}, {3, 0}, {0, 0}, {0, 0}, {0, 0}};
  const float h[kTaps][kChannels] = {{0.25f, 1}, {0.5f, 0}, {0.25f, -1}};
  const float a[kChannels] = {0.5f, 1};

  convscan_conv conv = {.batch = 1, .length = kLength, .channels = kChannels, .taps = kTaps};
  conv.dtype = CONVSCAN_FLOAT32;
  conv.x = conv.y = x; /* in place */
  conv.x_strides = conv.y_strides = (convscan_strides){kLength * kChannels, kChannels, 1};
  conv.h = h;
  conv.h_tap_stride = kChannels;
  conv.h_channel_stride = 1;
  convscan_status status = convscan_conv_direct(&conv);

  convscan_scan scan = {.batch = 1, .length = kLength, .channels = kChannels, .dtype = CONVSCAN_FLOAT32};
  scan.x = scan.y = x;
  scan.x_strides = scan.y_strides = conv.x_strides;
  scan.a = a;
  scan.a_strides = (convscan_strides){0, 0, 1}; /* constant in time */
  if (status == CONVSCAN_OK) status = convscan_scan_sequential(&scan);

  if (status != CONVSCAN_OK) {
    fprintf(stderr, "%s\n", convscan_status_message(status));
    return 1;
  }
  for (int i = 0; i < kLength; ++i) printf("%.4f %.4f\n", x[i][0], x[i][1]);
  return 0;
}
