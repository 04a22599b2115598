"""A row of the page: our time beside a peer's for the same work, the limit of both, and what we want of it."""

import platform
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch
from pydantic import TypeAdapter

from core.training.processes import has_fast_bf16

from .memory import peak_memory
from .timing import Timing

Memory = tuple[float, float | None]
"""Bytes, ours and the peer's."""


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What is wanted of a row; None where nothing is."""

    ratio: float | None = 1.0
    """Times as fast as the peer, at least."""
    limit: float | None = None
    """Share of the limit's speed, at least."""
    memory: float | None = None
    """Share of the peer's memory, at most."""
    seconds: float | None = None
    """At most."""


@dataclass(frozen=True, kw_only=True)
class Row:
    what: str
    """Model or data, and its size."""
    work: str
    """What is done with it."""
    peer: str
    """Whom we are compared to, with its version."""
    ours: Timing
    theirs: Timing | None = None
    """None where the peer can't do it in reasonable time or memory."""
    limit: float | None = None
    """Seconds that the work takes at least; what that is, the group's text says."""
    memory: Memory | None = None
    """Most in use above that before the work."""
    goal: Goal = Goal()
    length: int | None = None
    """In tokens, for the chart of cost against length."""

    @property
    def ratio(self) -> tuple[float, float, float] | None:
        """How many times faster we are: median and quartiles."""
        return None if self.theirs is None else self.ours.ratio(self.theirs)

    @property
    def share(self) -> float | None:
        """Of the limit's speed."""
        return None if self.limit is None else self.limit / self.ours.median

    @property
    def short(self) -> list[str]:
        """The goals that are missed, and by how much; none of them if the row passes."""
        goal, found = self.goal, []
        if goal.ratio and self.ratio and self.ratio[0] < goal.ratio:
            found.append(f"ratio {self.ratio[0]:.3f} of {goal.ratio:.3g}")
        if goal.limit and self.share is not None and self.share < goal.limit:
            found.append(f"{self.share:.1%} of the limit, not {goal.limit:.0%}")
        if goal.memory and self.memory and self.memory[1] and self.memory[0] > goal.memory * self.memory[1]:
            found.append(f"memory {self.memory[0] / self.memory[1]:.2f} of theirs, not {goal.memory:g}")
        if goal.seconds and self.ours.median > goal.seconds:
            found.append(f"{self.ours.median:.2f} s, not {goal.seconds:g} s")
        return found


@dataclass(frozen=True, kw_only=True)
class Run:
    """How rows are to be measured."""

    rounds: int | None = None
    """Of every comparison; None leaves it to each, by what it costs."""
    tiny: bool = False
    """Small models and inputs, no memory: to see that all runs, not how fast."""
    bf16: bool = field(default_factory=lambda: has_fast_bf16("cpu"))
    """Whether bf16 is measured too."""
    device: str = "cpu"
    """Where models are trained."""

    @property
    def precisions(self) -> tuple[str, ...]:
        return ("fp32", "bf16") if self.bf16 else ("fp32",)

    def times(self, usual: int) -> dict[str, int]:
        """Rounds, and rounds before them that don't count."""
        rounds = self.rounds or (1 if self.tiny else usual)
        return {"rounds": rounds, "warmup": 0 if self.tiny else 1 if rounds < 10 else 2}

    def memory(self, ours: tuple, theirs: tuple | None = None) -> Memory | None:
        """Of both, each a function that makes the work, and its arguments."""
        if self.tiny:
            return None
        return peak_memory(*ours), None if theirs is None else peak_memory(*theirs)


@dataclass(frozen=True, kw_only=True)
class Group:
    """Rows measured in one run, as they are kept."""

    text: str
    """What is compared, and what the limit is."""
    machine: str
    rows: tuple[Row, ...]

    def as_json(self) -> dict:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict) -> "Group":
        return TypeAdapter(cls).validate_python(data)


def versioned(package: str) -> str:
    return f"{package} {version(package)}"


def machine(device: str = "cpu") -> str:
    """Threads and processor, or the graphics card, and torch, in a line."""
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    bf16 = "with" if has_fast_bf16("cpu") else "without"
    cpu = models[0] if models else platform.processor() or platform.machine()
    threads = torch.get_num_threads()
    return f"{threads} thread{'s' if threads > 1 else ''}, {cpu} ({bf16} bf16 arithmetic), torch {torch.__version__}"
