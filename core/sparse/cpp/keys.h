// The keys of a block of queries, in groups of at most KEYS: runs of adjacent keys that may be attended to.

#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "call.h"
#include "vectors.h"

namespace {

constexpr int64_t KEYS = 128;  // of a group: their logits and slopes for a block of queries fit the cache
static_assert(KEYS % 2 == 0, "numbers of bf16 come in pairs");

struct Run {
  int64_t at, size;  // rows of the group's tiles
  int64_t slot;      // of the first key; global keys lie before slot 0
  int64_t place;     // of the first key among all columns of the query block, -1 for global keys
};

class Keys {
 public:
  std::vector<Run> runs;  // of the current group
  int64_t used = 0;       // how many keys they have

  // global: the queries are global tokens; row: of the body's query blocks otherwise.
  // mask: of all keys of the sequence, global ones first; or null.
  void start(const Plan& plan, bool global, int64_t row, const uint8_t* mask) {
    this->plan = &plan, this->mask = mask;
    first_column = global ? nullptr : plan.columns + plan.start[row];
    columns = !global ? plan.start[row + 1] - plan.start[row] : plan.causal ? 0 : plan.blocks;
    column = offset = 0;
    slots = plan.index ? plan.blocks * plan.block : plan.keys;
    global_left = plan.num_global;
    // Where slots may be empty in every block, a product over a few too many keys is faster than many small ones.
    bridged = plan.index ? ROWS : 0;
  }

  // Fills the next group; false if there are no more keys.
  bool next() {
    runs.clear();
    used = 0;
    while (used < KEYS && column < columns) {
      int64_t from = (first_column ? first_column[column] : column) * plan->block + offset;
      int64_t size = std::min(plan->block - offset, slots - from), taken = std::min(size, KEYS - used);
      add(from, column * plan->block + offset, taken);
      if (taken < size) offset += taken;
      else ++column, offset = 0;
    }
    while (used < KEYS && column == columns && global_left) {
      int64_t taken = std::min(global_left, KEYS - used);
      add(-global_left, -1, taken);
      global_left -= taken;
    }
    return used;
  }

  // The slot behind the last of the group.
  int64_t end() const { return runs.back().slot + runs.back().size; }
  bool allowed(int64_t slot) const { return !mask || mask[plan->num_global + slot]; }

 private:
  const Plan* plan;
  const uint8_t* mask;
  const int64_t* first_column;
  int64_t columns, column, offset, slots, global_left, bridged;

  // Keys side by side, without those that the mask forbids.
  void add(int64_t slot, int64_t place, int64_t size) {
    for (int64_t i = 0; i < size;) {
      for (; i < size && !allowed(slot + i);) ++i;
      int64_t from = i, end = i;  // end: behind the last key that is allowed
      for (; i < size && i - end <= bridged; ++i)
        if (allowed(slot + i)) end = i + 1;
        else if (!bridged) break;
      if (end > from) join({used, end - from, slot + from, place < 0 ? -1 : place + from});
      i = end > from ? end : i;
    }
  }
  void join(const Run& run) {
    Run* last = runs.empty() ? nullptr : &runs.back();
    bool follows = last && last->slot + last->size == run.slot && (last->place < 0) == (run.place < 0);
    if (follows) last->size += run.size;
    else runs.push_back(run);
    used += run.size;
  }
};

}  // namespace
