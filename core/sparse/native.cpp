// Sparse attention on a CPU, forward and backward, over a plan's table of blocks (native.py compiles and calls it).
//
// Each thread computes one block of queries at a time. It goes over their key blocks in groups of about KEYS keys, so
// that logits and weights stay in its cache; softmax is computed online over the groups (Dao et al. 2022, algorithm 1).
// Keys and values are read where they are. Matrix products are torch's own BLAS, which `gemm` points to.

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
  explicit Pass(const Call& call)
      : call(call),
        block(call.block),
        num_global(call.num_global),
        c(call.c),
        e(call.e),
        max_blocks(std::max<int64_t>(KEYS / block, 1)),
        logits(block * (max_blocks * block + num_global)),
        slopes(logits.size()),
        highest(block),
        total(block),
        delta(block),
        q_tile(block * c),
        out_tile(block * e),
        grad_tile(block * e),
        dq_tile(block * c) {}

  // Query blocks 0 .. blocks - 1 are the body's, those behind them the global tokens'.
  static int64_t rows(const Call& call) { return call.blocks + (call.num_global + call.block - 1) / call.block; }

  bool forward(int64_t b, int64_t h, int64_t row) {
    select(b, h, row, 0);
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
  void clear(int64_t b, int64_t h, int64_t part) {
    select(b, h, 0, part);
    clear(call.dk, slots(), c), clear(call.dv, slots(), e);
    clear(call.dk_global, num_global, c), clear(call.dv_global, num_global, e);
  }

  bool backward(int64_t b, int64_t h, int64_t row, int64_t part) {
    select(b, h, row, part);
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
  int64_t block, num_global, c, e;
  int64_t max_blocks;  // of the keys of a group
  std::vector<T> logits, slopes, highest, total, delta, q_tile, out_tile, grad_tile, dq_tile;
  int64_t b, h, row, part, queries;
  bool global;                 // the queries are global tokens
  int64_t group, count, used;  // this group's first column, its number of columns and of logits
  bool first_group, last_group;  // whether it is the row's first group, and its last, which has the global keys too

  void clear(const View& view, int64_t tokens, int64_t size) {
    for (int64_t i = 0; i < tokens; ++i) std::fill(at(view, i), at(view, i) + size, T(0));
  }

  void select(int64_t batch, int64_t head, int64_t number, int64_t piece) {
    b = batch, h = head, part = piece;
    global = number >= call.blocks;
    row = global ? number - call.blocks : number;
    queries = std::min(block, (global ? num_global : slots()) - row * block);
  }

  int64_t slots() const { return call.index ? call.blocks * block : call.length; }
  int64_t columns() const {
    if (global) return call.causal ? 0 : call.blocks;
    return call.start[row + 1] - call.start[row];
  }
  int64_t column(int64_t i) const { return global ? i : call.columns[call.start[row] + i]; }

  // --- tokens ---

  T* at(const View& view, int64_t token) const {  // null in a view that a pass has no use for
    if (!view.data) return nullptr;
    return static_cast<T*>(view.data) + part * view.part + b * view.batch + h * view.head + token * view.token;
  }
  // The token of the sequence that a query is, -1 for an empty slot.
  int64_t token(int64_t a) const {
    int64_t place = row * block + a;
    if (global) return place;
    if (!call.index) return num_global + place;
    return call.index[place] < 0 ? -1 : num_global + call.index[place];
  }
  bool in_place() const { return global || !call.index; }

  const T* read(const View& view, int64_t size, std::vector<T>& tile, int64_t& stride) const {
    if (in_place()) {
      stride = view.token;
      return at(view, token(0));
    }
    stride = size;
    for (int64_t a = 0; a < queries; ++a) {
      int64_t from = token(a);
      if (from < 0) std::fill(&tile[a * size], &tile[a * size] + size, T(0));
      else std::memcpy(&tile[a * size], at(view, from), size * sizeof(T));
    }
    return tile.data();
  }
  T* output_tile(const View& view, int64_t size, std::vector<T>& tile, int64_t& stride) const {
    stride = in_place() ? view.token : size;
    return in_place() ? at(view, token(0)) : tile.data();
  }
  void write(const View& view, int64_t size, const T* tile, int64_t stride) const {
    if (in_place()) return;
    for (int64_t a = 0; a < queries; ++a)
      if (token(a) >= 0) std::memcpy(at(view, token(a)), tile + a * stride, size * sizeof(T));
  }
  T unused;  // the log-sum-exp of an empty slot
  T& lse(int64_t a) {
    int64_t to = token(a);
    if (to < 0) return unused = 0;
    return static_cast<T*>(call.lse)[(b * call.heads + h) * (num_global + call.length) + to];
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
      Side side{at(call.k, from),   at(call.v, from), at(call.dk, from), at(call.dv, from),
                call.k.token, call.v.token,     call.dk.token,     call.dv.token};
      body(i * block, std::min((next - i) * block, slots() - from), side);
    }
    if (last_group && num_global) {
      Side side{at(call.k_global, 0), at(call.v_global, 0), at(call.dk_global, 0), at(call.dv_global, 0),
                call.k_global.token,  call.v_global.token,  call.dk_global.token,  call.dv_global.token};
      body(count * block, num_global, side);
    }
  }

  void compute_logits(const T* q, int64_t lq) {
    spans([&](int64_t at, int64_t size, const Side& side) {
      product(queries, size, c, T(call.scale / LN2), 0)({q, lq}, {side.k, side.lk, true}, {&logits[at], used});
    });
    int64_t body = count * block;
    if (!global && call.mask_at[row] >= 0)
      for (int64_t a = 0; a < queries; ++a)
        apply_mask(&logits[a * used], call.masks + call.mask_at[row] + a * call.mask_row[row] + group * block, body);
    if (!call.index && count && column(group + count - 1) == call.blocks - 1)  // the last block may be shorter
      for (int64_t a = 0; a < queries; ++a)
        std::fill(&logits[a * used] + body - (call.blocks * block - call.length), &logits[a * used] + body, -INF);
    if (call.key_mask)
      for (int64_t i = 0; i < count; ++i)
        mask_keys(i * block, call.key_mask + (b * call.blocks + column(group + i)) * block, block);
    if (!last_group) return;
    if (call.global_key_mask) mask_keys(body, call.global_key_mask + b * num_global, num_global);
    if (global && call.causal)
      for (int64_t a = 0; a < queries; ++a)
        std::fill(&logits[a * used] + body + std::min(num_global, row * block + a + 1), &logits[a * used] + used, -INF);
  }

  // Dropout of a query's weights, drawn alike in both passes: from the seed, the query and each key.
  void drop(int64_t a, T* x) const {
    if (!call.dropped) return;
    uint32_t key = draw(draw(draw(call.seed, b * call.heads + h), global), row * block + a);
    for (int64_t i = 0; i < count; ++i)
      apply_dropout(call, x + i * block, block, key, column(group + i) * block);
    if (last_group) apply_dropout(call, x + count * block, num_global, ~key, 0);
  }
  void mask_keys(int64_t at, const uint8_t* mask, int64_t size) {
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

template <class T>
void forward(Call& call) {
  int64_t rows = Pass<T>::rows(call), all = call.batch * call.heads * rows, outcome = DONE;
#pragma omp parallel num_threads(call.threads) reduction(max : outcome)
  {
    auto pass = start<T>(call);
    if (!pass) outcome = NO_MEMORY;
#pragma omp for schedule(dynamic, 4)
    for (int64_t i = 0; i < all; ++i)
      if (pass && !pass->forward(i / rows / call.heads, i / rows % call.heads, i % rows)) outcome = NOT_FINITE;
  }
  call.outcome = outcome;
}

template <class T>
void backward(Call& call) {
  int64_t rows = Pass<T>::rows(call), parts = call.parts, all = call.batch * call.heads * parts, outcome = DONE;
#pragma omp parallel num_threads(call.threads) reduction(max : outcome)
  {
    auto pass = start<T>(call);
    if (!pass) outcome = NO_MEMORY;
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < all; ++i) {
      if (!pass) continue;
      int64_t x = i / parts, part = i % parts;
      pass->clear(x / call.heads, x % call.heads, part);
      for (int64_t row = rows * part / parts; row < rows * (part + 1) / parts; ++row)
        if (!pass->backward(x / call.heads, x % call.heads, row, part)) outcome = NOT_FINITE;
    }
  }
  call.outcome = outcome;
}

}  // namespace

extern "C" void forward_float(Call* call) { forward<float>(*call); }
extern "C" void forward_double(Call* call) { forward<double>(*call); }
extern "C" void backward_float(Call* call) { backward<float>(*call); }
extern "C" void backward_double(Call* call) { backward<double>(*call); }
