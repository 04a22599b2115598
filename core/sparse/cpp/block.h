// A block of queries: where they and the keys of their sequence lie in memory, and their way into tiles and back.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "call.h"
#include "pairs.h"
#include "units.h"
#include "vectors.h"

namespace {

template <class S>
class Block {
 public:
  typedef Sum<S> T;
  static constexpr int64_t N = WIDTH<T>, W = PANEL<T>;

  const Call& call;
  const Plan* plan = nullptr;
  const Sequence* place = nullptr;
  int64_t number = 0, h = 0, row = 0, part = 0;  // number: of the sequence; row: of the query blocks
  int64_t queries = 0, panels = 0;               // panels: of W queries
  bool global = false;                           // the queries are global tokens
  std::vector<char> absent;                      // for each query of the panels, whether there is none

  explicit Block(const Call& call) : call(call), zeros(std::max(call.c, call.e)), nowhere(std::max(call.c, call.e)) {}

  static int64_t slots(const Plan& plan) { return plan.index ? plan.blocks * plan.block : plan.keys; }
  static int64_t most_keys(const Call& call) {
    int64_t most = 0;
    for (int64_t i = 0; i < call.plan_count; ++i)
      most = std::max(most, call.plans[i].num_global + slots(call.plans[i]));
    return most;
  }
  static int64_t panels_of(int64_t queries) { return (queries + W - 1) / W; }
  static int64_t most_panels(const Call& call) {
    int64_t most = 0;
    for (int64_t i = 0; i < call.plan_count; ++i) most = std::max(most, call.plans[i].block);
    return panels_of(most);
  }

  void select(int64_t sequence, int64_t head, int64_t query_block, int64_t piece) {
    number = sequence, h = head, part = piece;
    place = &call.sequences[number], plan = &call.plans[place->plan];
    global = query_block >= plan->query_blocks;
    row = global ? query_block - plan->query_blocks : query_block;
    int64_t of_body = plan->index ? plan->query_blocks * plan->block : plan->queries;
    queries = std::min(plan->block, (global ? plan->num_global : of_body) - row * plan->block);
    panels = panels_of(queries);
    absent.resize(panels * W);
    for (int64_t a = 0; a < panels * W; ++a) absent[a] = a >= queries || token(a) < 0;
  }

  // --- tokens ---

  template <class X = S>
  X* at(const View& view, int64_t token) const {
    return static_cast<X*>(view.data) + part * view.part + place->batch * view.batch + h * view.head +
           token * view.token;
  }
  // By its slot; global keys lie before slot 0.
  template <class X = S>
  X* key(const View& view, int64_t slot) const {
    return at<X>(view, place->first_key + plan->num_global + slot);
  }
  const uint8_t* key_mask() const {
    return call.key_mask ? call.key_mask + place->batch * call.key_length + place->first_key : nullptr;
  }
  // The token of the sequence that a query is, -1 for an empty slot.
  int64_t token(int64_t a) const {
    int64_t slot = row * plan->block + a;
    if (global) return slot;
    if (!plan->index) return plan->num_global + slot;
    return plan->index[slot] < 0 ? -1 : plan->num_global + plan->index[slot];
  }
  // The features of a query; zeros where it is absent.
  const S* source(const View& view, int64_t a) const {
    return absent[a] ? static_cast<const S*>(zeros) : at(view, place->first + token(a));
  }
  T& lse(int64_t a) {
    int64_t to = token(a);
    if (to < 0) return unused = 0;
    return static_cast<T*>(call.lse)[(place->batch * call.heads + h) * call.length + place->first + to];
  }

  // --- pairs ---

  T* pair(const Pairs& pairs, int64_t query) const {
    return static_cast<T*>(pairs.data) + place->batch * pairs.batch + h * pairs.head + query * pairs.query;
  }
  // The numbers of as many queries as a vector has.
  Lanes<T> lanes(const Pairs& pairs, int64_t first) const {
    Lanes<T> found{{}, {}, pairs.key};
    for (int64_t a = 0; a < N; ++a) {
      int64_t query = first + a < queries ? token(first + a) : -1;
      found.real[a] = query >= 0;
      found.rows[a] = pair(pairs, std::max<int64_t>(query, 0));
    }
    return found;
  }
  // Those of a panel with the keys from a slot on, which will be met next, where they lie side by side.
  Ahead<T> ahead(const Pairs& pairs, int64_t panel, int64_t slot) const {
    if (!pairs.data || plan->index || pairs.key != 1) return {};
    const T* from = pair(pairs, token(panel * W)) + plan->num_global + slot;
    return {from, pairs.query, std::min(queries - panel * W, W), plan->keys - slot};
  }
  // How the gradient of a bias is written. A large one has left the caches before it is read.
  Write way_of_dbias() const {
    if (!call.fresh || number % call.together) return Write::ADD;
    bool large = call.heads * call.length * call.key_length * int64_t(sizeof(T)) >= FAR;
    return large && call.together == 1 ? Write::STREAM : Write::OVER;
  }

