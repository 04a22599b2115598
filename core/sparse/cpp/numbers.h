// Powers of two and random numbers, of whole vectors.

#pragma once

#include <cmath>
#include <cstdint>

#include "vectors.h"

namespace {

// Logits are kept in units of ln 2, so that powers of two take the place of exponentials.
constexpr double LN2 = 0.693147180559945309;

// 2^x for x up to 127. NaN stays NaN; what would be smaller than normal numbers is 0. If ROUGH, the error is 1e-4, for
// weights that are rounded to bf16, whose own error is 2e-3.
template <bool ROUGH>
TRIVIUM_INLINE Vector<double> power(Vector<double> x) {
  for (int i = 0; i < WIDTH<double>; ++i) x[i] = std::exp2(x[i]);
  return x;
}

#if defined(__AVX512DQ__)
// 2^n 2^r, n whole and 0 <= r < 1. The polynomials are 1 at 0, and their greatest relative error is the least.
template <bool ROUGH>
TRIVIUM_INLINE Vector<float> power(Vector<float> x) {
  Vector<float> r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC), p;
  if constexpr (ROUGH) {
    p = all(7.706704364e-2f);
    p = p * r + 2.276449889e-1f;
    p = p * r + 6.951167872e-1f;
  } else {
    p = all(2.161292048e-4f);
    p = p * r + 1.246784489e-3f;
    p = p * r + 9.675451731e-3f;
    p = p * r + 5.548528054e-2f;
    p = p * r + 2.402293056e-1f;
    p = p * r + 6.931470444e-1f;
  }
  p = p * r + 1.0f;
  return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x, all(-126.0f), _CMP_NLT_UQ), p, x);
}
#else
// 2^n 2^r with |r| <= 1/2 (Cephes' exp2f).
template <bool ROUGH>
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
#endif

// A number drawn from two, evenly (the mixer lowbias32 of Wellons' hash prospector).
inline uint32_t draw(uint32_t key, uint32_t i) {
  uint32_t x = (i + 0x9e3779b9u) * 0x85ebca6bu ^ key;
  x = (x ^ x >> 16) * 0x7feb352du;
  x = (x ^ x >> 15) * 0x846ca68bu;
  return x ^ x >> 16;
}

}  // namespace
