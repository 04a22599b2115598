"""Memory that a process frees, and uses again."""

import ctypes
import os
import platform

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of mallopt(3)
MOST = 2**31 - 1
VARIABLES = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")


def keep_freed_memory() -> None:
    """From here on, this process uses large memory that it freed again, where the C library is glibc.

    By default glibc returns memory of more than 32 MB to the system at once, and the system hands it out page by page
    the next time, which takes 3 to 15 % of a training step on a CPU. Kept memory breaks into pieces: where sizes vary,
    the process may need a tenth more. Where a variable decides this already, it does.
    """
    if platform.libc_ver()[0] != "glibc" or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return
    if any(name in os.environ for name in VARIABLES):
        return
    library = ctypes.CDLL(None)
    library.mallopt(M_MMAP_MAX, 0)
    library.mallopt(M_TRIM_THRESHOLD, MOST)
