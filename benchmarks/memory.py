"""Memory of a process, as Linux counts it."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path


def peak_memory(make: Callable[..., Callable[[], object]], *arguments: object) -> float:
    """Most bytes in use above those before, in two runs of the work that `make(*arguments)` returns.

    In a process of its own; make: a function of a module, for it travels there by name.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_memory, (make, arguments))


def _peak_memory(make: Callable[..., Callable[[], object]], arguments: tuple) -> float:
    work = make(*arguments)
    before = resident("VmRSS")
    forget_peak()
    for _ in range(2):
        work()
    return resident("VmHWM") - before


def resident(name: str) -> float:
    """Bytes: VmRSS, what is in use; VmHWM, the most there was."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024.0 * int(line.split()[1])


def forget_peak() -> None:
    """VmHWM starts anew."""
    Path("/proc/self/clear_refs").write_text("5")
