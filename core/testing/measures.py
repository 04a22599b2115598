"""What checks measure with: differences, gradients, seeds, rounding, graphs."""

import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from ..private_torch import TorchDispatchMode, tree_leaves, tree_map_only

Figures = dict[str, float]
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Failed(AssertionError):
    """A check failed: one sentence that says what is wrong, and the figures measured."""

    def __init__(self, message: str, **figures: float):
        super().__init__(message)
        self.figures: Figures = figures


def require(condition: Any, message: str, **figures: float) -> None:
    if not condition:
        raise Failed(message, **figures)


def difference(found: Shaped[Tensor, "..."], expected: Shaped[Tensor, "..."]) -> float:
    """The largest absolute difference, over the largest number expected (or over 1 if that is less); inf for NaN."""
    if found.numel() == 0:
        return 0.0
    found, expected = found.detach(), expected.detach()
    differences = (found.double() - expected.double()).abs().nan_to_num(torch.inf, torch.inf)
    return float(differences.max() / expected.double().abs().nan_to_num(0, 0, 0).max().clamp(min=1))


def close(found: Tensor, expected: Tensor, tolerance: float, what: str) -> Figures:
    """Fail if two tensors differ by more than `tolerance`; 0 requires the same bits."""
    require(found.shape == expected.shape, f"{what}: the shape is {_shape(found)}, not {_shape(expected)}")
    error = difference(found, expected)
    require(error <= tolerance, f"{what}: off by {error:.1e}, more than {tolerance:.0e}", error=error)
    return {"error": error}


def all_close(found: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float, what: str) -> Figures:
    """As `close`, for each pair of tensors."""
    pairs = zip(found, expected, strict=True)
    return {"error": max([close(a, b, tolerance, what)["error"] for a, b in pairs], default=0.0)}


def left_as_they_were(inputs: Sequence[Tensor], before: Sequence[Tensor]) -> None:
    """Fail unless inputs are the same as before, bit for bit; they may hold NaN, for what is missing."""
    for found, expected in zip(inputs, before, strict=True):
        same = torch.equal(found.nan_to_num(), expected.nan_to_num()) and torch.equal(found.isnan(), expected.isnan())
        if not same:
            close(found, expected, 0.0, "inputs, after the call")


def finite(tensors: Sequence[Tensor], what: str) -> None:
    require(all(bool(tensor.isfinite().all()) for tensor in tensors), f"{what}: NaN or inf")


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "none"


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's random numbers inside the `with`; those drawn after it are as if nothing had been drawn inside."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []):
        seed_torch(seed)
        yield


def seed_torch(seed: int) -> None:
    """As torch.manual_seed, which notes down its callers in a process without an accelerator: that takes longer than a
    small check."""
    (torch.manual_seed if torch.accelerator.is_available() else torch.default_generator.manual_seed)(seed)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings and the log, in which torch's compiler repeats an error that the report has."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def named(error: BaseException) -> str:
    """The type of an error and the first line of what it says."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:160]}"


@contextmanager
def restored() -> Iterator[None]:
    """Settings of torch that foreign code may change are as they were before."""
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    try:
        with torch.enable_grad():
            yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_num_threads(threads)


@contextmanager
def unchanged() -> Iterator[None]:
    """Fail if what runs inside leaves another setting of torch behind; it is restored."""
    dtype = torch.get_default_dtype()
    with restored():
        yield
        require(torch.is_grad_enabled(), "it switches gradients off for everybody: use torch.no_grad() in a with")
        require(torch.get_default_dtype() == dtype, "it changes torch's default dtype for everybody")


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Shaped[Tensor, "..."]:
    """Normal random numbers, the same on every device."""
    made = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64, device="cpu")
    return made.to(torch.get_default_device(), dtype)


def shuffled(count: int, seed: int) -> Shaped[Tensor, "count"]:
    """The numbers from 0 to count - 1, in random order."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed), device="cpu")


def weighted(out: Shaped[Tensor, "..."]) -> Shaped[Tensor, ""]:
    """A sum with a different weight for each number: a loss whose gradient depends on every one of them."""
    return (out * normal(*out.shape, seed=99, dtype=out.dtype)).sum()


def gradients(out: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The gradients of `weighted(out)`; 0 for inputs that it does not depend on."""
    if not inputs:
        return []
    require(out.requires_grad, "the output has no gradient: is it detached, or computed under torch.no_grad?")
    grads = torch.autograd.grad(weighted(out), inputs, allow_unused=True)
    return [torch.zeros_like(i) if grad is None else grad for grad, i in zip(grads, inputs, strict=True)]


def trainable(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


class Rounded(TorchDispatchMode):
    """Every operation is done in full precision and its result rounded: an ideal half-precision implementation."""

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        self.dtype = dtype

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func.is_view:
            return out
        given = {id(leaf) for leaf in tree_leaves((args, kwargs))}
        return tree_map_only(Tensor, lambda tensor: self._rounded(tensor, id(tensor) in given), out)

    def _rounded(self, tensor: Tensor, in_place: bool) -> Tensor:
        """in_place: an in-place operator returns its argument."""
        if not tensor.is_floating_point():
            return tensor
        values = tensor.to(self.dtype).to(tensor.dtype)
        if values.isinf().any():  # a mask of the lowest number would be the lowest of the dtype, and not -inf
            largest = torch.finfo(self.dtype).max
            values = values.where(tensor.isinf(), values.clamp(-largest, largest))
        return tensor.copy_(values) if in_place else values


def half_error_is_bounded(outs: Sequence[Sequence[Tensor]], name: str) -> Figures:
    """Fail if the error is more than twice that of a reference of the same dtype.

    outs: results in half precision, exact ones, and those of the reference; of several draws each.
    """
    half, exact, ideal = (torch.stack(list(draws)) for draws in outs)
    error, bound = difference(half, exact), 2 * difference(ideal, exact)
    require(math.isfinite(bound), f"{name}: the same-dtype reference is not finite, and nothing can be compared")
    remedy = "sum and exponentiate in fp32, or do not claim 'half'"
    message = f"{name}: off by {error:.1e}, the same-dtype reference by {bound / 2:.1e}; {remedy}"
    require(error <= bound, message, error=error, reference=bound / 2)
    return {f"{name} error / reference's": error / max(bound / 2, 1e-30)}


def spread_out(tensor: Tensor) -> list[Tensor]:
    """The same numbers at other strides: every second one in memory; and the first two axes swapped."""
    strided = torch.stack([tensor, tensor], dim=-1)[..., 0]
    return [strided, tensor.transpose(0, 1).contiguous().transpose(0, 1)] if tensor.ndim > 1 else [strided]


def run_compiled(function: Callable[..., Tensor], backend: str, inputs: Sequence[Any]) -> Tensor:
    torch.compiler.reset()
    return torch.compile(function, backend=backend)(*inputs)


def exported(function: Callable[..., Tensor], inputs: Sequence[Any], *modules: nn.Module) -> nn.Module:
    """A function as torch.export's program; modules: those whose weights it uses."""
    return torch.export.export(_Function(function, modules), tuple(inputs), strict=False).module()


class _Function(nn.Module):
    """A function as a module, which torch.export asks for."""

    def __init__(self, function: Callable[..., Tensor], modules: Sequence[nn.Module]):
        super().__init__()
        self.function, self.used = function, nn.ModuleList(modules)

    def forward(self, *inputs: Any) -> Tensor:
        return self.function(*inputs)


def everything() -> Any:
    """A pattern of core.sparse that keeps all pairs; only what takes patterns needs that package."""
    from ..sparse import Local

    return Local(1 << 20)
