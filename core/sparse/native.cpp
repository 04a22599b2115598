// Sparse attention on a CPU, forward and backward, over a plan's table of blocks (native.py builds and calls it).
//
// A thread takes one block of queries at a time and walks its key blocks, about KEYS keys at once, so that logits and
// weights never leave its cache; softmax runs online over the groups (Dao et al. 2022, algorithm 1). Keys and values
// are read where they lie. Products are torch's own BLAS, which `gemm` points to.

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>
#include <limits>
#include <optional>
#include <vector>

namespace {

constexpr int64_t KEYS = 1024;

struct View {  // "part b h n c": strides count elements; that of the last axis is 1
  void* data;
  int64_t part, batch, head, token;
};

struct Call {
  void* gemm;
  double scale, lift;      // lift: what the weights that dropout leaves are multiplied with
  int64_t dropped, seed;   // dropped: of 2^32 weights
  int64_t threads, parts;  // parts: of the query blocks, each with its own sums of dk and dv
  int64_t batch, heads, first, blocks, block, length, c, e, causal;
  // The body's tokens: in order, or slot by slot as index says (-1: an empty slot); keys and values are slot by slot.
  const int64_t* index;
  const int64_t* start;     // of each query block's columns; blocks + 1
  const int64_t* columns;   // key blocks
  const int64_t* mask_at;   // where a query block's mask begins, -1 without one
  const int64_t* mask_row;  // how far its queries' masks are apart, 0 if they share one
  const uint8_t* masks;
  const uint8_t *hidden, *hidden_first;  // keys nobody may attend to: "b slots" and "b first", or null
  View q, k, v, k_first, v_first, out, grad, dq, dk, dv, dk_first, dv_first;
  void* lse;  // "b h n", contiguous
  int64_t outcome;
};

enum : int64_t {
  DONE,
  NOT_FINITE,  // a NaN or inf in out (dq, in the backward pass)
  NO_MEMORY,
};

template <class T>
using Gemm = void (*)(const char*, const char*, const int*, const int*, const int*, const T*, const T*, const int*,
                      const T*, const int*, const T*, T*, const int*);

// Logits are kept in units of ln 2, so that powers of two take the place of exponentials.
constexpr double LN2 = 0.693147180559945309;

inline double power(double x) { return std::exp2(x); }

// 2^n 2^r with |r| <= 1/2 (Cephes' exp2f), for x up to 127; compilers make vector instructions of it. NaN stays NaN.
inline float power(float x) {
  float limited = x < -126.0f ? -126.0f : x;
  float n = std::nearbyint(limited), r = limited - n;
  float p = 1.535336188319500e-4f;
  p = p * r + 1.339887440266574e-3f;
  p = p * r + 9.618437357674640e-3f;
  p = p * r + 5.550332471162809e-2f;
  p = p * r + 2.402264791363012e-1f;
  p = p * r + 6.931472028550421e-1f;
  p = p * r + 1.0f;
  float scaled = p * std::bit_cast<float>((static_cast<int32_t>(n) + 127) << 23);
  return x < -126.0f ? 0.0f : scaled;
}

// A number drawn from two, evenly (the mixer lowbias32 of Wellons' hash prospector).
inline uint32_t draw(uint32_t key, uint32_t i) {
  uint32_t x = (i + 0x9e3779b9u) * 0x85ebca6bu ^ key;
  x = (x ^ x >> 16) * 0x7feb352du;
  x = (x ^ x >> 15) * 0x846ca68bu;
  return x ^ x >> 16;
}

template <class T>
class Walk {
 public:
  explicit Walk(const Call& call)
      : call(call),
        block(call.block),
        first(call.first),
        c(call.c),
        e(call.e),
        most(std::max<int64_t>(KEYS / block, 1)),
        logits(block * (most * block + first)),
        slopes(logits.size()),
        highest(block),
        total(block),
        delta(block),
        q_tile(block * c),
        out_tile(block * e),
        grad_tile(block * e),
        dq_tile(block * c) {}

  // Query blocks 0 .. blocks - 1 are the body's, those behind them the global tokens'.
  static int64_t rows(const Call& call) { return call.blocks + (call.first + call.block - 1) / call.block; }