  // --- tiles ---

  // Queries in columns: "panel unit W", units of features.
  void pack_columns(const View& view, int64_t size, Unit<S>* to) const {
    for (int64_t first = 0; first < panels * W; first += N) {
      const S* from[N];
      for (int64_t a = 0; a < N; ++a) from[a] = source(view, first + a);
      Unit<S>* column = to + first / W * W * units<S>(size) + first % W;
      int64_t i = 0;
      for (; (i + N) * DEPTH<S> <= size; i += N) {
        Vector<Unit<S>> rows[N];
        for (int64_t a = 0; a < N; ++a) std::memcpy(&rows[a], from[a] + i * DEPTH<S>, sizeof rows[a]);
        transpose<Unit<S>>(rows);
        for (int64_t a = 0; a < N; ++a) store(column + (i + a) * W, rows[a]);
      }
      for (; i < units<S>(size); ++i)
        for (int64_t a = 0; a < N; ++a) column[i * W + a] = unit_of(from[a], i, size);
    }
  }
  // Queries in rows: W features of each, "features unit W", units of queries.
  void pack_rows(const View& view, int64_t size, Unit<S>* to) const {
    for (int64_t a = 0; a < panels * W; a += DEPTH<S>) {
      const S* rows[DEPTH<S>];
      for (int64_t d = 0; d < DEPTH<S>; ++d) rows[d] = source(view, a + d);
      for (int64_t first = 0; first < size; first += W)
        zip(rows, first, std::min(W, size - first), to + (first * panels * W + a * W) / DEPTH<S>);
    }
  }
  // Each query's features times its factor, in their places; whether all of them are finite.
  bool unpack_columns(const T* from, int64_t size, const T* factors, const View& view) const {
    Vector<T> check{};
    for (int64_t first = 0; first < queries; first += N) {
      S* to[N];
      for (int64_t a = 0; a < N; ++a) {
        int64_t place_of = first + a < queries ? token(first + a) : -1;
        to[a] = place_of < 0 ? static_cast<S*>(nowhere) : at(view, place->first + place_of);
      }
      const T* column = from + first / W * W * size + first % W;
      Vector<T> factor = load(factors + first);
      int64_t i = 0;
      for (; i + N <= size; i += N) {
        Vector<T> rows[N];
        for (int64_t a = 0; a < N; ++a) check += (rows[a] = load(column + (i + a) * W) * factor) * T(0);
        transpose<T>(rows);
        for (int64_t a = 0; a < N; ++a) store_numbers(to[a] + i, rows[a]);
      }
      for (; i < size; ++i) {
        Vector<T> row = load(column + i * W) * factor;
        check += row * T(0);
        for (int64_t a = 0; a < N; ++a) set(to[a][i], row[a]);
      }
    }
    T sum = 0;
    for (int64_t a = 0; a < N; ++a) sum += check[a];
    return sum == 0;
  }
  // For each query, the sum over features of the products of its rows.
  void dots(const View& x, const View& y, int64_t size, T* to) const {
    for (int64_t first = 0; first < panels * W; first += N) {
      Vector<T> sums[N]{}, sum{};
      for (int64_t a = 0; a < N; ++a) {
        const S *one = source(x, first + a), *other = source(y, first + a);
        int64_t i = 0;
        for (; i + N <= size; i += N) sums[a] += load_numbers(one + i) * load_numbers(other + i);
        for (; i < size; ++i) sum[a] += value(one[i]) * value(other[i]);
      }
      transpose<T>(sums);
      for (int64_t n = 0; n < N; ++n) sum += sums[n];
      store(to + first, sum);
    }
  }

 protected:
  Buffer<S> zeros, nowhere;  // what absent queries are read from and written to
  T unused = 0;              // the log-sum-exp of an empty slot
};

}  // namespace
