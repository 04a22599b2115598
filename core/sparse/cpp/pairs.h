// Numbers of pairs, "query key" in memory, to and from tiles "key W": a bias that is added, and its gradient.

#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "keys.h"
#include "numbers.h"
#include "vectors.h"

namespace {

// Some queries side by side in a tile, and a number for each of them and each key.
template <class T>
struct Lanes {
  T* rows[WIDTH<T>];     // of each query; of any other where there is none
  bool real[WIDTH<T>];   // whether there is one
  int64_t key;           // the stride from key to key
};

// Numbers of pairs that the next group of keys meets. They come from far, and are asked for while this group is computed:
// a few at a time, since a core waits for few lines at once.
template <class T>
struct Ahead {
  const T* from = nullptr;
  int64_t stride = 0, queries = 0, keys = 0;

  // The i-th of KEYS parts.
  TRIVIUM_INLINE void fetch(int64_t i) const {
    constexpr int64_t PARTS = std::max<int64_t>(KEYS / PANEL<T>, 1), SIZE = KEYS / PARTS;  // of a query; keys of a part
    int64_t query = i / PARTS, key = i % PARTS * SIZE;
    if (query >= queries) return;
    for (int64_t end = std::min(key + SIZE, keys); key < end; key += LINE / sizeof(T))
      __builtin_prefetch(from + query * stride + key, 0, 2);
  }
};

template <class T>
TRIVIUM_INLINE Vector<T> plus_bias(Vector<T> x, Vector<T> bias) {
  constexpr T INF = std::numeric_limits<T>::infinity();
  return bias == -INF ? all(-INF) : x + bias * T(1 / LN2);  // -inf forbids a pair, NaN and all
}

// Adds biases to the logits of `size` keys, in units of ln 2; number(i): of the i-th key in a row, -1 for an empty
// slot.
template <class T, class F>
void add_bias(T* tile, const Lanes<T>& lanes, int64_t size, bool in_order, F number) {
  constexpr int64_t N = WIDTH<T>, W = PANEL<T>;
  int64_t i = 0;
  if (in_order && lanes.key == 1)
    for (; i + N <= size; i += N) {
      Vector<T> biases[N];
      for (int64_t a = 0; a < N; ++a) biases[a] = load(lanes.rows[a] + number(i));
      transpose<T>(biases);
      for (int64_t m = 0; m < N; ++m) store(tile + (i + m) * W, plus_bias<T>(load(tile + (i + m) * W), biases[m]));
    }
  for (; i < size; ++i) {
    Vector<T> bias{};
    int64_t at = std::max<int64_t>(number(i), 0) * lanes.key;
    for (int64_t a = 0; a < N; ++a) bias[a] = lanes.rows[a][at];
    store(tile + i * W, plus_bias<T>(load(tile + i * W), bias));
  }
}

enum class Write {
  OVER,    // what is there
  STREAM,  // over what is there, and far away
  ADD,     // to what is there
};

// Writes the tile's numbers for `size` keys in their places; scales those of the tile.
template <class T, class F>
void write_pairs(T* tile, const Lanes<T>& lanes, int64_t size, bool in_order, F number, Write how, T scale) {
  constexpr int64_t N = WIDTH<T>, W = PANEL<T>;
  int64_t i = 0;
  if (in_order && lanes.key == 1)
    for (; i + N <= size; i += N) {
      Vector<T> rows[N];
      for (int64_t m = 0; m < N; ++m) {
        rows[m] = load(tile + (i + m) * W);
        store(tile + (i + m) * W, rows[m] * scale);
      }
      transpose<T>(rows);
      for (int64_t a = 0; a < N; ++a)
        if (lanes.real[a]) {
          T* to = lanes.rows[a] + number(i);
          if (how == Write::STREAM)
            stream<T>(to, rows[a]);
          else
            store(to, how == Write::ADD ? load(to) + rows[a] : rows[a]);
        }
    }
  for (; i < size; ++i) {
    for (int64_t a = 0; a < N; ++a)
      if (lanes.real[a] && number(i) >= 0) {
        T& to = lanes.rows[a][number(i) * lanes.key];
        to = how == Write::ADD ? to + tile[i * W + a] : tile[i * W + a];
      }
    store(tile + i * W, load(tile + i * W) * scale);
  }
}

}  // namespace
