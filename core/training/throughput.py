"""The speed of a run: tokens per second, and model FLOPs utilisation."""

import time
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

from ..encoder.encoder import Encoder
from ..encoder.tokens import Tokens
from .sampling import SampleStream

TIMED = (
    "samples_per_second",
    "tokens_per_second",
    "mfu",
    "data_wait",
)  # they differ between equal runs
BACKWARD = 3  # operations of a training step over those of its forward pass (Chowdhery et al. 2022, appendix B)
SIDE = {"cpu": 1024, "cuda": 8192}  # of the matrices whose product measures the speed of a device


class Throughput:
    """Tokens and floating-point operations per unit of data, which are measured once, and rates in each interval.

    The unit of data is a sample; where samples have lengths, it is a unit of length.
    """

    def __init__(self, order: SampleStream, processes: int):
        self.order, self.processes = order, processes
        self.tokens = self.operations = self.peak = 0.0

    @property
    def measured(self) -> bool:
        return self.peak > 0

    @torch.no_grad()
    def measure(self, model: nn.Module, loss_of: Callable[[], Tensor], samples: list[int], dtype: torch.dtype) -> None:
        """loss_of: computes the loss of `samples`. dtype: that of matrix products.

        The model runs as it is without torch.compile, which compiles nothing while operations are counted, and as in
        evaluation, which changes nothing in it. `views` of a model: how often it runs a sample then, if not once.
        """
        from ..attention.flops import OfTeachers, flop_counter  # takes a second to import

        training, tokens = model.training, 0

        def count(encoder: Encoder, inputs: tuple[Tokens]) -> None:
            nonlocal tokens
            x, mask = inputs[0].x, inputs[0].mask
            tokens += x[..., 0].numel() if mask is None else int(mask.sum())

        model.eval()
        hooks = [module.register_forward_pre_hook(count) for module in model.modules() if isinstance(module, Encoder)]
        with flop_counter() as counter, OfTeachers(counter) as teachers:
            loss_of()
        for hook in hooks:
            hook.remove()
        model.train(training)
        units = self._units_of(samples) * getattr(model, "views", 1)
        self.tokens = tokens / units
        trained = counter.get_total_flops() - teachers.total
        self.operations = (BACKWARD * trained + teachers.total) / units  # a teacher has no backward pass
        self.peak = fastest_product(next(model.parameters()).device, dtype)

    def rates(self, first_step: int, last_step: int, seconds: float) -> dict[str, float]:
        """Of the steps from the first one up to, and without, the last one.

        mfu: model FLOPs utilisation, as a fraction of the speed at which the device multiplies large matrices.
        """
        steps = range(first_step, last_step)
        units = sum(self._units_of([index for _, index in self.order.step(step)]) for step in steps)
        samples = self.order.start(last_step) - self.order.start(first_step)
        found = {"samples_per_second": samples / seconds}
        if self.tokens:
            found["tokens_per_second"] = units * self.tokens / seconds
        if self.operations:
            found["mfu"] = units * self.operations / seconds / (self.peak * self.processes)
        return found

    def total(self, step: int) -> float:
        """Floating-point operations of the steps up to this one, those of the optimiser and of evaluation left out."""
        of_sample = 1.0 if self.order.lengths is None else float(self.order.lengths.mean())
        return self.operations * of_sample * self.order.start(step)

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
