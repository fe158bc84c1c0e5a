// The gated delta rule, forward: tiles of time one after the other, with the state in the caches between them. A task
// is a head of one sequence.
#include "chunk/delta.h"
#include "core/kernels.h"
#include "core/parallel.h"
#include "core/storage.h"
#include "core/workspace.h"

namespace convscan::CONVSCAN_ISA {
namespace {

// Below this many multiply-adds, waking threads takes longer than multiplying.
constexpr int64_t kSmallProblem = 1 << 17;

template <class S>
convscan_status Forward(const convscan_delta_rule &problem) {
  using T = Compute<S>;
  const DeltaSizes<T> sizes(problem);
  struct Memory {
    DeltaTile<T> tile;
    T *y = nullptr, *state = nullptr;

    Memory(Arena &arena, const convscan_delta_rule &problem) : tile(problem) {
      tile.Take(arena);
      y = arena.Take<T>(kDeltaSteps * tile.sizes.values);
      state = arena.Take<T>(tile.sizes.State());
    }
  };
  Arena counting(nullptr);
  Memory(counting, problem);
  const bool is_small = problem.batch * problem.length * problem.heads * problem.keys * problem.values < kSmallProblem;
  bool failed = false;
  ParallelFor(problem.batch * problem.sequences * problem.heads, is_small ? 1 : problem.threads, [&](int64_t task) {
    void *const block = Workspace(counting.Used());
    if (block == nullptr) {
      __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
      return;
    }
    Arena arena(block);
    Memory memory(arena, problem);
    const int64_t head = task % problem.heads, sequence = task / problem.heads % problem.sequences;
    const int64_t batch = task / problem.heads / problem.sequences;
    const int64_t begin = problem.boundaries == nullptr ? 0 : problem.boundaries[sequence];
    const int64_t end = problem.boundaries == nullptr ? problem.length : problem.boundaries[sequence + 1];
    __builtin_memset(memory.state, 0, sizeof(T) * static_cast<size_t>(sizes.State()));
    if (problem.initial != nullptr)
      MoveState<false>(static_cast<T *>(const_cast<void *>(problem.initial)), problem.initial_strides, problem, batch,
                       sequence, head, memory.state, sizes.values);
    for (int64_t t = begin; t < end; t += kDeltaSteps) {
      memory.tile.template Read<S>(problem, batch, head, t, Min(kDeltaSteps, end - t));
      memory.tile.Solve(memory.state, memory.y);
      Rows<S>(problem.y, problem.y_strides, batch, t, head)
          .StoreFrom(memory.tile.n, problem.values, memory.y, sizes.values);
      memory.tile.Advance(memory.state);
    }
    if (problem.last != nullptr)
      MoveState<true>(static_cast<T *>(problem.last), problem.last_strides, problem, batch, sequence, head,
                      memory.state, sizes.values);
  });
  return failed ? CONVSCAN_OUT_OF_MEMORY : CONVSCAN_OK;
}

}  // namespace

convscan_status DeltaRuleChunked(const convscan_delta_rule &problem) {
  return WithRealStorage(problem.dtype, [&]<class S>(Type<S>) { return Forward<S>(problem); });
}

}  // namespace convscan::CONVSCAN_ISA
