"""What checks measure with: differences, gradients, seeds, rounding."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

Figures = dict[str, float]
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Failed(AssertionError):
    """What is wrong, in one sentence, and its figures."""

    def __init__(self, message: str, **figures: float):
        super().__init__(message)
        self.figures: Figures = figures


def require(true: Any, message: str, **figures: float) -> None:
    if not true:
        raise Failed(message, **figures)


def difference(found: Shaped[Tensor, "..."], expected: Shaped[Tensor, "..."]) -> float:
    """The largest, as a share of the largest number expected (or of 1, if that is less); inf where one is NaN."""
    if found.numel() == 0:
        return 0.0
    found, expected = found.detach(), expected.detach()
    apart = (found.double() - expected.double()).abs().nan_to_num(torch.inf, torch.inf)
    return float(apart.max() / expected.double().abs().nan_to_num(0, 0, 0).max().clamp(min=1))


def close(found: Tensor, expected: Tensor, tolerance: float, what: str) -> Figures:
    """Fails where two tensors differ by more than `tolerance`; 0 asks for the very same bits."""
    require(found.shape == expected.shape, f"{what}: the shape is {_shape(found)}, not {_shape(expected)}")
    error = difference(found, expected)
    require(error <= tolerance, f"{what}: off by {error:.1e}, more than {tolerance:.0e}", error=error)
    return {"error": error}


def all_close(found: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float, what: str) -> Figures:
    pairs = zip(found, expected, strict=True)
    return {"error": max([close(a, b, tolerance, what)["error"] for a, b in pairs], default=0.0)}


def finite(tensors: Sequence[Tensor], what: str) -> None:
    require(all(bool(tensor.isfinite().all()) for tensor in tensors), f"{what}: NaN or inf")


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "none"


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random numbers of this seed inside the `with`, as if none had been drawn outside."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Shaped[Tensor, "..."]:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def weighted(out: Shaped[Tensor, "..."]) -> Shaped[Tensor, ""]:
    """A sum in which every number counts differently: a loss whose gradient says something about each of them."""
    return (out * normal(*out.shape, seed=99, dtype=out.dtype)).sum()


def gradients(out: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Of `weighted(out)`; 0 for what it does not depend on."""
    found = torch.autograd.grad(weighted(out), inputs, allow_unused=True)
    return [torch.zeros_like(i) if grad is None else grad for grad, i in zip(found, inputs, strict=True)]


class Rounded(TorchDispatchMode):
    """Every operation done in full and its result rounded: what an ideal half-precision implementation computes."""

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        self.dtype = dtype

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.is_view:
            return out
        if func._schema.is_mutable:  # what it returns is what it was given, changed
            return tree_map_only(Tensor, lambda tensor: tensor.copy_(self._round(tensor)), out)
        return tree_map_only(Tensor, self._round, out)

    def _round(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.dtype).to(tensor.dtype) if tensor.is_floating_point() else tensor


def half_error_is_bounded(half: Tensor, exact: Tensor, ideal: Tensor, name: str) -> Figures:
    """At most twice as far from the exact result as a reference of the same dtype is."""
    error, bound = difference(half, exact), 2 * difference(ideal, exact)
    require(math.isfinite(bound), f"{name}: the same-dtype reference is not finite, so nothing can be told")
    remedy = "sum and exponentiate in fp32, or do not claim 'half'"
    said = f"{name}: off by {error:.1e}, the same-dtype reference by {bound / 2:.1e}; {remedy}"
    require(error <= bound, said, error=error)
    return {f"{name} error / reference's": error / max(bound / 2, 1e-30)}


def spread_out(tensor: Tensor) -> list[Tensor]:
    """The same numbers at other strides: every second one in memory, and the first two axes swapped."""
    strided = torch.stack([tensor, tensor], dim=-1)[..., 0]
    return [strided, tensor.transpose(0, 1).contiguous().transpose(0, 1)] if tensor.ndim > 1 else [strided]


def run_compiled(function: Callable[..., Tensor], backend: str, inputs: Sequence[Any]) -> Tensor:
    torch._dynamo.reset()
    return torch.compile(function, backend=backend)(*inputs)
