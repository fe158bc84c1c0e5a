// Judges what somebody hands in by the challenge's protocol, on one case; and runs programs of ExecuTorch.
//
//   judge causal_conv C L K [options]       x (1, C, L), h (C, K), y (1, C, L), time contiguous
//   judge linear_recurrence C L [options]   y_init (1, C), a (1, C, L), x (1, C, L), y (1, C, L)
//   judge run FILE.pte [options]            a program on given inputs
//
//   --program FILE.pte   a program that takes these inputs in this order
//   --kernels FILE.so    a library with functions of these names (judge.h)
//   --name NAME          what to call it
//   --trace FILE         keeps the ETDump of what was run
//   --input FILE         of `run`, once for each input: raw numbers as the program wants them
//   --output PREFIX      of `run`: each output's numbers go to PREFIX<index>
//   ... and the runner's: --inputs --runs --seconds --threads --cpus --calls
//
// The latency of a program is the event Method::execute of its ETDump, recorded while it runs, as the challenge has it.
#include <dlfcn.h>
#include <executorch/devtools/etdump/etdump_flatcc.h>
#include <executorch/extension/data_loader/mmap_data_loader.h>
#include <executorch/extension/memory_allocator/malloc_memory_allocator.h>
#include <executorch/runtime/executor/method.h>
#include <executorch/runtime/executor/program.h>
#include <executorch/runtime/platform/runtime.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/workspace.h"
#include "executorch/judge.h"
#include "tools/harness.h"

// The pool's size has no header in the wheel.
namespace executorch::extension::threadpool {
class ThreadPool {
 public:
  bool _unsafe_reset_threadpool(uint32_t threads);
};
ThreadPool *get_threadpool();
}  // namespace executorch::extension::threadpool

// The runtime's log, errors only: lines of the rest would come between those of the results.
extern "C" void et_pal_emit_log_message(et_timestamp_t, et_pal_log_level_t level, const char *, const char *, size_t,
                                        const char *message, size_t length) {
  if (level == kError || level == kFatal) fprintf(stderr, "%.*s\n", static_cast<int>(length), message);
}

namespace {

namespace harness = convscan::harness;
namespace runtime = executorch::runtime;
using executorch::aten::SizesType;
using executorch::aten::Tensor;
using executorch::runtime::Error;
using executorch::runtime::EValue;
using harness::Case;

// ETDump's recorder, which tells the last duration of Method::execute besides.
class Recorder : public executorch::etdump::ETDumpGen {
 public:
  runtime::EventTracerEntry start_profiling(const char *name, runtime::ChainID chain_id,
                                            runtime::DebugHandle debug_handle) override {
    const runtime::EventTracerEntry entry = ETDumpGen::start_profiling(name, chain_id, debug_handle);
    if (strcmp(name, "Method::execute") == 0) {
      execute_ = entry.event_id;
      begin_ = entry.start_time;
    }
    return entry;
  }
  void end_profiling(runtime::EventTracerEntry entry) override {
    if (entry.event_id == execute_ && entry.start_time == begin_) {
      const auto ratio = et_pal_ticks_to_ns_multiplier();
      seconds = 1e-9 * static_cast<double>(et_pal_current_ticks() - begin_) * static_cast<double>(ratio.numerator) /
                static_cast<double>(ratio.denominator);
    }
    ETDumpGen::end_profiling(entry);
  }
  double seconds = -1;

 private:
  int64_t execute_ = -1;
  et_timestamp_t begin_ = 0;
};

// A loaded program with the memory it plans.
class Program {
 public:
  explicit Program(const char *path) : path_(path) {}

  Error Load() {
    if (method_.has_value()) return Error::Ok;
    auto loader = executorch::extension::MmapDataLoader::from(
        path_, executorch::extension::MmapDataLoader::MlockConfig::NoMlock);
    if (!loader.ok()) return loader.error();
    loader_ = std::make_unique<executorch::extension::MmapDataLoader>(std::move(loader.get()));
    auto program = runtime::Program::load(loader_.get());
    if (!program.ok()) return program.error();
    program_ = std::make_unique<runtime::Program>(std::move(program.get()));
    auto meta = program_->method_meta("forward");
    if (!meta.ok()) return meta.error();
    planned_ = 0;
    for (size_t k = 0; k < meta->num_memory_planned_buffers(); ++k) {
      const size_t bytes = static_cast<size_t>(meta->memory_planned_buffer_size(k).get());
      planned_ += static_cast<int64_t>(bytes);
      memory_.emplace_back(static_cast<uint8_t *>(aligned_alloc(64, (bytes + 63) / 64 * 64)), free);
      if (memory_.back() == nullptr) return Error::MemoryAllocationFailed;
      spans_.emplace_back(memory_.back().get(), bytes);
    }
    planned_memory_ = std::make_unique<runtime::HierarchicalAllocator>(
        runtime::Span<runtime::Span<uint8_t>>(spans_.data(), spans_.size()));
    manager_ = std::make_unique<runtime::MemoryManager>(&method_memory_, planned_memory_.get(), &temporary_);
    auto method = program_->load_method("forward", manager_.get(), &recorder);
    if (!method.ok()) return method.error();
    method_.emplace(std::move(method.get()));
    return Error::Ok;
  }
  void Unload() {
    method_.reset();
    manager_.reset();
    planned_memory_.reset();
    spans_.clear();
    memory_.clear();
    program_.reset();
    loader_.reset();
    method_memory_.reset();
    temporary_.reset();
  }
  runtime::Method &method() { return *method_; }
  int64_t planned() const { return planned_; }
  Error Execute() {
    temporary_.reset();
    return method_->execute();
  }
  void ClearEvents() {
    recorder.reset();
    recorder.create_event_block("judge");
  }

