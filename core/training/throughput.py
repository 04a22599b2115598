"""How fast a run is: tokens a second, and how much of the device's arithmetic that takes."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache

import torch
from torch import Tensor, nn

from ..attention.recording import AttentionCall, record_attention
from ..encoder.encoder import Encoder
from ..encoder.tokens import Tokens
from ..sparse.plan import pattern_density
from .sampling import Order

TIMED = ("samples_per_second", "tokens_per_second", "mfu", "data_wait")  # what no two runs log alike
BACKWARD = 3  # a training step's operations over those of its forward pass (Chowdhery et al. 2022, appendix B)
SIDE = {"cpu": 1024, "cuda": 8192}  # of the matrices whose product shows how fast a device is


class Throughput:
    """Tokens and floating-point operations per unit of data, found once; rates from then on.

    A unit of data is a sample, or where samples have lengths, a unit of length.
    """

    def __init__(self, order: Order, processes: int):
        self.order, self.processes = order, processes
        self.tokens = self.operations = self.peak = 0.0

    @property
    def measured(self) -> bool:
        return self.peak > 0

    @torch.no_grad()
    def measure(self, model: nn.Module, loss_of: Callable[[], Tensor], samples: list[int], dtype: torch.dtype) -> None:
        """loss_of: computes the loss of `samples`. dtype: what matrices are multiplied in."""
        training, compiled = model.training, model._compiled_call_impl
        model._compiled_call_impl = None  # hooks and records are for plain modules
        model.eval()
        counts = {"tokens": 0, "operations": 0}

        def linear(layer: nn.Linear, inputs: tuple, output: Tensor) -> None:
            counts["operations"] += 2 * output.numel() * layer.in_features

        def convolution(layer: nn.Module, inputs: tuple, output: Tensor) -> None:
            counts["operations"] += 2 * output.numel() * layer.weight[0].numel()

        def encoder(layer: Encoder, inputs: tuple[Tokens], output: Tokens) -> None:
            tokens = inputs[0]
            counts["tokens"] += tokens.x[..., 0].numel() if tokens.mask is None else int(tokens.mask.sum())

        kinds = {nn.Linear: linear, nn.Conv1d: convolution, nn.Conv2d: convolution, Encoder: encoder}
        with ExitStack() as hooks:
            for module in model.modules():
                for kind, hook in kinds.items():
                    if isinstance(module, kind):
                        hooks.enter_context(module.register_forward_hook(hook))
            calls = hooks.enter_context(record_attention())
            loss_of()
        model._compiled_call_impl = compiled
        model.train(training)
        units = self._units_of(samples)
        device = next(model.parameters()).device
        self.tokens = counts["tokens"] / units
        self.operations = BACKWARD * (counts["operations"] + sum(map(_attention_operations, calls))) / units
        self.peak = fastest_product(device, dtype)

    def rates(self, first_step: int, last_step: int, seconds: float) -> dict[str, float]:
        """Of the steps from the first on, up to the last.

        mfu: model FLOPs utilisation, the share of what the device does when it multiplies large matrices.
        """
        steps = range(first_step, last_step)
        units = sum(self._units_of([index for _, index in self.order.step(step)]) for step in steps)
        found = {"samples_per_second": len(steps) * self.order.batch_size / seconds}
        if self.tokens:
            found["tokens_per_second"] = units * self.tokens / seconds
        if self.operations:
            found["mfu"] = units * self.operations / seconds / (self.peak * self.processes)
        return found

    def _units_of(self, samples: list[int]) -> int:
        return len(samples) if self.order.lengths is None else int(self.order.lengths[samples].sum())


def _attention_operations(call: AttentionCall) -> float:
    """Of the forward pass of one call: those of the pairs that its pattern keeps."""
    b, h, n, c = call.q.shape
    m = call.k.shape[2]
    pattern, prefix, grid = call.relation.pattern, call.relation.prefix, call.relation.grid
    density = 1.0 if pattern is None else pattern_density(str(pattern), max(n, m), prefix, grid)
    return 4 * b * h * n * m * c * min(density, 1.0)


@cache
def fastest_product(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second in the product of two large matrices: what can be had of the device."""
    side = SIDE.get(device.type, 4096)
    a, b = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(2))

    def once() -> float:
        started = time.perf_counter()
        (a @ b)[0, 0].item()  # waits for the device
        return time.perf_counter() - started

    return 2 * side**3 / min(once() for _ in range(4))
