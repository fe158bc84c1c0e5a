/* A microphone's samples through a long filter, a block at a time, as an app's audio callback would: 48 kHz, blocks of
 * 10 ms, an echo of a quarter of a second. `history` carries the samples that the filter still needs.
 *
 *   cc examples/c/stream.c $(pkg-config --cflags --libs convscan) -o stream
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "convscan.h"

enum { kBlock = 480, kTaps = 12001, kBlocks = 100 };

static float filter[kTaps], history[kTaps - 1], block[kBlock], smoothed[kBlock];

int main(void) {
  filter[0] = 1;
  filter[kTaps - 1] = 0.5f; /* the echo */

  convscan_conv conv = {.batch = 1, .length = kBlock, .channels = 1, .taps = kTaps, .threads = 1};
  conv.x = block;
  conv.y = smoothed;
  conv.x_strides = conv.y_strides = conv.state_strides = (convscan_strides){0, 1, 1};
  conv.h = filter;
  conv.h_tap_stride = 1;
  conv.state = history; /* zeros before the first sample */

  double largest = 0;
  for (int n = 0; n < kBlocks; ++n) {
    for (int i = 0; i < kBlock; ++i) block[i] = sinf(0.01f * (float)(n * kBlock + i)); /* read the microphone here */
    const convscan_status status = convscan_conv_fft(&conv, 0);
    if (status != CONVSCAN_OK) return fprintf(stderr, "%s\n", convscan_status_message(status)), 1;
    memmove(history, history + kBlock, sizeof history - sizeof block);
    memcpy(history + (kTaps - 1 - kBlock), block, sizeof block);
    for (int i = 0; i < kBlock; ++i) { /* play `smoothed` here; this compares it with the echo it should be */
      const int t = n * kBlock + i, then = t - (kTaps - 1);
      const double expected = sin(0.01f * (float)t) + (then < 0 ? 0 : 0.5 * sin(0.01f * (float)then));
      largest = fmax(largest, fabs(smoothed[i] - expected));
    }
  }
  printf("%d samples, %d taps, error %.1e, workspace %lld KiB\n", kBlocks * kBlock, kTaps, largest,
         (long long)convscan_workspace_peak() / 1024);
  return largest > 1e-3;
}
