// Direct convolution with up to some tens of taps: every sample is read once, in the order memory likes, and what the taps
// look back on stays in registers or in the first-level cache. Outputs that no cache could hold are streamed past it in whole
// lines.
#pragma once

#include "conv/short_columns.h"
#include "conv/short_rows.h"

namespace convscan::CONVSCAN_ISA {

// The most taps for these kernels over channels and along time, and there the length from which on more than kShortTaps are
// (4 x 2048 x 256, K = 32: 567 us, 679 in lanes; K = 96 more than in lanes).
inline constexpr int kManyTaps = 128, kManyRowTaps = 64;
inline constexpr int64_t kManyRowLength = 4096;

// Every array has its channels side by side (or only one time step, whose rows are then one vector of channels).
inline bool ChannelsAreAdjacent(const convscan_conv &p) {
  return p.x_strides.channel == 1 && p.y_strides.channel == 1 && p.channels > 1;
}

// Whether this is for it: with more than kShortTaps, where it takes less than lanes of their own (see long_filter.h).
template <class S>
bool IsShort(const convscan_conv &p) {
  if (p.taps <= kShortTaps) return true;
  if (ChannelsAreAdjacent(p) && p.channels >= kLanes<Compute<S>>)
    return p.taps <= kManyTaps && p.channels >= ShortColumns<S>::kGroup;
  return p.taps <= kManyRowTaps && p.length >= kManyRowLength;
}

template <class S>
convscan_status ConvShort(const convscan_conv &p) {
  return ChannelsAreAdjacent(p) ? ConvShortColumns<S>(p) : ConvShortRows<S>(p);
}

}  // namespace convscan::CONVSCAN_ISA
