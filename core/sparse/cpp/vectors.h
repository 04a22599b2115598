// Vectors of the machine, tiles of them that are transposed, and memory for them.

#pragma once

#include <cstdint>
#include <cstring>
#include <new>
#include <type_traits>
#include <utility>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#define TRIVIUM_INLINE inline __attribute__((always_inline))

namespace {

// BYTES: of a vector. ROWS: of a product's tile, whose sums fill the registers; at most 16 (unrolled in products.h).
#if defined(__AVX512F__)
constexpr int64_t BYTES = 64, ROWS = 13;
#elif defined(__AVX__)
constexpr int64_t BYTES = 32, ROWS = 6;
#elif defined(__aarch64__)
constexpr int64_t BYTES = 16, ROWS = 12;
#else
constexpr int64_t BYTES = 16, ROWS = 6;
#endif
constexpr int64_t LINE = 64;      // bytes of a line of the cache
constexpr int64_t NEAR = 16384;   // bytes: half of the nearest cache
constexpr int64_t FAR = 1 << 23;  // bytes: more than the caches of a core hold

template <class T>
struct Machine {
  typedef T vector __attribute__((vector_size(BYTES)));
  static constexpr int64_t width = BYTES / sizeof(T);
};
template <class T>
using Vector = typename Machine<T>::vector;
template <class T>
constexpr int64_t WIDTH = Machine<T>::width;  // numbers in a vector
template <class T>
constexpr int64_t PANEL = 2 * WIDTH<T>;  // columns of a tile: two vectors

template <class T>
TRIVIUM_INLINE Vector<T> load(const T* from) {
  Vector<T> x;
  std::memcpy(&x, from, sizeof x);
  return x;
}
template <class T>
TRIVIUM_INLINE void store(T* to, Vector<T> x) {
  std::memcpy(to, &x, sizeof x);
}
// Stores what is not read soon: whole lines of the cache go to memory, without being fetched from there first. Before
// other threads read them, wait_for_streams.
template <class T>
TRIVIUM_INLINE void stream(T* to, Vector<T> x) {
#if defined(__AVX512F__)
  if (reinterpret_cast<uintptr_t>(to) % LINE == 0) {
    __m512 line;
    std::memcpy(&line, &x, sizeof x);
    return _mm512_stream_ps(reinterpret_cast<float*>(to), line);
  }
#endif
  store(to, x);
}
TRIVIUM_INLINE void wait_for_streams() {
#if defined(__AVX512F__)
  _mm_sfence();
#endif
}
template <class T>
TRIVIUM_INLINE Vector<T> all(T x) {
  return x - Vector<T>{};
}

// --- transposed tiles ---

// The numbers of a and b by turns: those of their first halves, and those of their second.
template <class T, int64_t... I>
TRIVIUM_INLINE void interleave(Vector<T>& a, Vector<T>& b, std::integer_sequence<int64_t, I...>) {
  constexpr int64_t N = WIDTH<T>;
#if defined(__clang__)
  Vector<T> first = __builtin_shufflevector(a, b, (I / 2 + I % 2 * N)...);
  b = __builtin_shufflevector(a, b, (N / 2 + I / 2 + I % 2 * N)...);
#else
  typedef std::conditional_t<sizeof(T) == 2, int16_t, std::conditional_t<sizeof(T) == 4, int32_t, int64_t>> Whole;
  typedef Whole Places __attribute__((vector_size(BYTES)));
  Vector<T> first = __builtin_shuffle(a, b, Places{Whole(I / 2 + I % 2 * N)...});
  b = __builtin_shuffle(a, b, Places{Whole(N / 2 + I / 2 + I % 2 * N)...});
#endif
  a = first;
}

// Each step interleaves the first half of the rows with the second (a perfect shuffle); so many steps transpose them.
template <class T>
TRIVIUM_INLINE void transpose(Vector<T> (&rows)[WIDTH<T>]) {
  constexpr int64_t N = WIDTH<T>;
#pragma GCC unroll 4
  for (int64_t step = 1; step < N; step *= 2) {
    Vector<T> mixed[N];
#pragma GCC unroll 8
    for (int64_t i = 0; i < N / 2; ++i) {
      mixed[2 * i] = rows[i], mixed[2 * i + 1] = rows[i + N / 2];
      interleave<T>(mixed[2 * i], mixed[2 * i + 1], std::make_integer_sequence<int64_t, N>{});
    }
#pragma GCC unroll 16
    for (int64_t i = 0; i < N; ++i) rows[i] = mixed[i];
  }
}

// Memory for `size` numbers that begins with a line of the cache.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t size)
      : data(static_cast<T*>(::operator new((size + 1) * sizeof(T), std::align_val_t(LINE)))) {
    std::memset(data, 0, (size + 1) * sizeof(T));
  }
  Buffer(Buffer&& other) noexcept : data(other.data) { other.data = nullptr; }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  Buffer& operator=(Buffer&&) = delete;
  ~Buffer() { ::operator delete(data, std::align_val_t(LINE)); }

  operator T*() const { return data; }
  void fill(int64_t size, T value) const {
    for (int64_t i = 0; i < size; ++i) data[i] = value;
  }

 private:
  T* data;
};

}  // namespace
