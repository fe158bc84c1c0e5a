// What a host program leaves to the library, which kernel to take, and what it brings along, its threads.
#include "check.h"

#include <math.h>

#include <algorithm>

namespace tests {
namespace {

struct Pool {
  convscan_pool interface;
  int threads = 3;
  int64_t runs = 0, tasks = 0;

  Pool() : interface{this, Threads, Run} {}
  static int Threads(void *host) { return static_cast<Pool *>(host)->threads; }
  static void Run(void *host, int64_t count, int threads, void (*task)(void *, int64_t), void *context) {
    Pool &pool = *static_cast<Pool *>(host);
    ++pool.runs;
    pool.tasks += count;
    CHECK(threads >= 2 && threads <= pool.threads);
    for (int64_t i = count; i-- > 0;) task(context, i);  // in any order
  }
};

}  // namespace

void TestHost() {
  Random random(11);
  // Few and many taps, in both memory orders, and more taps than samples: every choice there is.
  constexpr int64_t kSizes[][3] = {{40, 5, 1}, {300, 33, 4}, {700, 8, 128}, {3000, 4, 3000}, {50, 6, 90}, {1, 3, 7}};
  for (const auto &size : kSizes)
    for (Layout layout : {Layout::kTimeMajor, Layout::kChannelMajor, Layout::kSpacedChannels}) {
      const int64_t length = size[0], channels = size[1], taps = size[2];
      context = "host " + std::to_string(length) + "x" + std::to_string(channels) + " K " + std::to_string(taps);
      Array x(CONVSCAN_FLOAT32, 2, length, channels, layout, 0), y(CONVSCAN_FLOAT32, 2, length, channels, layout, 0);
      Array again(CONVSCAN_FLOAT32, 2, length, channels, layout, 0), h(CONVSCAN_FLOAT32, 1, taps, channels, layout, 0);
      x.FillRandom(random);
      h.FillRandom(random);
      y.FillPattern();
      convscan_conv p{};
      p.batch = 2;
      p.length = length;
      p.channels = channels;
      p.taps = taps;
      p.x = x.data();
      p.x_strides = x.strides();
      p.h = h.data();
      p.h_tap_stride = h.strides().time;
      p.h_channel_stride = h.strides().channel;
      p.y = y.data();
      p.y_strides = y.strides();
      p.threads = 3;
      CHECK(convscan_conv_auto(&p) == CONVSCAN_OK);
      CHECK(y.PatternSurvives());
      double off = 0, scale = 1e-30;
      for (int64_t b = 0; b < 2; ++b)
        for (int64_t c = 0; c < channels; ++c)
          for (int64_t t = 0; t < length; t += 1 + length / 64) {
            double sum = 0, energy = 0;
            for (int64_t k = 0; k < taps && k <= t; ++k) {
              sum += h.At(0, k, c).real() * x.At(b, t - k, c).real();
              energy += fabs(h.At(0, k, c).real());
            }
            off = std::max(off, std::fabs(y.At(b, t, c).real() - sum));
            scale = std::max(scale, energy);
          }
      CHECK(off <= 0x1p-24 * 64 * scale);

      Pool pool;
      p.threads = 0;
      p.y = again.data();
      convscan_use_pool(&pool.interface);
      CHECK(convscan_thread_count() == 3);
      CHECK(convscan_conv_auto(&p) == CONVSCAN_OK);
      CHECK(pool.tasks >= pool.runs);
      convscan_use_pool(nullptr);
      const int64_t runs = pool.runs;
      CHECK(y.SameElements(again));

      Array a(CONVSCAN_FLOAT32, 2, length, channels, layout, 0);
      a.FillRandom(random);
      convscan_scan s{};
      s.batch = 2;
      s.length = length;
      s.channels = channels;
      s.x = x.data();
      s.x_strides = x.strides();
      s.a = a.data();
      s.a_strides = a.strides();
      s.y = y.data();
      s.y_strides = y.strides();
      CHECK(convscan_scan_auto(&s) == CONVSCAN_OK);
      CHECK(pool.runs == runs);  // the pool was given back
      off = 0, scale = 1e-30;
      for (int64_t b = 0; b < 2; ++b)
        for (int64_t c = 0; c < channels; ++c) {
          double value = 0;
          for (int64_t t = 0; t < length; ++t) {
            value = a.At(b, t, c).real() * value + x.At(b, t, c).real();
            off = std::max(off, std::fabs(y.At(b, t, c).real() - value));
            scale = std::max(scale, std::fabs(value));
          }
        }
      CHECK(off <= 0x1p-24 * 64 * scale);
    }
  context = "host";
  convscan_conv wrong{};
  wrong.taps = -1;
  CHECK(convscan_conv_auto(&wrong) == CONVSCAN_INVALID_ARGUMENT && convscan_conv_auto(nullptr) == CONVSCAN_INVALID_ARGUMENT);
  CHECK(convscan_scan_auto(nullptr) == CONVSCAN_INVALID_ARGUMENT);
}

}  // namespace tests
