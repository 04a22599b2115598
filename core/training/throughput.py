"""The speed of a run: tokens per second, and model FLOPs utilisation."""

import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import cache

import torch
from torch import Tensor, nn

from ..encoder.encoder import Encoder
from ..encoder.tokens import Tokens
from ..models.views import ONE_VIEW
from .sampling import SampleStream

TIMED = (
    "samples_per_second",
    "tokens_per_second",
    "mfu",
    "data_wait",
)  # they differ between equal runs
BACKWARD = 3  # operations of a training step over those of its forward pass (Chowdhery et al. 2022, appendix B)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SIDE = {"cpu": 1024, "cuda": 8192}  # of the matrices whose product measures the speed of a device


class Throughput:
    """Tokens and floating-point operations per unit of data, which are measured once, and rates in each interval.

    The unit of data is a sample; where samples have lengths, it is a unit of length. Where samples grow, each of their
    sizes is measured.
    """

    def __init__(self, order: SampleStream, processes: int, starts: Sequence[int] = (0,)):
        """starts: the first step of each size of the samples (see `Growth`)."""
        self.order, self.processes, self.starts = order, processes, starts
        self.tokens: list[float] = []
        self.operations: list[float] = []
        self.peak = 0.0

    @property
    def measured(self) -> bool:
        return self.peak > 0

    @torch.no_grad()
    def measure(
        self, model: nn.Module, losses: Sequence[Callable[[], Tensor]], samples: list[int], precision: str
    ) -> None:
        """losses: each computes the loss of `samples`, of another of their sizes. precision: of matrix products.

        The model runs as it is without torch.compile, which compiles nothing while operations are counted, and as in
        evaluation, which changes nothing in it, but averages no views.
        """
        from ..attention.flops import TEACHING, OfTeachers, flop_counter  # takes a second to import

        training, tokens = model.training, 0
        units = self._units_of(samples)

        def count(encoder: Encoder, inputs: tuple[Tokens]) -> None:
            nonlocal tokens
            if TEACHING.get():
                return
            x, mask = inputs[0].x, inputs[0].mask
            tokens += x[..., 0].numel() if mask is None else int(mask.sum())

        model.eval()
        hooks = [module.register_forward_pre_hook(count) for module in model.modules() if isinstance(module, Encoder)]
        for loss_of in losses:
            tokens = 0
            with flop_counter() as counter, OfTeachers(counter) as teachers, ONE_VIEW.set(model):
                loss_of()
            trained = counter.get_total_flops() - teachers.total
            self.tokens.append(tokens / units)
            self.operations.append((BACKWARD * trained + teachers.total) / units)  # a teacher has no backward pass
        for hook in hooks:
            hook.remove()
        model.train(training)
        self.peak = fastest_product(next(model.parameters()).device, DTYPES[precision])

    def rates(self, first_step: int, last_step: int, seconds: float) -> dict[str, float]:
        """Of the steps from the first one up to, and without, the last one.

        mfu: model FLOPs utilisation, as a fraction of the speed at which the device multiplies large matrices.
        """
        samples = self.order.start(last_step) - self.order.start(first_step)
        found = {"samples_per_second": samples / seconds}
        tokens = operations = 0.0
        if self.measured:
            for step in range(first_step, last_step):
                units, size = self._units_of([index for _, index in self.order.step(step)]), self._size(step)
                tokens += units * self.tokens[size]
                operations += units * self.operations[size]
        if tokens:
            found["tokens_per_second"] = tokens / seconds
        if operations:
            found["mfu"] = operations / seconds / (self.peak * self.processes)
        return found

    def cost(self, first_step: int, last_step: int) -> float:
        """What steps cost by the sizes of their samples, comparable with that of other steps only."""
        return sum((end - start) * (cost or 1.0) for start, end, cost in self._parts(first_step, last_step))

    def total(self, step: int) -> float:
        """Floating-point operations of the steps up to this one, those of the optimiser and of evaluation left out."""
        of_sample = 1.0 if self.order.lengths is None else float(self.order.lengths.mean())
        parts = ((self.order.start(end) - self.order.start(start), cost) for start, end, cost in self._parts(0, step))
        return of_sample * sum(samples * operations for samples, operations in parts)

    def _parts(self, first_step: int, last_step: int) -> Iterator[tuple[int, int, float]]:
        """Steps whose samples have one size: the first one, the first that has not, and the operations of a unit."""
        ends = (*self.starts[1:], last_step)
        for start, end, operations in zip(self.starts, ends, self.operations, strict=False):
            start, end = max(start, first_step), min(end, last_step)
            if start < end:
                yield start, end, operations

    def _size(self, step: int) -> int:
        """The number of the size that samples have in a step."""
        return bisect_right(self.starts, step) - 1

    def _units_of(self, samples: list[int]) -> int:
        return len(samples) if self.order.lengths is None else int(self.order.lengths[samples].sum())


@cache
def fastest_product(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second in the product of two large matrices."""
    side = SIDE.get(device.type, 4096)
    a, b = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(2))

    def once() -> float:
        started = time.perf_counter()
        (a @ b)[0, 0].item()  # waits for the device
        return time.perf_counter() - started

    return 2 * side**3 / min(once() for _ in range(4))