  Recorder recorder;

 private:
  const char *path_;
  std::unique_ptr<executorch::extension::MmapDataLoader> loader_;
  std::unique_ptr<runtime::Program> program_;
  std::vector<std::unique_ptr<uint8_t, decltype(&free)>> memory_;
  std::vector<runtime::Span<uint8_t>> spans_;
  executorch::extension::MallocMemoryAllocator method_memory_, temporary_;
  std::unique_ptr<runtime::HierarchicalAllocator> planned_memory_;
  std::unique_ptr<runtime::MemoryManager> manager_;
  std::optional<runtime::Method> method_;
  int64_t planned_ = 0;
};

convscan_status Status(Error error) {
  return error == Error::Ok                       ? CONVSCAN_OK
         : error == Error::MemoryAllocationFailed ? CONVSCAN_OUT_OF_MEMORY
                                                  : CONVSCAN_UNSUPPORTED;
}

class SubmittedProgram : public harness::Implementation {
 public:
  SubmittedProgram(const char *name, const char *path) : Implementation(name, harness::Kind::kTransform), program_(path) {}

  convscan_status Prepare(Case &c) override {
    Error error = program_.Load();
    if (error == Error::Ok) {
      program_.ClearEvents();
      const SizesType channels = static_cast<SizesType>(c.options.channels);
      const SizesType length = static_cast<SizesType>(c.options.length), taps = static_cast<SizesType>(c.taps());
      if (c.is_conv) {
        error = Give(0, c.x.data(), {1, channels, length});
        if (error == Error::Ok) error = Give(1, c.h.data(), {channels, taps});
      } else {
        error = Give(0, c.start.data(), {1, channels});
        if (error == Error::Ok) error = Give(1, c.h.data(), {1, channels, length});
        if (error == Error::Ok) error = Give(2, c.x.data(), {1, channels, length});
      }
    }
    if (error != Error::Ok)
      snprintf(reason_, sizeof reason_, "ExecuTorch refuses the program or its inputs (error 0x%x)", static_cast<int>(error));
    return Status(error);
  }
  convscan_status Run(Case &) override {
    const Error error = program_.Execute();
    if (error != Error::Ok) snprintf(reason_, sizeof reason_, "the program failed (error 0x%x)", static_cast<int>(error));
    return Status(error);
  }
  void Fetch(Case &c) override {
    if (program_.method().outputs_size() == 0 || !program_.method().get_output(0).isTensor()) return;
    const Tensor y = program_.method().get_output(0).toTensor();
    if (y.numel() == c.count() && y.scalar_type() == executorch::aten::ScalarType::Float)
      memcpy(c.y.data(), y.const_data_ptr<float>(), static_cast<size_t>(c.y.bytes()));
  }
  bool Release() override {
    program_.Unload();
    return true;
  }
  double OwnSeconds() const override { return program_.recorder.seconds; }
  // What the program plans, inputs and outputs among it, and what our operators take besides.
  int64_t Workspace() const override { return program_.planned() + convscan::WorkspacePeak(); }
  const char *Reason() const override { return reason_[0] == '\0' ? nullptr : reason_; }
  Program &program() { return program_; }

 private:
  Error Give(size_t index, float *data, std::vector<SizesType> sizes) {
    if (program_.method().inputs_size() <= index) return Error::InvalidArgument;
    std::vector<executorch::aten::DimOrderType> order(sizes.size());
    std::vector<executorch::aten::StridesType> strides(sizes.size());
    SizesType stride = 1;
    for (size_t k = sizes.size(); k-- > 0; stride *= sizes[k]) {
      order[k] = static_cast<executorch::aten::DimOrderType>(k);
      strides[k] = stride;
    }
    executorch::aten::TensorImpl tensor(executorch::aten::ScalarType::Float, static_cast<ssize_t>(sizes.size()),
                                        sizes.data(), data, order.data(), strides.data(),
                                        executorch::aten::TensorShapeDynamism::DYNAMIC_BOUND);
    return program_.method().set_input(EValue(Tensor(&tensor)), index);
  }

