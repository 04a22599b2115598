// Rotary positions: each pair of features (i, i + c / 2) is turned by the angle of its token.

#pragma once

#include <cstdint>

#include "call.h"
#include "units.h"

namespace {

// What ../turns.py passes, field by field as in its _Turns.
struct Turns {
  View x, out;
  const float *cos, *sin;              // "h n c"
  int64_t table_head, table_token;     // strides; 0 where heads share a table
  int64_t batch, heads, length, c;
  int64_t back, threads;               // back: the other way round, as gradients are turned
};

// The same number, which the compiler cannot take apart: a product stays rounded before it is added, as torch's are.
template <class T>
TRIVIUM_INLINE T rounded(T x) {
#if defined(__x86_64__)
  asm("" : "+x"(x));
#elif defined(__aarch64__)
  asm("" : "+w"(x));
#else
  asm("" : "+m"(x));
#endif
  return x;
}

template <class T>
struct Pair {
  T first, second;
};
template <class T>
TRIVIUM_INLINE Pair<T> turn(Pair<T> x, Pair<T> cos, Pair<T> sin, bool back) {
  if (back) return {rounded(x.first * cos.first) + rounded(x.second * sin.second),
                    rounded(x.second * cos.second) - rounded(x.first * sin.first)};
  return {rounded(x.first * cos.first) - rounded(x.second * sin.first),
          rounded(x.second * cos.second) + rounded(x.first * sin.second)};
}

// One head of one token.
template <class S>
TRIVIUM_INLINE void turn_row(const S* x, S* out, const float* cos, const float* sin, int64_t half, bool back) {
  constexpr int64_t N = WIDTH<float>;
  if (half < N) {
    for (int64_t i = 0; i < half; ++i) {
      Pair<float> y = turn<float>({value(x[i]), value(x[i + half])}, {cos[i], cos[i + half]},
                                  {sin[i], sin[i + half]}, back);
      set(out[i], y.first), set(out[i + half], y.second);
    }
    return;
  }
  for (int64_t next = 0; next < half; next += N) {
    int64_t i = next + N <= half ? next : half - N;  // the last vector may compute some numbers again
    Pair<Vector<float>> y = turn<Vector<float>>({load_numbers(x + i), load_numbers(x + i + half)},
                                                {load(cos + i), load(cos + i + half)},
                                                {load(sin + i), load(sin + i + half)}, back);
    store_numbers(out + i, y.first), store_numbers(out + i + half, y.second);
  }
}

template <class S>
void turn_all(const Turns& t) {
  const S* x = static_cast<const S*>(t.x.data);
  S* out = static_cast<S*>(t.out.data);
#pragma omp parallel for collapse(2) num_threads(t.threads)
  for (int64_t b = 0; b < t.batch; ++b)
    for (int64_t n = 0; n < t.length; ++n)
      for (int64_t h = 0; h < t.heads; ++h) {
        int64_t place = h * t.table_head + n * t.table_token;
        turn_row(x + b * t.x.batch + h * t.x.head + n * t.x.token,
                 out + b * t.out.batch + h * t.out.head + n * t.out.token, t.cos + place, t.sin + place, t.c / 2,
                 t.back);
      }
}

}  // namespace
