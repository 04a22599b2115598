"""Our model and a peer's, of the same weights, in inference and training."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .limit import DTYPES, interleave_with_products, operations
from .row import Goal, Memory, Row, Run
from .timing import Timing

SIDES = ("ours", "theirs")
Goals = Mapping[str, float]
"""By work and precision ("training step, fp32"): how many times as fast as the peer's ours should be, where not 1."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    what: str
    peer: str
    """With its version."""
    ours: nn.Module
    theirs: nn.Module
    """Both map `inputs` to logits "b classes" or vectors "b n d"."""
    inputs: Tensor
    equal: bool = True
    """Whether outputs must be; False where ours attends by a pattern."""

    def check(self) -> None:
        if self.equal:
            with torch.inference_mode():
                found, expected = self.ours(self.inputs), self.theirs(self.inputs)
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


class Logits(nn.Module):
    """A model of transformers' that returns what ours does."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        return self.model(inputs).logits


def compare(
    make: Callable[..., Pair],
    run: Run,
    *,
    inference: int = 0,
    training: int = 0,
    compiled: int = 0,
    precisions: Sequence[str] | None = None,
    goals: Goals = MappingProxyType({}),
) -> Iterator[Row]:
    """Rows of the pair that `make(tiny)` makes.

    inference, training, compiled: rounds of each; none if 0. precisions: those of the run by default.
    """
    torch.manual_seed(0)
    pair = make(run.tiny)
    pair.ours.eval(), pair.theirs.eval()
    pair.check()
    precisions = tuple(precisions or run.precisions)
    if inference:
        yield from _infer_rows(pair, run, inference, precisions, goals)
    pair.ours.train(), pair.theirs.train()
    if training:
        memory = run.memory(*((_step, make, side, run.tiny) for side in SIDES))
        yield from _train_rows(pair, run, training, precisions, goals, memory)
    if compiled:
        yield from _compiled_rows(pair, run, compiled, precisions[-1])


def _infer_rows(pair: Pair, run: Run, rounds: int, precisions: tuple[str, ...], goals: Goals) -> Iterator[Row]:
    def work(side: str, precision: str) -> Callable[[], object]:
        model, inputs, dtype = getattr(pair, side), pair.inputs, DTYPES[precision]
        if precision != "fp32":
            model = copy.deepcopy(model).to(dtype)
            inputs = inputs.to(dtype) if inputs.is_floating_point() else inputs
        return torch.inference_mode()(lambda: model(inputs))

    with torch.no_grad():  # operations can't be counted in inference mode
        needed = operations(lambda: pair.ours(pair.inputs))
    works = {(side, precision): work(side, precision) for precision in precisions for side in SIDES}
    found, peaks = interleave_with_products(works, run, rounds, precisions)
    yield from _rows(pair, "inference", found, {p: needed / peaks[p] for p in precisions}, goals)


def _train_rows(
    pair: Pair, run: Run, rounds: int, precisions: tuple[str, ...], goals: Goals, memory: Memory | None
) -> Iterator[Row]:
    works = {(side, p): train(getattr(pair, side), pair.inputs, p) for p in precisions for side in SIDES}
    needed = operations(works["ours", "fp32"])
    found, peaks = interleave_with_products(works, run, rounds, precisions)
    yield from _rows(pair, "training step", found, {p: needed / peaks[p] for p in precisions}, goals, memory)
    if "bf16" in precisions:
        gain = found["theirs", "fp32"].median / found["theirs", "bf16"].median
        yield _against_fp32(pair, "training step, bf16", found["ours", "bf16"], found["ours", "fp32"], gain)


def _compiled_rows(pair: Pair, run: Run, rounds: int, precision: str) -> Iterator[Row]:
    works = {side: train(torch.compile(getattr(pair, side)), pair.inputs, precision) for side in SIDES}
    works["eager"] = train(pair.ours, pair.inputs)
    needed = operations(works["eager"])
    found, peaks = interleave_with_products(works, run, rounds, (precision,))
    yield Row(
        what=pair.what,
        work=f"training step, {precision}, compiled",
        peer=f"{pair.peer}, compiled",
        ours=found["ours"],
        theirs=found["theirs"],
        limit=needed / peaks[precision],
    )
    if precision == "bf16":
        yield _against_fp32(pair, "training step, bf16, compiled", found["ours"], found["eager"])


def _rows(
    pair: Pair,
    work: str,
    found: dict[tuple[str, str], Timing],
    limits: dict[str, float],
    goals: Goals,
    memory: Memory | None = None,
) -> Iterator[Row]:
    """One for each precision; memory: in fp32."""
    for precision, limit in limits.items():
        yield Row(
            what=pair.what,
            work=f"{work}, {precision}",
            peer=pair.peer,
            ours=found["ours", precision],
            theirs=found["theirs", precision],
            limit=limit,
            memory=memory if precision == "fp32" else None,
            goal=Goal(ratio=goals.get(f"{work}, {precision}", 1.0)),
        )


def _against_fp32(pair: Pair, work: str, half: Timing, full: Timing, goal: float = 1.0) -> Row:
    """goal: what the peer gains by bf16, where that is known."""
    return Row(what=pair.what, work=work, peer="ours, eager, in fp32", ours=half, theirs=full, goal=Goal(ratio=goal))


def _step(make: Callable[..., Pair], side: str, tiny: bool) -> Callable[[], None]:
    """For memory: one side's step, the other's model gone."""
    torch.manual_seed(0)
    pair = make(tiny)
    return train(getattr(pair, side).train(), pair.inputs)


def train(model: nn.Module, inputs: Tensor, precision: str = "fp32") -> Callable[[], None]:
    """A whole step: forward, loss, backward, AdamW of what is to be trained; bf16 by autocast."""
    return train_on(model, [((inputs,), torch.zeros(len(inputs), dtype=torch.long))], precision)


def train_on(model: nn.Module, batches: list[tuple[tuple, Tensor]], precision: str = "fp32") -> Callable[[], None]:
    """A step on each batch of (inputs, class numbers)."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer, device = torch.optim.AdamW(trained, lr=1e-5, fused=True), trained[0].device.type

    def steps() -> None:
        for inputs, targets in batches:
            with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
                out = model(*inputs)
                loss = F.cross_entropy(out, targets) if out.ndim == 2 else out.float().square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return steps
