// The product of small matrices, which everything else is made of.

#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>
#include <vector>

#include "units.h"
#include "vectors.h"

namespace {

template <class S>
struct Piece {  // of a sum of products: rows of A, and B as a tile of PANEL columns, both of units
  const Unit<S> *a, *b;
  int64_t count;  // units that are summed
};

// C = factor * the sum over pieces of A B; or, if it adds, C += that sum. A[i, p] is at a + i * row + p * step, in
// units.
template <class S>
struct Product {
  const std::vector<Piece<S>>& pieces;
  int64_t row, step;
  bool adds;
  Sum<S> factor;
  Sum<S>* to;
  int64_t stride;
};

// M rows of C and V vectors of its columns, from row i on; shift, to: of B and of C in a panel. The sums stay in
// registers. Never inlined: alone, compilers spill nothing.
template <class S, int M, int V>
__attribute__((noinline)) void multiply_tile(const Product<S>& x, int64_t i, int64_t shift, Sum<S>* to) {
  typedef Sum<S> T;
  Vector<T> sums[M][V];
  int64_t row = x.row, step = x.step, stride = x.stride;
  to += i * stride;
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
    for (int j = 0; j < V; ++j) sums[m][j] = x.adds ? load(to + m * stride + j * WIDTH<T>) : Vector<T>{};
  for (const Piece<S>& piece : x.pieces) {
    const Unit<S> *a = piece.a + i * row, *b = piece.b + shift;
#pragma GCC unroll 4
    for (int64_t p = piece.count; p > 0; --p, a += step, b += PANEL<T>) {
      Vector<Unit<S>> columns[V];
#pragma GCC unroll 2
      for (int j = 0; j < V; ++j) columns[j] = load(b + j * WIDTH<T>);
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) {
        Vector<Unit<S>> factor = all(a[m * row]);
#pragma GCC unroll 2
        for (int j = 0; j < V; ++j) sums[m][j] = add_product(sums[m][j], factor, columns[j]);
      }
    }
  }
  T factor = x.adds ? T(1) : x.factor;
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
    for (int j = 0; j < V; ++j) store(to + m * stride + j * WIDTH<T>, sums[m][j] * factor);
}

// multiply_tile for 1 to ROWS rows.
template <class S, int V, int... M>
constexpr auto tiles_of(std::integer_sequence<int, M...>) {
  return std::array{&multiply_tile<S, M + 1, V>...};
}
template <class S, int V>
constexpr auto TILES = tiles_of<S, V>(std::make_integer_sequence<int, ROWS>{});

// `rows` rows of C and `columns` of its columns; shift, next: from one panel to the next, of B and C. A few rows meet
// as many panels as stay in the nearest cache, so that A is read from farther away as seldom as possible.
template <class S>
void multiply(const Product<S>& x, int64_t rows, int64_t columns, int64_t shift, int64_t next) {
  constexpr int64_t W = PANEL<Sum<S>>;
  int64_t depth = 0, panels = (columns + W - 1) / W;
  for (const Piece<S>& piece : x.pieces) depth += piece.count;
  int64_t together = std::max<int64_t>(NEAR / (depth * W * sizeof(Unit<S>)), 1);
  for (int64_t first = 0; first < panels; first += together)
    for (int64_t i = 0, left = (rows + ROWS - 1) / ROWS; left; --left) {  // tiles as equal as they can be
      int64_t m = (rows - i + left - 1) / left;
      for (int64_t panel = first; panel < std::min(first + together, panels); ++panel) {
        auto tile = (columns - panel * W > W / 2 ? TILES<S, 2> : TILES<S, 1>)[m - 1];
        tile(x, i, panel * shift, x.to + panel * next);
      }
      i += m;
    }
}

}  // namespace
