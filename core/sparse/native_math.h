// The small parts of the kernel: powers of two, random numbers, masks and dropout of a row, and torch's matrix product.

#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "native_call.h"

namespace {

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

// Logits of keys that may not be attended to become -inf.
template <class T>
inline void apply_mask(T* logits, const uint8_t* mask, int64_t size) {
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) logits[i] = mask[i] ? logits[i] : -std::numeric_limits<T>::infinity();
}

// Dropout of weights, drawn from the query's key and the number of each of its keys.
template <class T>
inline void apply_dropout(const Call& call, T* weights, int64_t size, uint32_t key, uint32_t from) {
  uint32_t dropped = std::min<int64_t>(call.dropped, UINT32_MAX);
  T scale = call.dropout_scale;
#pragma omp simd
  for (int64_t i = 0; i < size; ++i)
    weights[i] = draw(key, from + static_cast<uint32_t>(i)) < dropped ? T(0) : weights[i] * scale;
}

template <class T>
struct Matrix {  // row-major; transposed: the product takes its transpose
  T* data;
  int64_t stride;
  bool transposed = false;
};

// Row-major C[m, n] = alpha A[m, k] B[k, n] + beta C.
template <class T>
struct Product {
  void* gemm;
  int64_t m, n, k;
  T alpha, beta;

  void operator()(Matrix<const T> A, Matrix<const T> B, Matrix<T> C) const {
    int rows = m, columns = n, inner = k, lda = std::max<int64_t>(A.stride, 1), ldb = std::max<int64_t>(B.stride, 1);
    int ldc = C.stride;
    reinterpret_cast<Gemm<T>>(gemm)(B.transposed ? "T" : "N", A.transposed ? "T" : "N", &columns, &rows, &inner, &alpha,
                                    B.data, &ldb, A.data, &lda, &beta, C.data, &ldc);
  }
};

}  // namespace
