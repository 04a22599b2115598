"""Importing a package after torch, each time in a new process, against the peer's module for the same models. There is
no limit but the goal of 1.5 s."""

import subprocess
import sys
from collections.abc import Callable, Iterator

from .row import Goal, Row, Run, versioned
from .timing import interleave

FIRST = "torch"
PEERS = {
    "core": ("x_transformers", "x-transformers"),
    "vision": ("timm", "timm"),
    "audio": (
        "transformers.models.audio_spectrogram_transformer.modeling_audio_spectrogram_transformer",
        "transformers",
    ),
    "text": ("transformers.models.bert.modeling_bert", "transformers"),
}


def importing(module: str) -> Callable[[], float]:
    code = f"import time, {FIRST}; s = time.perf_counter(); import {module}; print(time.perf_counter() - s)"
    command = [sys.executable, "-W", "ignore", "-c", code]
    return lambda: float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def rows(run: Run) -> Iterator[Row]:
    for ours, (theirs, package) in PEERS.items():
        found = interleave({module: importing(module) for module in (ours, theirs)}, **run.times(5))
        yield Row(
            what=f"import {ours}",
            work=f"after {FIRST}",
            peer=versioned(package),
            ours=found[ours],
            theirs=found[theirs],
            goal=Goal(seconds=1.5),
        )
