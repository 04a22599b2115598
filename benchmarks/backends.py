"""Our sparse backends against dense attention: `python -m benchmarks.backends [PART ...]`, ten minutes on 2 cores.

Parts, all by default: kernels (each backend at 16,384 tokens), crossover (from where on they pay), without_pattern (the
same for all pairs). eta = density * dense time / sparse time is how close a kernel comes to its limit: at 1 only the
pairs kept were paid for. Dense is torch's fused attention; all in fp32.
"""

import argparse
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

from core import attend, attention_backend, explain
from core.sparse import Global, Local, Pattern, PowersOfTwo, Window2d, make_plan

from .long import DIM, HEADS, make_inputs, step
from .timing import Timing, interleave

LENGTH = 16_384


def by_pattern(
    pattern: Pattern | None, grid: tuple[int, int] | None = None, backend: str = "native", **options: object
) -> Callable:
    def run(q, k, v):
        with attention_backend(backend):
            return attend(q, k, v, pattern=pattern, grid=grid, **options)

    return run


def row(name: str, timing: Timing, dense: Timing, density: float | None = None) -> None:
    middle, low, high = timing.ratio(dense)
    eta = f"{density:>9.1%}{density * middle:>7.2f}" if density else f"{'':>16}"
    print(f"{name:<42}{timing.median * 1e3:>9.0f}{middle:>9.1f}x{f'{low:.1f} - {high:.1f}':>15}{eta}", flush=True)


def header(title: str) -> None:
    print(f"\n{title}\n{'':<42}{'ms':>9}{'faster':>10}{'quartiles':>15}{'kept':>9}{'eta':>7}")


def kernels() -> None:
    patterns = {
        "Local(256)": (Local(256), None),
        "PowersOfTwo() | Global(1)": (PowersOfTwo() | Global(1), None),
        "Window2d(8), 128 x 128": (Window2d(8), (128, 128)),
    }
    for backward in (False, True):
        data = make_inputs(LENGTH)
        work = {"dense": step(F.scaled_dot_product_attention, *data, backward)}
        densities = {}
        for name, (pattern, grid) in patterns.items():
            for backend in ("native", "blockwise", *(() if backward else ("flex",))):
                work[f"{name}, {backend}"] = step(by_pattern(pattern, grid, backend), *data, backward)
                densities[f"{name}, {backend}"] = make_plan(pattern, LENGTH, 0, grid).density
        found = interleave(work, rounds=5, warmup=1)
        header(f"{LENGTH:,} tokens, {HEADS} heads of {DIM}, forward{' + backward' if backward else ''}")
        for name, timing in found.items():
            row(name, timing, found["dense"], densities.get(name))


def crossover() -> None:
    """From where on each sparse backend is faster than dense attention with the pattern's mask."""
    print("\nCrossover: times as fast as dense attention under the pattern's mask, forward + backward")
    print(f"{'':<30}kept  native  blockwise   attend takes")
    for n in (32, 128, 256, 512, 1024, 2048):
        for share in (0.1, 0.3, 0.5, 0.7, 0.9):
            pattern, data = Local(max(round(n * (1 - math.sqrt(1 - share)) * 2), 1)), make_inputs(n, batch=2048 // n)
            backends = ("dense", "native", "blockwise")
            found = interleave({b: step(by_pattern(pattern, backend=b), *data) for b in backends}, rounds=7)
            native, blockwise = (found[b].ratio(found["dense"])[0] for b in backends[1:])
            kept, takes = make_plan(pattern, n).density, explain(*data[:3], pattern=pattern).backend
            print(f"{n:>6} tokens, {pattern!s:<15}{kept:>5.0%}{native:>8.2f}{blockwise:>11.2f}   {takes}", flush=True)


def without_pattern() -> None:
    """From how many multiplications on our kernel is faster than torch's, where no pattern is given."""
    print("\nWithout a pattern: times as fast as torch's kernel, forward + backward")
    kinds = ("plain", "a mask", "dropout", "a bias")
    print(f"{'':<32}{'multiplications':>16}{''.join(f'{kind:>10}' for kind in kinds)}")
    for batch, heads in ((1, 4), (8, 6), (64, 4)):
        for n in (16, 32, 64, 128, 256, 512):
            data, mask = make_inputs(n, batch, heads), torch.arange(n)[None] < n - n // 4
            options = ({}, {"mask": mask}, {"dropout": 0.1}, {"bias": torch.randn(1, heads, n, n)})
            ratios = []
            for each in options:
                work = {name: step(by_pattern(None, backend=name, **each), *data) for name in ("dense", "native")}
                found = interleave(work, rounds=9)
                ratios.append(found["native"].ratio(found["dense"])[0])
            size = f"{batch} x {heads} heads x {n} tokens"
            numbers = "".join(f"{ratio:>10.2f}" for ratio in ratios)
            print(f"{size:<32}{batch * heads * n * n * 2 * DIM / 2**20:>15.1f}M{numbers}", flush=True)


PARTS = {part.__name__: part for part in (kernels, crossover, without_pattern)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.backends", description="Our sparse backends, timed.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default")
    chosen = parser.parse_args().parts or list(PARTS)
    if unknown := [part for part in chosen if part not in PARTS]:
        parser.error(f"no part is called {unknown[0]!r}; choose from {', '.join(PARTS)}")
    torch.manual_seed(0)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    for part in chosen:
        PARTS[part]()


if __name__ == "__main__":
    main()
