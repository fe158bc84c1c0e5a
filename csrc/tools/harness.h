// The challenge's protocol for one case and whatever implementations there are: inputs that are the same on every machine,
// answers against double precision, peak memory, latency, and lines of JSON about it all.
#pragma once

#include <math.h>
#include <stdint.h>

#include <vector>

#include "convscan.h"

namespace convscan::harness {

constexpr double kChallengeTolerance = 1e-3;

// Seconds of a clock that only goes forwards.
double Now();

// Memory of its own mapping, touched, so that it does not count as the call's.
class Buffer {
 public:
  explicit Buffer(int64_t count);
  Buffer(const Buffer &) = delete;
  Buffer &operator=(const Buffer &) = delete;
  ~Buffer();
  float *data() const { return data_; }
  int64_t bytes() const { return static_cast<int64_t>(bytes_); }

 private:
  size_t bytes_;
  float *data_;
};

struct Options {
  int64_t channels = 0, length = 0, taps = 0;
  int inputs = 100, runs = 10, threads = 0, calls = 0;
  double seconds = 0;
  const char *only = nullptr;
  bool channels_contiguous = false;  // instead of time; with `calls` only
};

struct Case {
  Options options;
  bool is_conv;
  Buffer x, h, y, start;  // h is the filter, or the coefficients a

  Case(const Options &given, bool conv_case);
  int64_t count() const { return options.channels * options.length; }
  int64_t taps() const { return is_conv ? options.taps : options.length; }
  void Fill(uint64_t seed);
  void FillOnes();
};

struct Error {
  double largest = 0;   // absolute
  double of_bound = 0;  // the largest share of what rounding may cost
  double squares = 0, norm = 0;

  void Add(double got, double expected, double bound);
  double RelativeRms() const { return squares == 0 ? 0 : sqrt(squares / norm); }
};

enum class Kind { kSum, kTransform, kWide };  // what the error of an implementation is bounded by

// Whatever computes a case. Its inputs are those of the case; the answer goes to the case's y.
class Implementation {
 public:
  Implementation(const char *name, Kind kind) : name(name), kind(kind) {}
  virtual ~Implementation() = default;
  virtual convscan_status Run(Case &c) = 0;
  // For every input, before the clock starts.
  virtual convscan_status Prepare(Case &) { return CONVSCAN_OK; }
  // Puts the answer into the case's y where Run leaves it elsewhere.
  virtual void Fetch(Case &) {}
  // Gives back all memory, which the next Prepare takes again. False where Run alone takes any.
  virtual bool Release() { return false; }
  // Seconds of the last Run by a clock of its own; negative without one.
  virtual double OwnSeconds() const { return -1; }
  // Runs on the first channels only, for a first guess at its time; false where it cannot.
  virtual bool Narrow(Case &, int64_t) { return false; }
  // Exact to the byte: scratch memory of the last calls, and what was kept from call to call. Negative: unknown.
  virtual int64_t Workspace() const { return -1; }
  virtual int64_t Kept() const { return 0; }
  // What stands behind "does not run this problem".
  virtual const char *Reason() const { return nullptr; }

  const char *name;
  Kind kind;
  std::vector<double> seconds;
  Error random, ones;
  int64_t peak = -1, workspace = 0;
  const char *cut_off = nullptr;
  convscan_status status = CONVSCAN_OK;
};

// Seconds of one call on all channels, from one on a few of them where that is possible.
double Predict(Case &c, Implementation &one);

// Checks, weighs and times all of them, interleaved, and prints a line for each.
void Judge(Case &c, const std::vector<Implementation *> &all);

// options.calls calls of each and nothing else, which an instruction counter wants.
void CallOnly(Case &c, const std::vector<Implementation *> &all);

// "0,4-7"; false if it is no such list or the system refuses.
bool Bind(const char *list);

// Reads "causal_conv C L K" or "linear_recurrence C L" and the options that all programs share; those it does not know go
// to `other` with their value, which returns whether it takes them. False, and a message printed, for anything wrong.
bool ReadArguments(int count, char **words, Options &options, bool &is_conv, bool (*other)(const char *, const char *));

}  // namespace convscan::harness
