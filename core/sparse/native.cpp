// Attention on a CPU, forward and backward, over the tables of blocks of plans (native.py compiles and calls it).
//
// A call has many sequences: those of a batch, or several in a row, each with its own plan. Each thread computes one
// block of queries of a sequence at a time. It goes over their key blocks in groups of about KEYS keys, so that logits
// and weights stay in its cache; softmax is computed online over the groups (Dao et al. 2022, algorithm 1). Keys and
// values are read where they are. Matrix products are torch's own BLAS, which `gemm` points to.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>
#include <limits>
#include <optional>
#include <vector>

#include "native_call.h"
#include "native_math.h"

namespace {

constexpr int64_t KEYS = 1024;

template <class T>
class Pass {
 public:
  explicit Pass(const Call& call) : call(call), c(call.c), e(call.e) {
    int64_t most = 0, widest = 0;  // queries of a block, and logits of such a block
    for (int64_t i = 0; i < call.plan_count; ++i) {
      const Plan& each = call.plans[i];
      most = std::max(most, each.block);
      widest = std::max(widest, each.block * (blocks_at_once(each) * each.block + each.num_global));
    }
    for (auto* tile : {&logits, &slopes}) tile->resize(widest);
    for (auto* tile : {&highest, &total, &delta}) tile->resize(most);
    for (auto* tile : {&q_tile, &dq_tile}) tile->resize(most * c);
    for (auto* tile : {&out_tile, &grad_tile}) tile->resize(most * e);
  }

  bool forward(int64_t sequence, int64_t h, int64_t row) {
    select(sequence, h, row, 0);
    int64_t lq, lo;
    const T* q = read(call.q, c, q_tile, lq);
    T* out = output_tile(call.out, e, out_tile, lo);
    std::fill(highest.begin(), highest.end(), -INF);
    std::fill(total.begin(), total.end(), T(0));
    if (!columns() && !num_global)
      for (int64_t a = 0; a < queries; ++a) std::fill(out + a * lo, out + a * lo + e, T(0));
    groups([&] {
      compute_logits(q, lq);
      for (int64_t a = 0; a < queries; ++a) {
        T* x = &logits[a * used];
        T top = highest[a];
#pragma omp simd reduction(max : top)
        for (int64_t i = 0; i < used; ++i) top = x[i] > top ? x[i] : top;
        T base = top == -INF ? T(0) : top, sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < used; ++i) sum += x[i] = power(x[i] - base);
        T shrink = power(highest[a] - base);
        total[a] = total[a] * shrink + sum;
        highest[a] = top;
        drop(a, x);
        if (!first_group)
          for (int64_t i = 0; i < e; ++i) out[a * lo + i] *= shrink;
      }
      spans([&](int64_t at, int64_t size, const Side& side) {
        product(queries, e, size, 1, !first_group || at)({&logits[at], used}, {side.v, side.lv}, {out, lo});
      });
    });
    T check = 0;
    for (int64_t a = 0; a < queries; ++a) {
      T share = total[a] == 0 ? T(0) : 1 / total[a];
      for (int64_t i = 0; i < e; ++i) check += (out[a * lo + i] *= share) * 0;
      lse(a) = T(LN2) * (highest[a] + std::log2(total[a]));
    }
    write(call.out, e, out, lo);
    return check == 0;
  }

  // Sets the sums of dk and dv to 0: here, so that each thread does its own.
  void clear(int64_t sequence, int64_t h, int64_t part) {
    select(sequence, h, 0, part);
    for (int64_t i = -num_global; i < slots(); ++i) {
      std::fill(key(call.dk, i), key(call.dk, i) + c, T(0));
      std::fill(key(call.dv, i), key(call.dv, i) + e, T(0));
    }
  }

