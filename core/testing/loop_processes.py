"""The check that several processes train as one does, and how they are started."""

import os
import socket
import tempfile
from multiprocessing import get_all_start_methods, set_forkserver_preload
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.spawn import start_processes

from .loop_measures import flat
from .loop_records import FIRST_OF_EVALUATION
from .loop_subjects import LoopSubject, Run
from .measures import Figures, quiet, require

PROCESSES = 2
TOLERANCE = 1e-4  # sums in another order, in fp32, over the steps of a run


def processes_change_nothing(subject: LoopSubject) -> Figures:
    """Started in two processes, as by torchrun, each step sees the same samples, and weights and loss are the same."""
    alone = subject.run(dropout=0.0, accumulate=1)
    runs = started_in_processes(subject, dropout=0.0, accumulate=1)
    steps = {len(run.steps) for run in runs}
    require(steps == {len(alone.steps)}, f"the processes do {max(steps)} steps, one process {len(alone.steps)}")
    for number, expected in enumerate(alone.samples):
        found = sorted(sample for run in runs for sample in run.samples[number])
        require(found == sorted(expected), f"the samples of step {number + 1} are {found}, in one process {expected}")
    error = max(float((flat(run.weights) - flat(alone.weights)).abs().max()) for run in runs)
    require(error < TOLERANCE, f"the weights are others (off by {error:.1e})", error=error)
    if "evaluation" in subject.claimed:
        seen = {s for run in runs for each in run.passes if each.evaluates for s in each.samples}
        wanted = {FIRST_OF_EVALUATION + i for i in range(len(alone.evaluation))}
        require(seen >= wanted, f"the processes do not evaluate {len(wanted - seen)} samples")
        off = abs((runs[0].loss or 0.0) - (alone.loss or 0.0))
        require(off < TOLERANCE, f"the loss of the evaluation set is off by {off:.1e}: is a sample counted twice?")
    return {"error": error}


def started_in_processes(subject: LoopSubject, **options: Any) -> list[Run]:
    """The run of each process; the loop must be importable."""
    with socket.socket() as found, tempfile.TemporaryDirectory() as folder:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
        found.close()
        context = _context(subject.train)
        arguments = subject.train, subject.device, port, folder, options
        start_processes(_run, arguments, PROCESSES, start_method=context)
        files = (Path(folder) / f"{rank}.pt" for rank in range(PROCESSES))
        return [torch.load(file, weights_only=False) for file in files]


def _context(train: Any) -> str:
    """How processes are started: where that can be, from one that has imported what each needs, once for all checks."""
    if "forkserver" not in get_all_start_methods():
        return "spawn"
    own = getattr(train, "__module__", "__main__")
    set_forkserver_preload(["torch._dynamo", *[own] * (own != "__main__")])  # optimisers import torch's compiler
    return "forkserver"


def _run(rank: int, train: Any, device: str, port: int, folder: str, options: dict[str, Any]) -> None:
    """One of the processes, in the environment that torchrun makes."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": PROCESSES, "LOCAL_WORLD_SIZE": PROCESSES}
    names |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GROUP_RANK": 0, "TORCHELASTIC_RUN_ID": "conform"}
    os.environ.update({name: str(value) for name, value in names.items()})
    torch.set_num_threads(1)
    with quiet():
        run = LoopSubject(train, device=device).start(Path(folder), rank=rank, **options)
    torch.save(run, Path(folder) / f"{rank}.pt")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
