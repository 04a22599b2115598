"""Random calls of attention, right and wrong: each must raise an error or give what the reference gives.

    python tests/core/sparse/fuzz.py [calls] [seed]

runs them (10,000 by default) under the address sanitizer and that of undefined behaviour, with which the kernel is
compiled. It needs g++ with libasan and libubsan, and takes some minutes.
Half of the calls are right: any strides, lengths from 0 to 300, masks, biases, prefixes, grids and dtypes. The other
half have something wrong with them. They are made by every way in: `attend`, the operators, and the kernel itself.
Two of five calls are of several sequences in a packed row, and one of ten is of rotary positions, another of norms.
The first report of a sanitizer ends the run. tests/core/sparse/test_fuzz.py runs a few hundred without it. The calls
are in fuzz_calls.py, the ways in in fuzz_ways.py, both for packed rows in fuzz_rows.py, for rotary positions in
fuzz_turns.py, and for norms in fuzz_norms.py.
"""

import os
import random
import subprocess
import sys
from collections import Counter

import torch
from fuzz_norms import run_norms
from fuzz_rows import run_row
from fuzz_turns import run_turns
from fuzz_ways import run

from core.sparse import native

SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer", "-g", "-O1")


def use_sanitized_kernel() -> None:
    """From here on."""
    kernel = native.load_library(SANITIZERS)
    native.kernel = lambda: kernel


def main(calls: int = 10_000, seed: int = 0) -> None:
    if "libasan" not in os.environ.get("LD_PRELOAD", ""):
        libraries = (  # that of C++ too: the sanitizer looks for what throws exceptions when it starts
            subprocess.run(
                ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
            ).stdout.strip()
            for name in ("libasan.so", "libubsan.so", "libstdc++.so.6")
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
            others = {0: run_turns, 2: run_norms}
            if one := others.get(number % 10):
                way, outcome = one(rng)
            else:
                way, outcome = (run_row if number % 5 > 2 else run)(rng, right)
        except AssertionError as error:
            raise SystemExit(f"Call {number} of seed {seed}: {error}") from None
        counts["right" if right else "wrong", way, outcome] += 1
    for (kind, way, outcome), count in sorted(counts.items()):
        print(f"{kind} calls by {way}: {outcome} {count}")
    print(f"{calls} calls, no report of a sanitizer")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
