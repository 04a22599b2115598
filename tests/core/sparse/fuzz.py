"""Random calls of attention, right and wrong: each must raise an error or give what the reference gives.

    python tests/core/sparse/fuzz.py [calls] [seed]

runs them (10,000 by default) under the address sanitizer: the kernel is compiled with it, and multiplies matrices by
plain loops compiled with it too, since a BLAS cannot be checked. It needs g++ with libasan, and takes some minutes.
Half of the calls are right: any strides, lengths from 0 to 300, masks, biases, prefixes, grids and dtypes. The other
half have something wrong with them. They are made by every way in: `attend`, the operators, and the kernel itself. Two of
five calls are of several sequences in a packed row.
The first report of the sanitizer ends the run. tests/core/sparse/test_fuzz.py runs a few hundred without it. The calls
are in fuzz_calls.py, the ways in in fuzz_ways.py, both for packed rows in fuzz_rows.py.
"""

import ctypes
import os
import random
import subprocess
import sys
from collections import Counter

import torch
from fuzz_rows import run_row
from fuzz_ways import run

from core.sparse import build, native

SANITIZER = ("-fsanitize=address", "-fno-omit-frame-pointer", "-g", "-O1")
PRODUCTS = """
#include <cstdio>
#include <cstdlib>
template <class T>
void product(const char* ta, const char* tb, const int* m, const int* n, const int* k, const T* alpha, const T* a,
             const int* la, const T* b, const int* lb, const T* beta, T* c, const int* lc) {
  bool at = *ta == 'T', bt = *tb == 'T';
  auto atleast = [](int rows) { return rows > 1 ? rows : 1; };
  if (*m < 0 || *n < 0 || *k < 0 || *la < atleast(at ? *k : *m) || *lb < atleast(bt ? *n : *k) || *lc < atleast(*m)) {
    std::fprintf(stderr, "BLAS was called with %d %d %d, %d %d %d\\n", *m, *n, *k, *la, *lb, *lc);
    std::abort();
  }
  for (int j = 0; j < *n; ++j)
    for (int i = 0; i < *m; ++i) {
      T sum = 0;
      for (int x = 0; x < *k; ++x)
        sum += (at ? a[x + (long)i * *la] : a[i + (long)x * *la]) * (bt ? b[j + (long)x * *lb] : b[x + (long)j * *lb]);
      T& to = c[i + (long)j * *lc];
      to = *alpha * sum + (*beta == 0 ? T(0) : *beta * to);
    }
}
#define PRODUCT(name, T)                                                                                              \\
  extern "C" void name(const char* ta, const char* tb, const int* m, const int* n, const int* k, const T* alpha,      \\
                       const T* a, const int* la, const T* b, const int* lb, const T* beta, T* c, const int* lc) {    \\
    product<T>(ta, tb, m, n, k, alpha, a, la, b, lb, beta, c, lc);                                                    \\
  }
PRODUCT(product_float, float)
PRODUCT(product_double, double)
"""


def use_sanitized_kernel() -> None:
    """From here on."""
    products = build.load(PRODUCTS, SANITIZER)
    addresses = {
        dtype: ctypes.cast(getattr(products, f"product_{name}"), ctypes.c_void_p).value
        for dtype, name in native.DTYPES.items()
    }
    kernel = native.Kernel(native.load_library(SANITIZER), addresses)
    native._kernel = lambda: kernel


def main(calls: int = 10_000, seed: int = 0) -> None:
    if "libasan" not in os.environ.get("LD_PRELOAD", ""):
        libraries = (  # that of C++ too: the sanitizer looks for what throws exceptions when it starts
            subprocess.run(
                ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
            ).stdout.strip()
            for name in ("libasan.so", "libstdc++.so.6")
        )
        options = {"LD_PRELOAD": " ".join(libraries), "ASAN_OPTIONS": "detect_leaks=0"}
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **options})
    del os.environ["LD_PRELOAD"]  # the compiler needs none
    use_sanitized_kernel()
    torch.set_num_threads(2)
    counts: Counter[tuple[str, str, str]] = Counter()
    for number in range(calls):
        rng, right = random.Random(f"{seed} {number}"), number % 2 == 0
        try:
            way, outcome = (run_row if number % 5 > 2 else run)(rng, right)
        except AssertionError as error:
            raise SystemExit(f"Call {number} of seed {seed}: {error}") from None
        counts["right" if right else "wrong", way, outcome] += 1
    for (kind, way, outcome), count in sorted(counts.items()):
        print(f"{kind} calls by {way}: {outcome} {count}")
    print(f"{calls} calls, no report of the sanitizer")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