  bool backward(int64_t sequence, int64_t h, int64_t row, int64_t part) {
    select(sequence, h, row, part);
    int64_t lq, lo, lg, ld;
    const T *q = read(call.q, c, q_tile, lq), *out = read(call.out, e, out_tile, lo);
    const T* grad = read(call.grad, e, grad_tile, lg);
    T* dq = output_tile(call.dq, c, dq_tile, ld);
    for (int64_t a = 0; a < queries; ++a) {
      T sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < e; ++i) sum += grad[a * lg + i] * out[a * lo + i];
      delta[a] = sum;
      std::fill(dq + a * ld, dq + a * ld + c, T(0));
    }
    groups([&] {
      compute_logits(q, lq);
      spans([&](int64_t at, int64_t size, const Side& side) {
        product(queries, size, e, 1, 0)({grad, lg}, {side.v, side.lv, true}, {&slopes[at], used});
      });
      for (int64_t a = 0; a < queries; ++a) {
        T *x = &logits[a * used], *y = &slopes[a * used];
        T base = lse(a) == -INF ? T(0) : lse(a) / T(LN2), mean = delta[a], scale = T(call.scale);
        drop(a, y);
#pragma omp simd
        for (int64_t i = 0; i < used; ++i) {
          T weight = power(x[i] - base), slope = weight * (y[i] - mean) * scale;
          x[i] = weight;
          y[i] = weight == 0 ? T(0) : slope;
        }
        drop(a, x);
      }
      spans([&](int64_t at, int64_t size, const Side& side) {
        product(size, e, queries, 1, 1)({&logits[at], used, true}, {grad, lg}, {side.dv, side.ldv});
        product(size, c, queries, 1, 1)({&slopes[at], used, true}, {q, lq}, {side.dk, side.ldk});
        product(queries, c, size, 1, 1)({&slopes[at], used}, {side.k, side.lk}, {dq, ld});
      });
    });
    T check = 0;
    for (int64_t a = 0; a < queries; ++a)
      for (int64_t i = 0; i < c; ++i) check += dq[a * ld + i] * 0;
    write(call.dq, c, dq, ld);
    return check == 0;
  }

 private:
  static constexpr T INF = std::numeric_limits<T>::infinity();

  struct Side {  // some keys side by side, their values, and where their gradients are summed
    const T *k, *v;
    T *dk, *dv;
    int64_t lk, lv, ldk, ldv;
  };

  const Call& call;
  int64_t c, e;
  std::vector<T> logits, slopes, highest, total, delta, q_tile, out_tile, grad_tile, dq_tile;
  const Plan* plan;
  const Sequence* place;
  int64_t block, num_global, max_blocks;  // of the plan; max_blocks: of the keys of a group
  int64_t number, h, row, part, queries;  // number: of the sequence
  bool global;                            // the queries are global tokens
  int64_t group, count, used;             // this group's first column, its number of columns and of logits
  bool first_group, last_group;  // whether it is the row's first group, and its last, which has the global keys too

  static int64_t blocks_at_once(const Plan& plan) { return std::max<int64_t>(KEYS / plan.block, 1); }

  void select(int64_t sequence, int64_t head, int64_t query_block, int64_t piece) {
    number = sequence, h = head, part = piece;
    place = &call.sequences[number], plan = &call.plans[place->plan];
    block = plan->block, num_global = plan->num_global, max_blocks = blocks_at_once(*plan);
    global = query_block >= plan->query_blocks;
    row = global ? query_block - plan->query_blocks : query_block;
    int64_t of_body = plan->index ? plan->query_blocks * block : plan->queries;
    queries = std::min(block, (global ? num_global : of_body) - row * block);
  }

  // Keys of the body, slot by slot.
  int64_t slots() const { return plan->index ? plan->blocks * block : plan->keys; }
  int64_t columns() const {
    if (global) return plan->causal ? 0 : plan->blocks;
    return plan->start[row + 1] - plan->start[row];
  }
  int64_t column(int64_t i) const { return global ? i : plan->columns[plan->start[row] + i]; }

  // --- tokens ---

  T* at(const View& view, int64_t token) const {  // null in a view that a pass has no use for
    if (!view.data) return nullptr;
    return static_cast<T*>(view.data) + part * view.part + place->batch * view.batch + h * view.head +
           token * view.token;
  }
  T* query(const View& view, int64_t token) const { return at(view, place->first + token); }
  // By its slot; global keys lie before slot 0.
  T* key(const View& view, int64_t slot) const { return at(view, place->first_key + num_global + slot); }
  // The token of the sequence that a query is, -1 for an empty slot.
  int64_t token(int64_t a) const {
    int64_t slot = row * block + a;
    if (global) return slot;
    if (!plan->index) return num_global + slot;
    return plan->index[slot] < 0 ? -1 : num_global + plan->index[slot];
  }
  bool in_place() const { return global || !plan->index; }

  const T* read(const View& view, int64_t size, std::vector<T>& tile, int64_t& stride) const {
    if (in_place()) {
      stride = view.token;
      return query(view, token(0));
    }
    stride = size;
    for (int64_t a = 0; a < queries; ++a) {
      int64_t from = token(a);
      if (from < 0) std::fill(&tile[a * size], &tile[a * size] + size, T(0));
      else std::memcpy(&tile[a * size], query(view, from), size * sizeof(T));
    }
    return tile.data();
  }
  T* output_tile(const View& view, int64_t size, std::vector<T>& tile, int64_t& stride) const {
    stride = in_place() ? view.token : size;
    return in_place() ? query(view, token(0)) : tile.data();
  }
  void write(const View& view, int64_t size, const T* tile, int64_t stride) const {
    if (in_place()) return;
    for (int64_t a = 0; a < queries; ++a)
      if (token(a) >= 0) std::memcpy(query(view, token(a)), tile + a * stride, size * sizeof(T));
  }
  T unused;  // the log-sum-exp of an empty slot
  T& lse(int64_t a) {
    int64_t to = token(a);
    if (to < 0) return unused = 0;
    return static_cast<T*>(call.lse)[(place->batch * call.heads + h) * call.length + place->first + to];
  }

  // --- keys ---

  template <class F>
  void groups(F body) {
    int64_t all = columns();
    for (group = 0; group == 0 || group < all; group += max_blocks) {
      count = std::min(max_blocks, all - group);
      first_group = group == 0, last_group = group + max_blocks >= all;
      used = count * block + (last_group ? num_global : 0);
      if (used) body();
    }
  }

  // Adjacent keys: their logits start at `at`.
  template <class F>
  void spans(F body) {
    for (int64_t i = 0, next; i < count; i = next) {
      int64_t from = column(group + i) * block;
      for (next = i + 1; next < count && column(group + next) == column(group + next - 1) + 1;) ++next;
      body(i * block, std::min((next - i) * block, slots() - from), side(from));
    }
    if (last_group && num_global) body(count * block, num_global, side(-num_global));
  }
  Side side(int64_t slot) const {
    return {key(call.k, slot), key(call.v, slot), key(call.dk, slot), key(call.dv, slot),
            call.k.token,      call.v.token,      call.dk.token,      call.dv.token};
  }

  void compute_logits(const T* q, int64_t lq) {
    spans([&](int64_t at, int64_t size, const Side& side) {
      product(queries, size, c, T(call.scale / LN2), 0)({q, lq}, {side.k, side.lk, true}, {&logits[at], used});
    });
    int64_t body = count * block;
    if (!global && plan->mask_at[row] >= 0)
      for (int64_t a = 0; a < queries; ++a)
        apply_mask(&logits[a * used], plan->masks + plan->mask_at[row] + a * plan->mask_row[row] + group * block, body);
    int64_t beyond = plan->blocks * block - slots();  // the last block may be shorter
    if (beyond && count && column(group + count - 1) == plan->blocks - 1)
      for (int64_t a = 0; a < queries; ++a)
        std::fill(&logits[a * used] + body - beyond, &logits[a * used] + body, -INF);
    if (call.key_mask)
      for (int64_t i = 0; i < count; ++i) {
        int64_t from = column(group + i) * block;
        mask_keys(i * block, from, std::min(block, slots() - from));
      }
    if (!last_group) return;
    if (call.key_mask) mask_keys(body, -num_global, num_global);
    if (global && plan->causal)
      for (int64_t a = 0; a < queries; ++a)
        std::fill(&logits[a * used] + body + std::min(num_global, row * block + a + 1), &logits[a * used] + used, -INF);
  }

  // Dropout of a query's weights, drawn alike in both passes: from the seed, the query and each key.
  void drop(int64_t a, T* x) const {
    if (!call.dropped) return;
    uint32_t key = draw(draw(draw(call.seed, number * call.heads + h), global), row * block + a);
    for (int64_t i = 0; i < count; ++i)
      apply_dropout(call, x + i * block, block, key, column(group + i) * block);
    if (last_group) apply_dropout(call, x + count * block, num_global, ~key, 0);
  }
  void mask_keys(int64_t at, int64_t slot, int64_t size) {
    const uint8_t* mask = call.key_mask + place->batch * call.key_length + place->first_key + num_global + slot;
    if (std::find(mask, mask + size, 0) == mask + size) return;
    for (int64_t a = 0; a < queries; ++a) apply_mask(&logits[a * used + at], mask, size);
  }

  Product<T> product(int64_t m, int64_t n, int64_t k, T alpha, T beta) const { return {call.gemm, m, n, k, alpha, beta}; }
};

