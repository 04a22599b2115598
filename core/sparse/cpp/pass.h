// Attention of one block of queries at a time, forward and backward.
//
// Everything is computed by columns of queries: a tile holds PANEL queries side by side, and one row for each key (of
// logits, weights and slopes) or each feature (of queries, outputs and their gradients). So a query's maximum and sum
// are taken over rows, whole vectors of queries at once, and keys and values are read as they lie, row by row
// (of a group, side by side). Softmax is computed online over groups of keys (Dao et al. 2022, algorithm 1).

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "block.h"
#include "call.h"
#include "keys.h"
#include "numbers.h"
#include "pairs.h"
#include "products.h"
#include "units.h"
#include "vectors.h"

namespace {

template <class S>
class Pass : private Block<S> {
  typedef Sum<S> T;

 public:
  explicit Pass(const Call& call)
      : Pass(call, Block<S>::most_panels(call), (call.c + W - 1) / W * W, (call.e + W - 1) / W * W) {}

  bool forward(int64_t sequence, int64_t head, int64_t query_block) {
    start(sequence, head, query_block, 0);
    pack_columns(call.q, c, q_columns);
    sums.fill(panels * W * e, T(0));
    highest.fill(panels * W, -INF);
    total.fill(panels * W, T(0));
    while (keys.next()) {
      compute_logits(side_by_side(call.k, c, k_rows));
      for (int64_t panel = 0; panel < panels; ++panel) {
        weigh(panel);
        round_panel(panel, weights, key_units, nullptr);
      }
      add_by_features(zipped(side_by_side(call.v, e, v_rows), e), e, in_units(weights, key_units));
    }
    for (int64_t a = 0; a < panels * W; ++a) {
      share[a] = total[a] == 0 ? T(0) : 1 / total[a];
      if (a < queries) lse(a) = T(LN2) * (highest[a] + std::log2(total[a]));
    }
    return unpack_columns(sums, e, share, call.out);
  }

  // Begins the sums of dk and dv of a sequence's head: here, so that each thread does its own.
  void clear(int64_t sequence, int64_t head, int64_t piece) {
    B::select(sequence, head, 0, piece);
    for (int64_t slot = -plan->num_global; slot < B::slots(*plan); ++slot) {
      std::fill_n(sums_of(call.dk, slot, c, k_sums), c, T(0));
      std::fill_n(sums_of(call.dv, slot, e, v_sums), e, T(0));
    }
  }
  // Writes them to their places, if they are not there.
  void finish(int64_t sequence, int64_t head, int64_t piece) {
    if (in_place) return;
    B::select(sequence, head, 0, piece);
    for (int64_t slot = -plan->num_global; slot < B::slots(*plan); ++slot) {
      store_row(B::key(call.dk, slot), sums_of(call.dk, slot, c, k_sums), c);
      store_row(B::key(call.dv, slot), sums_of(call.dv, slot, e, v_sums), e);
    }
  }

  bool backward(int64_t sequence, int64_t head, int64_t query_block, int64_t piece) {
    start(sequence, head, query_block, piece);
    // A query without keys has no part in any gradient, NaN or not.
    for (int64_t a = 0; a < queries; ++a) absent[a] = absent[a] || lse(a) == -INF;
    pack_columns(call.q, c, q_columns);
    pack_columns(call.grad, e, grad_columns);
    pack_rows(call.q, c, q_rows);
    pack_rows(call.grad, e, grad_rows);
    sums.fill(panels * W * c, T(0));
    for (int64_t a = 0; a < panels * W; ++a) highest[a] = absent[a] ? INF : lse(a) / T(LN2);
    B::dots(call.grad, call.out, e, total);
    while (keys.next()) {
      const Unit<S>* k = side_by_side(call.k, c, k_rows);
      compute_logits(k);
      multiply_by_keys(side_by_side(call.v, e, v_rows), e, grad_columns, slopes, 1);
      for (int64_t panel = 0; panel < panels; ++panel) {
        compute_slopes(panel);
        round_panel(panel, weights, nullptr, weight_units);
        round_panel(panel, slopes, key_units, slope_units);
      }
      add_by_features(zipped(k, c), c, in_units(slopes, key_units));
      for (const Run& run : keys.runs) {
        add_to_keys(in_units(weights, weight_units), run, grad_rows, e, call.dv, v_sums);
        add_to_keys(in_units(slopes, slope_units), run, q_rows, c, call.dk, k_sums);
      }
    }
    share.fill(panels * W, T(1));
    return unpack_columns(sums, c, share, call.dq);
  }