  Program program_;
  char reason_[96] = "";
};

class SubmittedKernels : public harness::Implementation {
 public:
  SubmittedKernels(const char *name, const char *path) : Implementation(name, harness::Kind::kTransform) {
    library_ = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library_ == nullptr) {
      snprintf(reason_, sizeof reason_, "%s", dlerror());
      std::replace_if(reason_, reason_ + strlen(reason_), [](char one) { return one == '"' || one == '\\' || one < ' '; }, '\'');
      return;
    }
    conv_ = reinterpret_cast<judge_causal_conv *>(dlsym(library_, "causal_conv"));
    recurrence_ = reinterpret_cast<judge_linear_recurrence *>(dlsym(library_, "linear_recurrence"));
    workspace_ = reinterpret_cast<judge_workspace_bytes *>(dlsym(library_, "workspace_bytes"));
  }
  convscan_status Run(Case &c) override {
    const judge_shape shape = {c.options.channels, c.options.length, c.options.taps, c.options.threads};
    int code = -1;
    if (c.is_conv && conv_ != nullptr) code = conv_(&shape, c.x.data(), c.h.data(), c.y.data());
    else if (!c.is_conv && recurrence_ != nullptr)
      code = recurrence_(&shape, c.start.data(), c.h.data(), c.x.data(), c.y.data());
    else if (reason_[0] == '\0')
      snprintf(reason_, sizeof reason_, "the library has no function %s", c.is_conv ? "causal_conv" : "linear_recurrence");
    if (code != 0 && reason_[0] == '\0') snprintf(reason_, sizeof reason_, "returned %d", code);
    return code == 0 ? CONVSCAN_OK : CONVSCAN_UNSUPPORTED;
  }
  int64_t Workspace() const override { return workspace_ == nullptr ? -1 : workspace_(); }
  const char *Reason() const override { return reason_[0] == '\0' ? nullptr : reason_; }

 private:
  void *library_;
  judge_causal_conv *conv_ = nullptr;
  judge_linear_recurrence *recurrence_ = nullptr;
  judge_workspace_bytes *workspace_ = nullptr;
  char reason_[256] = "";
};

// ---- arguments ----

struct Given {
  const char *program = nullptr, *kernels = nullptr, *name = nullptr, *trace = nullptr, *output = nullptr;
  std::vector<const char *> inputs;
} given;

bool Other(const char *option, const char *value) {
  if (strcmp(option, "--program") == 0) given.program = value;
  else if (strcmp(option, "--kernels") == 0) given.kernels = value;
  else if (strcmp(option, "--name") == 0) given.name = value;
  else if (strcmp(option, "--trace") == 0) given.trace = value;
  else if (strcmp(option, "--output") == 0) given.output = value;
  else if (strcmp(option, "--input") == 0) given.inputs.push_back(value);
  else return false;
  return true;
}

bool WriteTrace(Recorder &recorder) {
  if (given.trace == nullptr) return true;
  const executorch::etdump::ETDumpResult dump = recorder.get_etdump_data();
  FILE *const file = fopen(given.trace, "wb");
  const bool written = file != nullptr && dump.buf != nullptr && fwrite(dump.buf, 1, dump.size, file) == dump.size;
  if (file != nullptr) fclose(file);
  free(dump.buf);
  return written;
}

