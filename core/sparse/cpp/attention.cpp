// Attention on a CPU, forward and backward, over the tables of blocks of plans (../native.py compiles and calls it).
//
// A call has many sequences: those of a batch, or several in a row, each with its own plan. Each thread computes one
// block of queries of a sequence at a time (pass.h), by products of small tiles (products.h).

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <exception>
#include <optional>
#include <vector>

#include "call.h"
#include "norms.h"
#include "pass.h"
#include "turns.h"

namespace {

// A thread's own pass, or nothing if there is no memory for it: no exception may leave a parallel region.
template <class S>
std::optional<Pass<S>> start(const Call& call) {
  try {
    return std::make_optional<Pass<S>>(call);
  } catch (const std::exception&) {
    return {};
  }
}

// Query blocks 0 .. query_blocks - 1 are the body's, those behind them the global tokens'.
int64_t rows(const Plan& plan) { return plan.query_blocks + (plan.num_global + plan.block - 1) / plan.block; }

template <class S>
void forward(Call& call) {
  int64_t outcome = DONE;
  std::vector<int64_t> ends(call.count);  // of the work on each sequence, in query blocks of its heads
  for (int64_t i = 0; i < call.count; ++i)
    ends[i] = (i ? ends[i - 1] : 0) + call.heads * rows(call.plans[call.sequences[i].plan]);
  int64_t all = ends.empty() ? 0 : ends.back();
#pragma omp parallel num_threads(call.threads) reduction(max : outcome)
  {
    auto pass = start<S>(call);
    if (!pass) outcome = NO_MEMORY;
#pragma omp for schedule(dynamic, 4)
    for (int64_t i = 0; i < all; ++i) {
      int64_t number = std::upper_bound(ends.begin(), ends.end(), i) - ends.begin();
      int64_t each = rows(call.plans[call.sequences[number].plan]), x = i - (number ? ends[number - 1] : 0);
      if (pass && !pass->forward(number, x / each, x % each)) outcome = NOT_FINITE;
    }
  }
  call.outcome = outcome;
}

template <class S>
void backward(Call& call) {
  int64_t parts = call.parts, together = call.together, outcome = DONE;
  int64_t all = call.count / together * call.heads * parts;
#pragma omp parallel num_threads(call.threads) reduction(max : outcome)
  {
    auto pass = start<S>(call);
    if (!pass) outcome = NO_MEMORY;
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < all; ++i) {
      if (!pass) continue;
      int64_t part = i % parts, h = i / parts % call.heads, first = i / parts / call.heads * together;
      for (int64_t number = first; number < first + together; ++number) {
        int64_t each = rows(call.plans[call.sequences[number].plan]);
        pass->clear(number, h, part);
        for (int64_t row = each * part / parts; row < each * (part + 1) / parts; ++row)
          if (!pass->backward(number, h, row, part)) outcome = NOT_FINITE;
        pass->finish(number, h, part);
      }
    }
    wait_for_streams();
  }
  call.outcome = outcome;
}

}  // namespace

// Asks for memory in large pages, which the system provides faster than many small ones.
extern "C" void use_large_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t PAGE = 1 << 21;
  uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + PAGE - 1) / PAGE * PAGE;
  uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / PAGE * PAGE;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

extern "C" void forward_float(Call* call) { forward<float>(*call); }
extern "C" void forward_double(Call* call) { forward<double>(*call); }
extern "C" void backward_float(Call* call) { backward<float>(*call); }
extern "C" void backward_double(Call* call) { backward<double>(*call); }
extern "C" void turn_float(Turns* turns) { turn_all<float>(*turns); }
#ifdef __AVX512BF16__
extern "C" void forward_bf16(Call* call) { forward<Bf16>(*call); }
extern "C" void backward_bf16(Call* call) { backward<Bf16>(*call); }
extern "C" void turn_bf16(Turns* turns) { turn_all<Bf16>(*turns); }
extern "C" void norm_bf16(Norms* norms) { norm_all(*norms); }
extern "C" void norm_backward_bf16(Norms* norms) { norm_all_backward(*norms); }
#endif