 private:
  static constexpr bool PAIRS = DEPTH<S> > 1;
  static constexpr T INF = std::numeric_limits<T>::infinity();
  using B = Block<S>;
  using B::N, B::W, B::call, B::plan, B::place, B::number, B::h, B::row, B::queries, B::panels, B::global, B::absent;
  using B::lse, B::pack_columns, B::pack_rows, B::token, B::unpack_columns;

  int64_t c, e;
  // Right sides of products: of queries in columns, "panel unit W"; in rows, "W units" for each W features.
  Buffer<Unit<S>> q_columns, grad_columns, q_rows, grad_rows;
  Buffer<T> sums, weights, slopes;                           // "panel feature W", and of keys, "panel KEYS W"
  Buffer<Unit<S>> key_units, weight_units, slope_units;      // weights and slopes rounded, where units are pairs
  Buffer<Unit<S>> k_rows, v_rows, zips;                      // of a group, side by side; and units of its keys
  bool in_place;                    // sums of dk and dv are made in their places: these hold what can be added to
  Buffer<T> k_sums, v_sums;         // else here, "key c" and "key e" of a whole sequence
  Buffer<T> highest, total, share;  // of each query; backward: its log-sum-exp in units of ln 2, and its delta
  Buffer<T> edge;                   // of features that fill no panel
  std::vector<Piece<S>> pieces;
  Keys keys;

  Pass(const Call& call, int64_t most, int64_t wide_c, int64_t wide_e)
      : Block<S>(call),
        c(call.c),
        e(call.e),
        q_columns(most * W * units<S>(c)),
        grad_columns(most * W * units<S>(e)),
        q_rows(most * units<S>(W) * wide_c),
        grad_rows(most * units<S>(W) * wide_e),
        sums(most * W * std::max(c, e)),
        weights(most * KEYS * W),
        slopes(most * KEYS * W),
        key_units(PAIRS ? most * KEYS * W / DEPTH<S> : 0),
        weight_units(PAIRS ? most * KEYS * W / DEPTH<S> : 0),
        slope_units(PAIRS ? most * KEYS * W / DEPTH<S> : 0),
        k_rows(KEYS * units<S>(c)),
        v_rows(KEYS * units<S>(e)),
        zips(PAIRS ? KEYS / DEPTH<S> * std::max(c, e) : 0),
        in_place(!PAIRS || call.parts > 1 || !call.dk.data),
        k_sums(in_place ? 0 : B::most_keys(call) * c),
        v_sums(in_place ? 0 : B::most_keys(call) * e),
        highest(most * W),
        total(most * W),
        share(most * W),
        edge(KEYS * W) {
    // Nothing of this grows later: no exception may leave a parallel region.
    pieces.reserve(std::max(KEYS, most));
    keys.runs.reserve(KEYS);
    absent.reserve(most * W);
  }

  void start(int64_t sequence, int64_t head, int64_t query_block, int64_t piece) {
    B::select(sequence, head, query_block, piece);
    keys.start(*plan, global, row, B::key_mask());
  }

  // The rows of the group's keys in `view`, one behind the other, in units of features: where they are, or copied.
  const Unit<S>* side_by_side(const View& view, int64_t size, Unit<S>* copy) const {
    bool whole = view.token == size && size % DEPTH<S> == 0;
    if (keys.runs.size() == 1 && whole) return reinterpret_cast<const Unit<S>*>(B::key(view, keys.runs[0].slot));
    Unit<S>* to = copy;
    for (const Run& run : keys.runs) {
      const S* from = B::key(view, run.slot);
      for (int64_t i = 0; i < run.size; ++i, from += view.token, to += units<S>(size))
        std::memcpy(to, from, size * sizeof(S));
    }
    return copy;
  }

  // Such rows in units of keys, "unit feature".
  const Unit<S>* zipped(const Unit<S>* rows, int64_t size) {
    if constexpr (!PAIRS) return rows;
    for (int64_t i = 0; i < keys.used; i += DEPTH<S>) {
      const S* from[DEPTH<S>];
      for (int64_t d = 0; d < DEPTH<S>; ++d)
        from[d] = i + d < keys.used ? reinterpret_cast<const S*>(rows + (i + d) * units<S>(size)) : B::zeros;
      zip(from, 0, size, zips + units<S>(i) * size);
    }
    return zips;
  }

