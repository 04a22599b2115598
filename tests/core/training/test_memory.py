import platform

import pytest
from processes import start

PROGRAM = """
import resource
import torch
from core.training.memory import keep_freed_memory

def faults(megabytes):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(megabytes * 2**18).add_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keep_freed_memory()
print(*[faults(64) for _ in range(6)])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries decide for themselves")
@pytest.mark.parametrize(
    "variables, kept",
    [
        ({}, True),
        ({"MALLOC_ARENA_MAX": "2"}, True),
        ({"MALLOC_MMAP_MAX_": "65536"}, False),
        ({"GLIBC_TUNABLES": "glibc.malloc.mmap_max=65536"}, False),
    ],
)
def test_large_memory_is_used_again(tmp_path, variables, kept):
    program, out = tmp_path / "program.py", tmp_path / "out"
    program.write_text(PROGRAM)
    process = start(program, [], out=out, **variables)
    process.join()
    assert process.exitcode == 0
    counts = [int(word) for word in out.read_text().split()]  # pages of 4 KiB that the system had to provide
    assert counts[0] > 10_000  # something small may have taken the beginning of what the first left
    assert min(counts[2:]) < 2_000 if kept else min(counts) > 10_000, counts
