// Linear attention with decay, forward: tiles of time one after the other, with the state in the caches between them.
//
// A task has some heads, of a group, which share the products of q and k, or of some groups: their rows are neighbours in
// memory, and one head's row alone is often all that there is of a page. And it has some columns of their states: columns
// are independent of one another, so that few heads are enough for many threads. No task's arithmetic depends on how the
// work is cut.
#include "chunk/ahead.h"
#include "chunk/state.h"
#include "chunk/tile.h"
#include "core/kernels.h"
#include "core/parallel.h"
#include "core/storage.h"
#include "core/workspace.h"

namespace convscan::CONVSCAN_ISA {
namespace {

// Heads of a task: their states stay in the second level of cache.
constexpr int64_t kMostHeads = 4;
// Tasks for each thread: enough to even out what the last ones wait for.
constexpr int64_t kTasksPerThread = 2;
// Columns that a task must keep for its products to be worth preparing P once more.
constexpr int64_t kFewestColumns = 32;
// Below this many multiply-adds, waking threads takes longer than multiplying.
constexpr int64_t kSmallProblem = 1 << 17;

template <class S, bool kPerKey>
class Forward {
 public:
  using T = Compute<S>;

  explicit Forward(const convscan_attention &problem) : p_(problem) {
    const int64_t in_group = p_.heads / p_.groups, lines = p_.batch * p_.sequences;
    const bool is_small = p_.batch * p_.length * p_.heads * p_.keys * p_.values < kSmallProblem;
    const int64_t wanted = is_small ? 1 : kTasksPerThread * (p_.threads > 0 ? p_.threads : ThreadCount());
    heads_ = Min(kMostHeads, in_group);
    groups_ = Max(1, Min(kMostHeads / in_group, p_.groups));
    const auto tasks = [&] { return lines * CeilDiv(p_.groups, groups_) * CeilDiv(in_group, heads_); };
    while (groups_ > 1 && tasks() < wanted) groups_ /= 2;
    while (heads_ > 1 && tasks() < wanted) heads_ /= 2;
    blocks_ = CeilDiv(in_group, heads_);
    bundles_ = CeilDiv(p_.groups, groups_);
    parts_ = Max(1, Min(CeilDiv(wanted, Max(1, tasks())), p_.values / kFewestColumns));
    columns_ = CeilDiv(Max(1, CeilDiv(p_.values, parts_)), kLanes<T>) * kLanes<T>;
    parts_ = Max(1, CeilDiv(p_.values, columns_));
    threads_ = is_small ? 1 : p_.threads;
    sizes_ = SizesOf<T>(p_.length, p_.keys, Min(columns_, p_.values) + (p_.sums != nullptr), kPerKey);
  }

  convscan_status Run() const {
    Arena counting(nullptr);
    Memory().Take(counting, *this);
    bool failed = false;
    ParallelFor(p_.batch * p_.sequences * bundles_ * blocks_ * parts_, threads_, [&](int64_t task) {
      void *const memory = Workspace(counting.Used());
      if (memory == nullptr) {
        __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
        return;
      }
      Arena arena(memory);
      Memory taken;
      taken.Take(arena, *this);
      Task(task, taken);
    });
    return failed ? CONVSCAN_OUT_OF_MEMORY : CONVSCAN_OK;
  }

 private:
  struct Memory {
    KeyTile<T> keys;
    HeadTile<T, kPerKey> head;
    T *y, *states;

    void Take(Arena &arena, const Forward &of) {
      keys.Take(arena, of.sizes_, kPerKey);
      head.Take(arena, of.sizes_);
      y = arena.Take<T>(of.sizes_.steps * of.sizes_.values);
      states = arena.Take<T>(of.groups_ * of.heads_ * of.sizes_.keys * of.sizes_.values);
    }
  };

