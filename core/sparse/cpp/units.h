// Numbers as they are stored, and the units of which products are made.
//
// A unit is what one instruction takes from each factor for each sum: one number of float or double. Of bf16 it is a
// pair, two numbers that are adjacent on the axis that is summed: their two products are added to a sum in float.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

#include "vectors.h"

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace {

struct Bf16 {
  uint16_t bits;  // the upper half of a float's
};

template <class S>
struct Kind {
  typedef S Sum;   // what is computed with: products are added in it
  typedef S Unit;
};
template <>
struct Kind<Bf16> {
  typedef float Sum;
  typedef uint32_t Unit;
};
template <class S>
using Sum = typename Kind<S>::Sum;
template <class S>
using Unit = typename Kind<S>::Unit;
template <class S>
constexpr int64_t DEPTH = sizeof(Unit<S>) / sizeof(S);  // numbers of a unit

// How many units hold so many numbers. Where they do not fill the last one, it is filled with 0.
template <class S>
constexpr int64_t units(int64_t size) {
  return (size + DEPTH<S> - 1) / DEPTH<S>;
}

// The i-th unit of a row of `size` numbers.
template <class S>
TRIVIUM_INLINE Unit<S> unit_of(const S* row, int64_t i, int64_t size) {
  Unit<S> unit = 0;
  std::memcpy(&unit, row + i * DEPTH<S>, std::min(DEPTH<S>, size - i * DEPTH<S>) * sizeof(S));
  return unit;
}

// --- float and double: a unit is a number ---

inline float value(float x) { return x; }
inline double value(double x) { return x; }
inline void set(float& to, float x) { to = x; }
inline void set(double& to, double x) { to = x; }
TRIVIUM_INLINE Vector<float> load_numbers(const float* from) { return load(from); }
TRIVIUM_INLINE Vector<double> load_numbers(const double* from) { return load(from); }
TRIVIUM_INLINE void store_numbers(float* to, Vector<float> x) { store(to, x); }
TRIVIUM_INLINE void store_numbers(double* to, Vector<double> x) { store(to, x); }
TRIVIUM_INLINE Vector<float> add_product(Vector<float> sum, Vector<float> a, Vector<float> b) {
  return sum + a * b;
}
TRIVIUM_INLINE Vector<double> add_product(Vector<double> sum, Vector<double> a, Vector<double> b) {
  return sum + a * b;
}

// Units of DEPTH rows, each of the numbers in one place; of `size` places from the first on.
template <class S>
void zip(const S* const (&rows)[1], int64_t first, int64_t size, S* to) {
  int64_t i = 0;
  for (; i + WIDTH<S> <= size; i += WIDTH<S>) store(to + i, load(rows[0] + first + i));
  for (; i < size; ++i) to[i] = rows[0][first + i];
}

#ifdef __AVX512BF16__
// --- bf16: a unit is a pair ---

inline float value(Bf16 x) {
  uint32_t bits = uint32_t(x.bits) << 16;
  float y;
  std::memcpy(&y, &bits, sizeof y);
  return y;
}
inline void set(Bf16& to, float x) {
  auto half = _mm512_cvtneps_pbh(all(x));
  std::memcpy(&to, &half, sizeof to);
}
TRIVIUM_INLINE Vector<float> load_numbers(const Bf16* from) {
  typedef uint16_t Bits __attribute__((vector_size(BYTES / 2)));
  Bits bits;
  std::memcpy(&bits, from, sizeof bits);
  return (Vector<float>)(__builtin_convertvector(bits, Vector<uint32_t>) << 16);
}
TRIVIUM_INLINE void store_numbers(Bf16* to, Vector<float> x) {
  auto half = _mm512_cvtneps_pbh(x);
  std::memcpy(to, &half, sizeof half);
}
TRIVIUM_INLINE Vector<float> add_product(Vector<float> sum, Vector<uint32_t> a, Vector<uint32_t> b) {
  return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
}

// Units of the numbers of two rows in the same places.
TRIVIUM_INLINE void store_pairs(uint32_t* to, Vector<uint16_t> one, Vector<uint16_t> other) {
  interleave<uint16_t>(one, other, std::make_integer_sequence<int64_t, WIDTH<uint16_t>>{});
  std::memcpy(to, &one, sizeof one);
  std::memcpy(to + WIDTH<uint32_t>, &other, sizeof other);
}
inline void zip(const Bf16* const (&rows)[2], int64_t first, int64_t size, uint32_t* to) {
  constexpr int64_t N = WIDTH<uint16_t>;
  const uint16_t *one = &rows[0][first].bits, *other = &rows[1][first].bits;
  int64_t i = 0;
  for (; i + N <= size; i += N) store_pairs(to + i, load(one + i), load(other + i));
  for (; i < size; ++i) to[i] = one[i] | uint32_t(other[i]) << 16;
}

// The rows of a tile of PANEL columns, rounded, in units of rows and in units of columns, each unless it is null; they
// begin behind the first `skipped` units.
inline void round_tile(const float* tile, int64_t rows, int64_t skipped, uint32_t* by_rows, uint32_t* by_columns) {
  constexpr int64_t N = WIDTH<float>, W = PANEL<float>;
  auto rounded = [&](int64_t i) {
    const float* row = tile + i * W;
    return i < rows ? (Vector<uint16_t>)_mm512_cvtne2ps_pbh(load(row + N), load(row)) : Vector<uint16_t>{};
  };
  for (int64_t i = 0; i < rows; i += 2) {
    Vector<uint16_t> one = rounded(i), other = rounded(i + 1);
    if (by_rows) store_pairs(by_rows + skipped + i / 2 * W, one, other);
    if (!by_columns) continue;
    std::memcpy(by_columns + skipped + i * N, &one, sizeof one);
    std::memcpy(by_columns + skipped + (i + 1) * N, &other, sizeof other);
  }
}
#endif

// Numbers from sums.
template <class S>
void store_row(S* to, const Sum<S>* from, int64_t size) {
  constexpr int64_t N = WIDTH<Sum<S>>;
  int64_t i = 0;
  for (; i + N <= size; i += N) store_numbers(to + i, load(from + i));
  for (; i < size; ++i) set(to[i], from[i]);
}

}  // namespace
