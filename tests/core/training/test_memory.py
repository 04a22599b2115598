import platform

import pytest
import torch
from points import accelerator
from processes import start
from torch import nn
from torch.utils.data import TensorDataset

from core import Batch, Classification
from core.experiments.features import extract_features
from core.experiments.inputs import Input
from core.experiments.outputs import Vectors
from core.experiments.predictor import Predictor, predict_input
from core.training.evaluation import evaluate_model
from core.training.gradients import step_gradients
from core.training.memory import freed_memory

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


HELD = """
import psutil
import sys
import torch
from core.training import memory
from core.training.memory import freed_memory, keep_freed_memory

if sys.argv[1:]:
    memory.total_memory = lambda: int(sys.argv[1])

def held(megabytes):
    before = psutil.Process().memory_info().rss
    torch.ones(megabytes * 2**18)
    freed_memory.check()
    return (psutil.Process().memory_info().rss - before) / 2**20

keep_freed_memory()
for _ in range(freed_memory.BATCHES):
    freed_memory.check()
needed = max(freed_memory.sizes) >> 20
print(held(3 * needed // 4), held(3 * needed))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries decide for themselves")
@pytest.mark.parametrize("total, kept", [((), True), ((2**20,), False)])
def test_freed_memory_is_kept_until_it_is_too_much(tmp_path, total, kept):
    """A multiple of what is needed, or more than is left of all memory; here of a megabyte."""
    program, out = tmp_path / "program.py", tmp_path / "out"
    program.write_text(HELD)
    process = start(program, total, out=out)
    process.join()
    assert process.exitcode == 0
    some, much = map(float, out.read_text().split())
    assert (some > 100) == kept  # megabytes
    assert much < 10 or not kept  # what it needs is measured anew after memory was given back


def test_each_batch_is_checked(monkeypatch, tmp_path):
    """In training, evaluation, prediction and where features are extracted."""
    data = TensorDataset(torch.randn(12, 3), torch.randint(0, 2, (12,)))

    def collate(samples):
        return Batch((torch.stack([x for x, _ in samples]),), torch.stack([y for _, y in samples]))

    def checked(work):
        sizes = []
        monkeypatch.setattr(freed_memory, "sizes", sizes)
        work()
        return len(sizes)

    model, cpu = nn.Linear(3, 2), accelerator()
    batches = [collate([data[0]]), collate([data[1]])]
    assert checked(lambda: step_gradients(cpu, model, Classification(), batches)) == 2
    assert checked(lambda: evaluate_model(cpu, model, Classification(), data, collate, batch_size=4)) == 3
    assert checked(lambda: extract_features(model, lambda model, x: model(x), data, collate)) == 1
    predictor = Predictor(
        run="",
        model=model,
        read=lambda entry: entry.source,
        compute=lambda each: model(torch.stack(each)),
        form=Vectors(),
    )
    assert checked(lambda: predict_input(predictor, Input({}, data[0][0], "", "", tmp_path))) == 1