// A thread's own pass, or nothing if there is no memory for it: no exception may leave a parallel region.
template <class T>
std::optional<Pass<T>> start(const Call& call) {
  try {
    return Pass<T>(call);
  } catch (const std::exception&) {
    return {};
  }
}

// Query blocks 0 .. query_blocks - 1 are the body's, those behind them the global tokens'.
int64_t rows(const Plan& plan) { return plan.query_blocks + (plan.num_global + plan.block - 1) / plan.block; }

template <class T>
void forward(Call& call) {
  int64_t outcome = DONE;
  std::vector<int64_t> ends(call.count);  // of the work on each sequence, in query blocks of its heads
  for (int64_t i = 0; i < call.count; ++i)
    ends[i] = (i ? ends[i - 1] : 0) + call.heads * rows(call.plans[call.sequences[i].plan]);
  int64_t all = ends.empty() ? 0 : ends.back();
#pragma omp parallel num_threads(call.threads) reduction(max : outcome)
  {
    auto pass = start<T>(call);
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

template <class T>
void backward(Call& call) {
  int64_t parts = call.parts, all = call.count * call.heads * parts, outcome = DONE;
#pragma omp parallel num_threads(call.threads) reduction(max : outcome)
  {
    auto pass = start<T>(call);
    if (!pass) outcome = NO_MEMORY;
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < all; ++i) {
      if (!pass) continue;
      int64_t part = i % parts, h = i / parts % call.heads, number = i / parts / call.heads;
      int64_t each = rows(call.plans[call.sequences[number].plan]);
      pass->clear(number, h, part);
      for (int64_t row = each * part / parts; row < each * (part + 1) / parts; ++row)
        if (!pass->backward(number, h, row, part)) outcome = NOT_FINITE;
    }
  }
  call.outcome = outcome;
}

}  // namespace

extern "C" void forward_float(Call* call) { forward<float>(*call); }
extern "C" void forward_double(Call* call) { forward<double>(*call); }
extern "C" void backward_float(Call* call) { backward<float>(*call); }
extern "C" void backward_double(Call* call) { backward<double>(*call); }
