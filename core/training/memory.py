"""Memory that a process frees: it uses it again, and gives it back before it becomes too much."""

import ctypes
import os
import platform

import psutil

from ..memory import total_memory

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of mallopt(3)
LARGEST = 2**31 - 1
VARIABLES = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
GLIBC = platform.libc_ver()[0] == "glibc"


def keep_freed_memory() -> None:
    """From here on, this process uses large memory that it freed again, where the C library is glibc.

    By default glibc returns memory of more than 32 MB to the system at once, and the system hands it out page by page
    the next time, which takes 3 to 15 % of a training step on a CPU. Where a variable decides this already, it does.
    """
    if not GLIBC or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return
    if any(name in os.environ for name in VARIABLES):
        return
    library = ctypes.CDLL(None)
    library.mallopt(M_MMAP_MAX, 0)
    library.mallopt(M_TRIM_THRESHOLD, LARGEST)


class FreedMemory:
    """Gives freed memory back to the system when it becomes too much (glibc only): when the process holds three times
    what its batches need, or when more of its memory is free than other processes could still get.

    glibc often cannot use an aligned block that was freed for another of its size (its bug 14581), so that with batches
    of varying sizes a process grows by 50 to 350 MB in each step, without end. What is given back is fetched again page
    by page, which takes time: so never before the process holds one and a half times what they need.
    """

    BATCHES = 4  # that show what is needed
    LEAST, MOST = 1.5, 3  # times as much

    def __init__(self):
        self.sizes: list[int] = []

    def check(self) -> None:
        """To be called after each batch."""
        size = psutil.Process().memory_info().rss
        if len(self.sizes) < self.BATCHES:
            self.sizes.append(size)
            return
        needed = max(self.sizes)
        if not GLIBC or size <= self.LEAST * needed:
            return
        left = min(psutil.virtual_memory().available, total_memory() - size)
        if size > self.MOST * needed or size - needed > left:
            ctypes.CDLL(None).malloc_trim(0)
            self.sizes = []


freed_memory = FreedMemory()
"""Of this process."""
