// Powers of two and random numbers, of whole vectors.

#pragma once

#include <cmath>
#include <cstdint>

#include "vectors.h"

namespace {

// Logits are kept in units of ln 2, so that powers of two take the place of exponentials.
constexpr double LN2 = 0.693147180559945309;

TRIVIUM_INLINE Vector<double> power(Vector<double> x) {
  for (int i = 0; i < WIDTH<double>; ++i) x[i] = std::exp2(x[i]);
  return x;
}

// 2^n 2^r with |r| <= 1/2 (Cephes' exp2f), for x up to 127; 0 below -126.5. NaN stays NaN.
TRIVIUM_INLINE Vector<float> power(Vector<float> x) {
  typedef int32_t Whole __attribute__((vector_size(BYTES)));
  constexpr float ROUND = 12582912.0f + 127.0f;  // 1.5 * 2^23: adding it leaves no binary places; 127: of the exponent
  Vector<float> limited = all(-127.0f) > x ? all(-127.0f) : x;
  Vector<float> n = limited + ROUND, r = limited - (n - ROUND);
  Vector<float> p = all(1.535336188319500e-4f);
  p = p * r + 1.339887440266574e-3f;
  p = p * r + 9.618437357674640e-3f;
  p = p * r + 5.550332471162809e-2f;
  p = p * r + 2.402264791363012e-1f;
  p = p * r + 6.931472028550421e-1f;
  p = p * r + 1.0f;
  return p * reinterpret_cast<Vector<float>>(reinterpret_cast<Whole>(n) << 23);
}

// A number drawn from two, evenly (the mixer lowbias32 of Wellons' hash prospector).
inline uint32_t draw(uint32_t key, uint32_t i) {
  uint32_t x = (i + 0x9e3779b9u) * 0x85ebca6bu ^ key;
  x = (x ^ x >> 16) * 0x7feb352du;
  x = (x ^ x >> 15) * 0x846ca68bu;
  return x ^ x >> 16;
}

}  // namespace
