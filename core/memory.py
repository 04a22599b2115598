"""Memory: how much there is, and one sentence where it is not enough."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import psutil
import torch

from .errors import UserError

SIGNS = (
    "can't allocate memory",
    "not enough memory",
    "bad_alloc",
    "out of memory",
    "Storage size calculation overflow",
)


@cache
def total_memory() -> int:
    """Bytes of memory in the machine, or in the container of this process."""
    limits = [psutil.virtual_memory().total]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limits.append(int(Path(path).read_text()))
        except (OSError, ValueError):  # no container, or one without a limit ("max")
            continue
    return min(limits)


def check_room(size: int, what: str, advice: str) -> None:
    """Refuse something that cannot fit into memory; size: bytes."""
    if torch.get_default_device().type != "meta" and size > total_memory():
        needed = f"{size / 2**30:,.0f} GiB"
        raise UserError(f"{what} needs {needed}, but there are {total_memory() / 2**30:,.1f} GiB of memory: {advice}.")


def limit_memory() -> None:
    """Let an allocation beyond all memory fail; otherwise the kernel grants it and later kills the process."""
    try:
        import resource  # not on Windows
    except ImportError:
        return
    if torch.cuda.is_available():  # its driver reserves more memory than there is
        return
    wanted = total_memory() + psutil.swap_memory().total
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if soft == resource.RLIM_INFINITY or soft > wanted:
        resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))


@contextmanager
def memory_explained(what: str, advice: str) -> Iterator[None]:
    """Inside, a lack of memory is an error of one sentence."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or any(sign in str(error) for sign in SIGNS):
            raise UserError(f"There is not enough memory for {what}: {advice}.") from None
        raise