  void Task(int64_t task, Memory &memory) const {
    const int64_t part = task % parts_, block = task / parts_ % blocks_, bundle = task / parts_ / blocks_ % bundles_;
    const int64_t sequence = task / parts_ / blocks_ / bundles_ % p_.sequences;
    const int64_t batch = task / parts_ / blocks_ / bundles_ / p_.sequences, in_group = p_.heads / p_.groups;
    const int64_t first_group = bundle * groups_, last_group = Min(first_group + groups_, p_.groups);
    const Columns columns = {part * columns_, Min(columns_, p_.values - part * columns_),
                             p_.sums != nullptr && part == parts_ - 1};
    TileSizes sizes = sizes_;
    sizes.values = SizesOf<T>(p_.length, p_.keys, columns.Total(), kPerKey).values;
    memory.head.sizes = sizes;
    const int64_t state_size = sizes.keys * sizes.values;
    // The heads of a group that the task has, and run(head, its state) for them.
    const auto first_head = [&](int64_t group) { return group * in_group + block * heads_; };
    const auto last_head = [&](int64_t group) { return Min(first_head(group) + heads_, (group + 1) * in_group); };
    const auto each_head = [&](int64_t group, const auto &run) {
      T *state = memory.states + (group - first_group) * heads_ * state_size;
      for (int64_t h = first_head(group); h < last_head(group); ++h, state += state_size) run(h, state);
    };
    for (int64_t group = first_group; group < last_group; ++group)
      each_head(group, [&](int64_t h, T *state) {
        LoadState(p_.initial, p_, batch, sequence, h, columns, sizes, state);
      });
    const int64_t begin = p_.boundaries == nullptr ? 0 : p_.boundaries[sequence];
    const int64_t end = p_.boundaries == nullptr ? p_.length : p_.boundaries[sequence + 1];
    Ahead ahead;
    // What the head behind this one will load: of the same group, of the next one, or of the first in the next tile.
    const auto look_ahead = [&](int64_t t, int64_t group, int64_t head) {
      ahead.Clear();
      const bool same_group = head + 1 < last_head(group);
      if (!same_group && ++group == last_group) {
        group = first_group;
        t += sizes.steps;
      }
      const int64_t next = same_group ? head + 1 : first_head(group), n = Min(sizes.steps, end - t);
      if (!same_group) {
        ahead.Add(Rows<S>(p_.q, p_.q_strides, batch, t, group), n, p_.keys);
        ahead.Add(Rows<S>(p_.k, p_.k_strides, batch, t, group), n, p_.keys);
      }
      ahead.Add(Rows<S>(p_.v, p_.v_strides, batch, t, next).From(columns.first), n, columns.count);
      if constexpr (kPerKey) ahead.Add(Rows<T>(p_.g, p_.g_strides, batch, t, next), n, p_.keys);
      ahead.Spread(memory.head.Blocks(memory.keys));
    };
    const auto meanwhile = [&] { ahead.Ask(); };
    for (int64_t t = begin; t < end; t += sizes.steps) {
      for (int64_t group = first_group; group < last_group; ++group) {
        memory.keys.template Load<S>(p_, sizes, kPerKey, batch, group, t, Min(sizes.steps, end - t));
        each_head(group, [&](int64_t h, T *state) {
          memory.head.template Load<S>(p_, memory.keys, batch, h, t, columns, HeadTile<T, kPerKey>::For::output);
          look_ahead(t, group, h);
          memory.head.Output(memory.keys, state, memory.y, meanwhile);
          memory.head.Advance(memory.keys, state, meanwhile);
          StoreOutput(memory, batch, h, t, columns, sizes);
        });
      }
    }
    for (int64_t group = first_group; group < last_group; ++group)
      each_head(group, [&](int64_t h, T *state) {
        StoreState(p_.final, p_, batch, sequence, h, columns, sizes, state);
      });
  }

  void StoreOutput(const Memory &memory, int64_t batch, int64_t head, int64_t t, const Columns &columns,
                   const TileSizes &sizes) const {
    const int64_t n = memory.keys.n;
    if (p_.sums != nullptr && columns.has_sum) {
      const Rows<T> sums(p_.sums, p_.sums_strides, batch, t, head);
      for (int64_t s = 0; s < n; ++s) sums.Set(s, 0, memory.y[s * sizes.values + columns.count]);
    }
    if (p_.skip != nullptr) {
      const T *const skip = static_cast<const T *>(p_.skip) + head * p_.skip_head_stride;
      for (int64_t s = 0; s < n; ++s)
        for (int64_t c = 0; c < columns.count; ++c)
          memory.y[s * sizes.values + c] +=
              skip[(columns.first + c) * p_.skip_channel_stride] * memory.head.v[s * sizes.values + c];
    }
    Rows<S>(p_.y, p_.y_strides, batch, t, head).From(columns.first).StoreFrom(n, columns.count, memory.y, sizes.values);
  }

  const convscan_attention &p_;
  int64_t heads_, blocks_;    // heads of a task in each of its groups, tasks of a group
  int64_t groups_, bundles_;  // groups of a task, tasks for all groups
  int64_t columns_, parts_;   // columns of a task, tasks of a head
  int threads_;
  TileSizes sizes_;
};

}  // namespace

convscan_status AttentionChunked(const convscan_attention &problem) {
  return WithRealStorage(problem.dtype, [&]<class S>(Type<S>) {
    return problem.per_key ? Forward<S, true>(problem).Run() : Forward<S, false>(problem).Run();
  });
}

}  // namespace convscan::CONVSCAN_ISA
