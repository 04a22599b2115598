"""Memory that a process frees, and uses again."""

import ctypes
import os
import platform

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of mallopt(3)
MOST = 2**31 - 1


def keep_freed_memory() -> None:
    """From here on, this process uses large memory that it freed again, where the C library is glibc.

    By default glibc returns memory of more than 32 MB to the system at once, and the system hands it out page by page
    the next time, which takes 3 to 15 % of a training step on a CPU. Kept memory breaks into pieces: where sizes vary,
    the process may need a tenth more. The variables of mallopt(3), if any is set, are left to decide.
    """
    if platform.libc_ver()[0] != "glibc" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    library = ctypes.CDLL(None)
    library.mallopt(M_MMAP_MAX, 0)
    library.mallopt(M_TRIM_THRESHOLD, MOST)