  bool forward(int64_t b, int64_t h, int64_t row) {
    take(b, h, row, 0);
    int64_t lq, lo;
    const T* q = read(call.q, c, q_tile, lq);
    T* out = room(call.out, e, out_tile, lo);
    std::fill(highest.begin(), highest.end(), -INF);
    std::fill(total.begin(), total.end(), T(0));
    if (!columns() && !first)
      for (int64_t a = 0; a < queries; ++a) std::fill(out + a * lo, out + a * lo + e, T(0));
    groups([&] {
      find_logits(q, lq);
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
        if (!opening)
          for (int64_t i = 0; i < e; ++i) out[a * lo + i] *= shrink;
      }
      spans([&](int64_t at, int64_t size, const Side& side) {
        gemm(false, false, queries, e, size, 1, &logits[at], used, side.v, side.lv, !opening || at, out, lo);
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
    take(b, h, 0, part);
    clear(call.dk, slots(), c), clear(call.dv, slots(), e);
    clear(call.dk_first, first, c), clear(call.dv_first, first, e);
  }

  bool backward(int64_t b, int64_t h, int64_t row, int64_t part) {
    take(b, h, row, part);
    int64_t lq, lo, lg, ld;
    const T *q = read(call.q, c, q_tile, lq), *out = read(call.out, e, out_tile, lo);
    const T* grad = read(call.grad, e, grad_tile, lg);
    T* dq = room(call.dq, c, dq_tile, ld);
    for (int64_t a = 0; a < queries; ++a) {
      T sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < e; ++i) sum += grad[a * lg + i] * out[a * lo + i];
      delta[a] = sum;
      std::fill(dq + a * ld, dq + a * ld + c, T(0));
    }
    groups([&] {
      find_logits(q, lq);
      spans([&](int64_t at, int64_t size, const Side& side) {
        gemm(false, true, queries, size, e, 1, grad, lg, side.v, side.lv, 0, &slopes[at], used);
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
        gemm(true, false, size, e, queries, 1, &logits[at], used, grad, lg, 1, side.dv, side.ldv);
        gemm(true, false, size, c, queries, 1, &slopes[at], used, q, lq, 1, side.dk, side.ldk);
        gemm(false, false, queries, c, size, 1, &slopes[at], used, side.k, side.lk, 1, dq, ld);
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
  int64_t block, first, c, e;
  int64_t most;  // key blocks of a group
  std::vector<T> logits, slopes, highest, total, delta, q_tile, out_tile, grad_tile, dq_tile;
  int64_t b, h, row, part, queries;
  bool global;                 // the queries are global tokens
  int64_t group, count, used;  // this group's first column, its number of columns and of logits
  bool opening, closing;       // whether it is the row's first group, and its last, which has the global keys too

  void clear(const View& view, int64_t tokens, int64_t size) {
    for (int64_t i = 0; i < tokens; ++i) std::fill(at(view, i), at(view, i) + size, T(0));
  }

  void take(int64_t batch, int64_t head, int64_t number, int64_t piece) {
    b = batch, h = head, part = piece;
    global = number >= call.blocks;
    row = global ? number - call.blocks : number;
    queries = std::min(block, (global ? first : slots()) - row * block);
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
    if (!call.index) return first + place;
    return call.index[place] < 0 ? -1 : first + call.index[place];
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
  T* room(const View& view, int64_t size, std::vector<T>& tile, int64_t& stride) const {
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
    return static_cast<T*>(call.lse)[(b * call.heads + h) * (first + call.length) + to];
  }

  // --- keys ---

  template <class F>
  void groups(F body) {
    int64_t all = columns();
    for (group = 0; group == 0 || group < all; group += most) {
      count = std::min(most, all - group);
      opening = group == 0, closing = group + most >= all;
      used = count * block + (closing ? first : 0);
      if (used) body();
    }
  }

  // Keys that lie side by side: `at` is where their logits begin.
  template <class F>
  void spans(F body) {
    for (int64_t i = 0, next; i < count; i = next) {
      int64_t from = column(group + i) * block;
      for (next = i + 1; next < count && column(group + next) == column(group + next - 1) + 1;) ++next;
      Side side{at(call.k, from),   at(call.v, from), at(call.dk, from), at(call.dv, from),
                call.k.token, call.v.token,     call.dk.token,     call.dv.token};
      body(i * block, std::min((next - i) * block, slots() - from), side);
    }
    if (closing && first) {
      Side side{at(call.k_first, 0), at(call.v_first, 0), at(call.dk_first, 0), at(call.dv_first, 0),
                call.k_first.token,  call.v_first.token,  call.dk_first.token,  call.dv_first.token};
      body(count * block, first, side);
    }
  }

  void find_logits(const T* q, int64_t lq) {
    spans([&](int64_t at, int64_t size, const Side& side) {
      gemm(false, true, queries, size, c, T(call.scale / LN2), q, lq, side.k, side.lk, 0, &logits[at], used);
    });
    int64_t body = count * block;
    if (!global && call.mask_at[row] >= 0)
      for (int64_t a = 0; a < queries; ++a)
        keep(&logits[a * used], call.masks + call.mask_at[row] + a * call.mask_row[row] + group * block, body);
    if (!call.index && count && column(group + count - 1) == call.blocks - 1)  // the last block may be shorter
      for (int64_t a = 0; a < queries; ++a)
        std::fill(&logits[a * used] + body - (call.blocks * block - call.length), &logits[a * used] + body, -INF);
    if (call.hidden)
      for (int64_t i = 0; i < count; ++i)
        hide(i * block, call.hidden + (b * call.blocks + column(group + i)) * block, block);
    if (!closing) return;
    if (call.hidden_first) hide(body, call.hidden_first + b * first, first);
    if (global && call.causal)
      for (int64_t a = 0; a < queries; ++a)
        std::fill(&logits[a * used] + body + std::min(first, row * block + a + 1), &logits[a * used] + used, -INF);
  }

  // Dropout of a query's weights, drawn alike in both passes: from the seed, the query and each key.
  void drop(int64_t a, T* x) const {
    if (!call.dropped) return;
    uint32_t key = draw(draw(draw(call.seed, b * call.heads + h), global), row * block + a);
    for (int64_t i = 0; i < count; ++i) drop(x + i * block, block, key, column(group + i) * block);
    if (closing) drop(x + count * block, first, ~key, 0);
  }
  void drop(T* x, int64_t size, uint32_t key, uint32_t from) const {
    uint32_t dropped = std::min<int64_t>(call.dropped, UINT32_MAX);
    T lift = call.lift;
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) x[i] = draw(key, from + static_cast<uint32_t>(i)) < dropped ? T(0) : x[i] * lift;
  }

  static void keep(T* x, const uint8_t* mask, int64_t size) {
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) x[i] = mask[i] ? x[i] : -INF;
  }
  void hide(int64_t at, const uint8_t* hidden, int64_t size) {
    if (std::find(hidden, hidden + size, 1) == hidden + size) return;
    for (int64_t a = 0; a < queries; ++a) {
      T* x = &logits[a * used + at];
#pragma omp simd
      for (int64_t i = 0; i < size; ++i) x[i] = hidden[i] ? -INF : x[i];
    }
  }

  // Row-major C[m, n] = alpha A[m, k] B[k, n] + beta C; a, b: stored transposed.
  void gemm(bool a, bool b, int64_t m, int64_t n, int64_t k, T alpha, const T* A, int64_t la, const T* B, int64_t lb,
            T beta, T* C, int64_t lc) const {
    int rows = m, columns = n, inner = k, lda = std::max<int64_t>(la, 1), ldb = std::max<int64_t>(lb, 1), ldc = lc;
    reinterpret_cast<Gemm<T>>(call.gemm)(b ? "T" : "N", a ? "T" : "N", &columns, &rows, &inner, &alpha, B, &ldb, A,
                                         &lda, &beta, C, &ldc);
  }
};

// A thread's own walk, unless there is no memory for it: no exception may leave a parallel region.
template <class T>
std::optional<Walk<T>> start(const Call& call) {
  try {
    return Walk<T>(call);
  } catch (const std::exception&) {
    return {};
  }
}

template <class T>
void forward(Call& call) {
  int64_t rows = Walk<T>::rows(call), all = call.batch * call.heads * rows, outcome = DONE;
#pragma omp parallel num_threads(call.threads) reduction(max : outcome)
  {
    auto walk = start<T>(call);
    if (!walk) outcome = NO_MEMORY;
#pragma omp for schedule(dynamic, 4)
    for (int64_t i = 0; i < all; ++i)
      if (walk && !walk->forward(i / rows / call.heads, i / rows % call.heads, i % rows)) outcome = NOT_FINITE;
  }
  call.outcome = outcome;
}

template <class T>
void backward(Call& call) {
  int64_t rows = Walk<T>::rows(call), parts = call.parts, all = call.batch * call.heads * parts, outcome = DONE;
#pragma omp parallel num_threads(call.threads) reduction(max : outcome)
  {
    auto walk = start<T>(call);
    if (!walk) outcome = NO_MEMORY;
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < all; ++i) {
      if (!walk) continue;
      int64_t x = i / parts, part = i % parts;
      walk->clear(x / call.heads, x % call.heads, part);
      for (int64_t row = rows * part / parts; row < rows * (part + 1) / parts; ++row)
        if (!walk->backward(x / call.heads, x % call.heads, row, part)) outcome = NOT_FINITE;
    }
  }
  call.outcome = outcome;
}

}  // namespace

extern "C" void forward_float(Call* call) { forward<float>(*call); }
extern "C" void forward_double(Call* call) { forward<double>(*call); }
extern "C" void backward_float(Call* call) { backward<float>(*call); }
extern "C" void backward_double(Call* call) { backward<double>(*call); }
