// A residual addition and a layer norm in bf16 autocast: sums in float, branches in bf16, in one pass over memory.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "units.h"

namespace {

// What ../norms.py passes, field by field as in its _Norms. Rows are contiguous; features: a multiple of a vector.
struct Norms {
  const float* x;
  const Bf16* branch;  // null: nothing is added
  float* sum;          // x + branch; the backward pass reads x here if there is no branch
  float* wide;         // the norm of the sum; null: not wanted
  Bf16* narrow;        // the same, rounded; null: not wanted
  const float *weight, *bias;  // null: 1 and 0
  float* moments;              // of each row: its mean, and one divided by its deviation
  const float *grad_sum, *grad_wide;  // of `sum` and of `wide`; null: 0
  const Bf16* grad_narrow;
  float* dx;
  Bf16* dbranch;    // dx rounded; null: not wanted
  float* dweights;  // "chunks 2 features": of the weight and of the bias, summed over each chunk of rows
  int64_t rows, features, chunks, threads;
  double eps;
};

#ifdef __AVX512BF16__
TRIVIUM_INLINE float total(Vector<float> x) {
  float sums[WIDTH<float>];
  store(sums, x);
#pragma GCC unroll 4
  for (int64_t half = WIDTH<float> / 2; half; half /= 2)
#pragma GCC unroll 8
    for (int64_t i = 0; i < half; ++i) sums[i] += sums[i + half];
  return sums[0];
}

inline void norm_row(const Norms& t, int64_t row) {
  constexpr int64_t N = WIDTH<float>;
  const int64_t size = t.features;
  const float* x = t.x + row * size;
  Vector<float> sum{}, squares{};
  if (t.branch) {
    float* to = t.sum + row * size;
    for (int64_t i = 0; i < size; i += N) {
      Vector<float> added = load(x + i) + load_numbers(t.branch + row * size + i);
      store(to + i, added);
      sum += added;
    }
    x = to;
  } else {
    for (int64_t i = 0; i < size; i += N) sum += load(x + i);
  }
  if (!t.wide && !t.narrow) return;
  const float mean = total(sum) / size;
  for (int64_t i = 0; i < size; i += N) {
    Vector<float> far = load(x + i) - mean;
    squares += far * far;
  }
  // Numbers whose squares are infinite have no norm: 0 would hide them.
  const float variance = total(squares) / size;
  const float inverse = std::isfinite(variance) ? 1 / std::sqrt(variance + float(t.eps)) : NAN;
  t.moments[2 * row] = mean, t.moments[2 * row + 1] = inverse;
  for (int64_t i = 0; i < size; i += N) {
    Vector<float> y = (load(x + i) - mean) * inverse;
    if (t.weight) y *= load(t.weight + i);
    if (t.bias) y += load(t.bias + i);
    if (t.wide) store(t.wide + row * size + i, y);
    if (t.narrow) store_numbers(t.narrow + row * size + i, y);
  }
}

inline void norm_row_backward(const Norms& t, int64_t row, float* dweight, float* dbias) {
  constexpr int64_t N = WIDTH<float>;
  const int64_t size = t.features;
  const float *x = t.sum + row * size, mean = t.moments[2 * row], inverse = t.moments[2 * row + 1];
  auto normed = [&](int64_t i) { return (load(x + i) - mean) * inverse; };
  auto grad = [&](int64_t i) {
    Vector<float> g{};
    if (t.grad_wide) g += load(t.grad_wide + row * size + i);
    if (t.grad_narrow) g += load_numbers(t.grad_narrow + row * size + i);
    return g;
  };
  auto weighted = [&](Vector<float> g, int64_t i) { return t.weight ? g * load(t.weight + i) : g; };
  Vector<float> sum{}, product{};
  for (int64_t i = 0; i < size; i += N) {
    Vector<float> y = normed(i), g = grad(i), h = weighted(g, i);
    sum += h, product += h * y;
    store(dweight + i, load(dweight + i) + g * y);
    store(dbias + i, load(dbias + i) + g);
  }
  const float shift = total(sum) / size, slope = total(product) / size;
  for (int64_t i = 0; i < size; i += N) {
    Vector<float> dx = (weighted(grad(i), i) - shift - normed(i) * slope) * inverse;
    if (t.grad_sum) dx += load(t.grad_sum + row * size + i);
    store(t.dx + row * size + i, dx);
    if (t.dbranch) store_numbers(t.dbranch + row * size + i, dx);
  }
}

inline void norm_all(const Norms& t) {
#pragma omp parallel for num_threads(t.threads)
  for (int64_t row = 0; row < t.rows; ++row) norm_row(t, row);
}

// Chunks do not depend on the number of threads, and neither do the sums over them.
inline void norm_all_backward(const Norms& t) {
#pragma omp parallel for num_threads(t.threads)
  for (int64_t chunk = 0; chunk < t.chunks; ++chunk) {
    float* dweight = t.dweights + chunk * 2 * t.features;
    std::fill(dweight, dweight + 2 * t.features, 0.0f);
    for (int64_t row = t.rows * chunk / t.chunks; row < t.rows * (chunk + 1) / t.chunks; ++row)
      norm_row_backward(t, row, dweight, dweight + t.features);
  }
}
#endif

}  // namespace