  // A panel of weights or slopes in units of keys, as a right side, and of queries, as a left side.
  void round_panel(int64_t panel, const T* tile, Unit<S>* by_keys, Unit<S>* by_queries) const {
    int64_t at = panel * KEYS * W;
    if constexpr (PAIRS) round_tile(tile + at, keys.used, at / DEPTH<S>, by_keys, by_queries);
  }
  static const Unit<S>* in_units([[maybe_unused]] const T* tile, [[maybe_unused]] const Unit<S>* rounded) {
    if constexpr (PAIRS) return rounded;
    else return tile;
  }

  // to[key, query] = factor * the product of the key's row and the query's column.
  void multiply_by_keys(const Unit<S>* rows, int64_t size, const Unit<S>* columns, T* to, T factor) {
    int64_t depth = units<S>(size);
    pieces.assign(1, {rows, columns, depth});
    multiply<S>({pieces, depth, 1, false, factor, to, W}, keys.used, queries, depth * W, KEYS * W);
  }

  // sums[feature, query] += the sum over keys of their rows times tile[key, query].
  void add_by_features(const Unit<S>* rows, int64_t size, const Unit<S>* tile) {
    pieces.assign(1, {rows, tile, units<S>(keys.used)});
    multiply<S>({pieces, 1, size, true, 1, sums, W}, size, queries, units<S>(KEYS) * W, size * W);
  }

  // The sums of dk or dv for a key.
  T* sums_of(const View& view, int64_t slot, int64_t size, T* own) const {
    return in_place ? B::template key<T>(view, slot) : own + (plan->num_global + slot) * size;
  }

  // Adds to them, for the keys of a run, the sum over queries of tile[key, query] times their rows.
  void add_to_keys(const Unit<S>* tile, const Run& run, const Unit<S>* rows, int64_t size, const View& view, T* own) {
    T* to = sums_of(view, run.slot, size, own);
    int64_t stride = in_place ? view.token : size;
    int64_t depth = units<S>(W), whole = size / W * W, rest = size - whole, next = panels * W * depth;
    pieces.clear();
    for (int64_t panel = 0; panel < panels; ++panel)
      pieces.push_back({tile + (panel * KEYS + run.at) * depth, rows + panel * W * depth,
                        units<S>(std::min(queries - panel * W, W))});
    if (whole) multiply<S>({pieces, depth, 1, true, 1, to, stride}, run.size, whole, next, W);
    if (!rest) return;
    for (auto& piece : pieces) piece.b += whole / W * next;
    multiply<S>({pieces, depth, 1, false, 1, edge, W}, run.size, rest, next, W);
    for (int64_t i = 0; i < run.size; ++i)
      for (int64_t j = 0; j < rest; ++j) to[i * stride + whole + j] += edge[i * W + j];
  }

  void compute_logits(const Unit<S>* k) {
    multiply_by_keys(k, c, q_columns, weights, T(call.scale / LN2));
    if (call.bias.data)
      for (int64_t panel = 0; panel < panels; ++panel)
        with_pairs(call.bias, panel, weights, [](auto&... with) { add_bias<T>(with...); });
    bool masked = !global && plan->mask_at[row] >= 0, bridged = plan->index && call.key_mask;
    if (masked || bridged || (global && plan->causal))
      for (int64_t panel = 0; panel < panels; ++panel) mask_logits(panel, masked);
  }

  // Calls body with each part of a tile and the numbers of its pairs.
  template <class F>
  void with_pairs(const Pairs& pairs, int64_t panel, T* tile, F body) const {
    for (int64_t first = panel * W; first < std::min((panel + 1) * W, queries); first += N) {
      Lanes<T> lanes = B::lanes(pairs, first);
      for (const Run& run : keys.runs) {
        bool in_order = run.slot < 0 || !plan->index;
        auto number = [&](int64_t i) {
          int64_t token = in_order ? run.slot + i : plan->index[run.slot + i];
          return !in_order && token < 0 ? -1 : plan->num_global + token;
        };
        T* part = tile + (panel * KEYS + run.at) * W + first % W;
        body(part, lanes, run.size, in_order, number);
      }
    }
  }