// A program on the inputs in files: its outputs in files, and a line about each.
int RunProgram(int runs) {
  Program program(given.program);
  Error error = program.Load();
  if (error != Error::Ok) return fprintf(stderr, "cannot load the program (error 0x%x)\n", static_cast<int>(error)), 4;
  program.ClearEvents();
  for (int run = 0; run < std::max(1, runs); ++run) {
    // `--input a --input b` for each input; where there are more, the next calls take the next ones.
    const size_t count = program.method().inputs_size(), from = static_cast<size_t>(run) * count;
    for (size_t k = 0; k < count && !given.inputs.empty(); ++k) {
      const char *const path = given.inputs[(from + k) % given.inputs.size()];
      const char *const colon = strrchr(path, ':');  // FILE:1x64x512
      FILE *const file = fopen(std::string(path, colon == nullptr ? strlen(path) : static_cast<size_t>(colon - path)).c_str(), "rb");
      if (file == nullptr || colon == nullptr) return fprintf(stderr, "cannot read the input %s\n", path), 4;
      std::vector<SizesType> sizes;
      for (const char *at = colon; *at != '\0'; at = strchr(at + 1, 'x') == nullptr ? "" : strchr(at + 1, 'x'))
        sizes.push_back(static_cast<SizesType>(atoi(at + 1)));
      const auto meta = program.method().method_meta().input_tensor_meta(k);
      const auto type = meta.ok() ? meta->scalar_type() : executorch::aten::ScalarType::Float;
      std::vector<executorch::aten::DimOrderType> order(sizes.size());
      std::vector<executorch::aten::StridesType> strides(sizes.size());
      SizesType stride = 1;
      for (size_t axis = sizes.size(); axis-- > 0; stride *= sizes[axis]) {
        order[axis] = static_cast<executorch::aten::DimOrderType>(axis);
        strides[axis] = stride;
      }
      std::vector<char> data(static_cast<size_t>(stride) * runtime::elementSize(type));
      const bool read = fread(data.data(), 1, data.size(), file) == data.size();
      fclose(file);
      if (!read) return fprintf(stderr, "the input %s is too short\n", path), 4;
      executorch::aten::TensorImpl tensor(type, static_cast<ssize_t>(sizes.size()), sizes.data(), data.data(), order.data(),
                                          strides.data(), executorch::aten::TensorShapeDynamism::DYNAMIC_BOUND);
      error = program.method().set_input(EValue(Tensor(&tensor)), k);  // copies
      if (error != Error::Ok)
        return fprintf(stderr, "the program refuses the input %s (error 0x%x)\n", path, static_cast<int>(error)), 4;
    }
    error = program.Execute();
    if (error != Error::Ok) return fprintf(stderr, "the program failed (error 0x%x)\n", static_cast<int>(error)), 4;
    for (size_t k = 0; k < program.method().outputs_size(); ++k) {
      const EValue &value = program.method().get_output(k);
      if (!value.isTensor()) continue;
      const Tensor tensor = value.toTensor();
      printf("{\"call\": %d, \"output\": %zu, \"shape\": [", run, k);
      for (ssize_t axis = 0; axis < tensor.dim(); ++axis)
        printf("%s%d", axis == 0 ? "" : ", ", static_cast<int>(tensor.size(axis)));
      printf("], \"execute_us\": %.3f}\n", 1e6 * program.recorder.seconds);
      if (given.output == nullptr) continue;
      const std::string path = std::string(given.output) + std::to_string(run) + "." + std::to_string(k);
      FILE *const file = fopen(path.c_str(), "wb");
      const bool written = file != nullptr && fwrite(tensor.const_data_ptr(), 1, tensor.nbytes(), file) == tensor.nbytes();
      if (file == nullptr || fclose(file) != 0 || !written) return fprintf(stderr, "cannot write %s\n", path.c_str()), 4;
    }
  }
  printf("{\"planned_bytes\": %lld, \"workspace_bytes\": %lld}\n", static_cast<long long>(program.planned()),
         static_cast<long long>(convscan::WorkspacePeak()));
  return WriteTrace(program.recorder) ? 0 : (fprintf(stderr, "cannot write %s\n", given.trace), 4);
}

int Usage() {
  fprintf(stderr, "judge causal_conv C L K | linear_recurrence C L  --program FILE.pte | --kernels FILE.so\n"
                  "  [--name NAME] [--inputs N] [--runs N] [--seconds S] [--threads N] [--cpus 4-7] [--calls N]\n"
                  "judge run FILE.pte [--input FILE:1x64x512 ...] [--output PREFIX] [--trace FILE] [--calls N] [--threads N]\n");
  return 2;
}

}  // namespace

int main(int count, char **words) {
  runtime::runtime_init();
  harness::Options options;
  bool is_conv = false, runs_program = count > 2 && strcmp(words[1], "run") == 0;
  if (runs_program) given.program = words[2];
  std::vector<char *> rest(words, words + count);
  if (runs_program) rest.erase(rest.begin() + 2);
  if (!harness::ReadArguments(static_cast<int>(rest.size()), rest.data(), options, is_conv, Other)) return Usage();
  if (options.threads > 0)
    executorch::extension::threadpool::get_threadpool()->_unsafe_reset_threadpool(static_cast<uint32_t>(options.threads));
  if (runs_program) return RunProgram(options.calls);
  if (options.channels == 0 || (given.program == nullptr) == (given.kernels == nullptr)) return Usage();
  Case c(options, is_conv);
  std::unique_ptr<SubmittedProgram> program;
  std::unique_ptr<SubmittedKernels> kernels;
  std::vector<harness::Implementation *> all;
  if (given.program != nullptr) {
    program = std::make_unique<SubmittedProgram>(given.name == nullptr ? "program" : given.name, given.program);
    all.push_back(program.get());
  } else {
    kernels = std::make_unique<SubmittedKernels>(given.name == nullptr ? "kernels" : given.name, given.kernels);
    all.push_back(kernels.get());
  }
  options.calls > 0 ? harness::CallOnly(c, all) : harness::Judge(c, all);
  return 0;
}