  void mask_logits(int64_t panel, bool masked) {
    int64_t step = masked ? plan->mask_step[row] : 0;
    const uint8_t* masks = masked ? plan->masks + plan->mask_at[row] : nullptr;
    for (const Run& run : keys.runs)
      for (int64_t i = 0; i < run.size; ++i) {
        T* x = weights + (panel * KEYS + run.at + i) * W;
        const uint8_t* mask = masks && run.place >= 0 ? masks + (run.place + i) * step : nullptr;
        if (!keys.allowed(run.slot + i) || (mask && step == 1 && !*mask)) std::fill(x, x + W, -INF);
        else if (mask && step > 1)
          for (int64_t a = 0, count = std::min(queries - panel * W, W); a < count; ++a)
            x[a] = mask[panel * W + a] ? x[a] : -INF;
        else if (run.place < 0 && global && plan->causal) {
          int64_t after = plan->num_global + run.slot + i - row * plan->block - panel * W;  // queries before the key
          if (after > 0) std::fill(x, x + std::min(after, W), -INF);
        }
      }
  }

  // Weights from logits, and the sums so far for the new maximum.
  void weigh(int64_t panel) {
    T *x = weights + panel * KEYS * W, *most = highest + panel * W, *sum = total + panel * W;
    Vector<T> top[2] = {load(most), load(most + N)}, base[2], shrink[2], added[2]{};
    for (int64_t i = 0; i < keys.used; ++i)
      for (int j = 0; j < 2; ++j) {
        Vector<T> y = load(x + i * W + j * N);
        top[j] = y > top[j] ? y : top[j];
      }
    for (int j = 0; j < 2; ++j) {
      base[j] = top[j] == -INF ? Vector<T>{} : top[j];
      shrink[j] = power<PAIRS>(load(most + j * N) - base[j]);
    }
    Ahead<T> biases = B::ahead(call.bias, panel, keys.end());
    for (int64_t i = 0; i < keys.used; ++i) {
      biases.fetch(i);
      for (int j = 0; j < 2; ++j) {
        Vector<T> y = power<PAIRS>(load(x + i * W + j * N) - base[j]);
        added[j] += y;
        store(x + i * W + j * N, y);
      }
    }
    T* out = sums + panel * W * e;
    for (int j = 0; j < 2; ++j) {
      store(sum + j * N, load(sum + j * N) * shrink[j] + added[j]);
      store(most + j * N, top[j]);
      for (int64_t i = 0; i < e; ++i) store(out + i * W + j * N, load(out + i * W + j * N) * shrink[j]);
    }
    if (call.dropped) drop(panel, weights);
  }

  // Weights from logits, and slopes: the gradients of the products of queries and keys (of logits, until those of the
  // bias have been taken from them).
  void compute_slopes(int64_t panel) {
    T *weight = weights + panel * KEYS * W, *slope = slopes + panel * KEYS * W;
    T scale = call.scale, at_once = call.dbias.data ? T(1) : scale;
    Ahead<T> biases = B::ahead(call.bias, panel, keys.end());
    if (call.dropped) drop(panel, slopes);
    for (int j = 0; j < 2; ++j) {
      Vector<T> base = load(highest + panel * W + j * N), delta = load(total + panel * W + j * N);
      for (int64_t i = 0; i < keys.used; ++i) {
        if (!j) biases.fetch(i);
        int64_t at = i * W + j * N;
        Vector<T> x = power<PAIRS>(load(weight + at) - base), y = x * (load(slope + at) - delta);
        store(weight + at, x);
        store(slope + at, x == T(0) ? Vector<T>{} : y * at_once);
      }
    }
    if (call.dropped) drop(panel, weights);
    if (call.dbias.data) {
      Write how = B::way_of_dbias();
      with_pairs(call.dbias, panel, slopes, [&](auto&... with) { write_pairs<T>(with..., how, scale); });
    }
  }

  // Dropout of weights, drawn alike in both passes: from the seed, the query and each key.
  void drop(int64_t panel, T* tile) const {
    uint32_t dropped = std::min<int64_t>(call.dropped, UINT32_MAX);
    uint32_t of_head = draw(draw(call.seed, number * call.heads + h), global);
    uint32_t query[W];
    for (int64_t a = 0; a < W; ++a) query[a] = draw(of_head, row * plan->block + panel * W + a);
    T scale = call.dropout_scale;
    for (const Run& run : keys.runs)
      for (int64_t i = 0; i < run.size; ++i) {
        uint32_t flip = run.place < 0 ? ~0u : 0u, which = run.slot + i + (run.place < 0 ? plan->num_global : 0);
        T* y = tile + (panel * KEYS + run.at + i) * W;
#pragma omp simd
        for (int64_t a = 0; a < W; ++a) y[a] = draw(query[a] ^ flip, which) < dropped ? T(0) : y[a] * scale;
      }
  }
};

}  // namespace
