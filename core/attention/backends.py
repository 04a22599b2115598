"""Which backend serves a call of `attend`: chosen by what it can do and how fast it is, or forced."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..private_torch import in_dispatch_mode
from ..scoped import Scoped
from ..sparse import Pattern, native
from ..sparse.plan import pattern_density
from .arguments import check_arguments
from .derivatives import special_derivative
from .flex import why_not as why_not_flex

BACKENDS = ("dense", "native", "blockwise", "flex", "reference")
SPARSE = ("native", "blockwise", "flex")
FASTEST = {"cpu": ["native"], "cuda": ["flex"]}  # if they can serve
# Where a sparse backend begins to be faster than dense attention under the pattern's mask: fewest tokens, and largest
# share of pairs kept (`python -m benchmarks.backends crossover`; flex: not measured).
CROSSOVER = {"native": (1, math.inf), "blockwise": (256, 0.6), "flex": (1024, 0.6)}


class Choice(NamedTuple):
    """A backend and why it serves."""

    backend: str
    why: str


def explain(
    q: Float[Tensor, "b h n c"],
    k: Float[Tensor, "b h m c"],
    v: Float[Tensor, "b h m e"],
    *,
    mask: Bool[Tensor, "b m"] | Bool[Tensor, "#b #h #n #m"] | None = None,
    bias: Float[Tensor, "#b #h #n #m"] | None = None,
    pattern: Pattern | None = None,
    prefix: int = 0,
    grid: tuple[int, int] | None = None,
    dropout: float = 0.0,
    scale: float | None = None,
) -> Choice:
    """The backend that `attend`, called alike, takes; and why. An error if one is forced that can't serve."""
    check_arguments(q, k, v, mask, bias, pattern, prefix, grid, dropout, scale)
    return _choose(q, k, v, mask, bias, pattern, prefix, grid, dropout)


def _choose(q, k, v, mask, bias, pattern, prefix, grid, dropout) -> Choice:
    call = q, k, v, mask, bias, pattern, prefix, grid, dropout
    if (forced := _forced.get()) is not None:
        if hurdle := _hurdle(forced, *call):
            raise ValueError(f"The {forced} backend cannot serve this call: {hurdle}.")
        return Choice(forced, "it is forced")
    if pattern is None:
        return Choice("dense", "there is no pattern")
    passed = ""
    for backend in (*FASTEST.get(q.device.type, ()), "blockwise", "dense"):
        hurdle = _hurdle(backend, *call)
        if not hurdle:
            break
        passed += f"; not {backend}: {hurdle}"
    if backend == "dense":
        return Choice("dense", passed[2:])
    n = max(q.shape[2], k.shape[2])
    fewest, most = CROSSOVER[backend]
    if torch.compiler.is_compiling():  # the table of blocks, or a text with n in it, would mean a graph for each length
        return Choice(backend if n >= fewest else "dense", "")
    density = pattern_density(str(pattern), n, prefix, grid)
    kept = f"the pattern keeps {min(density, 1):.1%} of all pairs of {n} tokens"
    if n < fewest or density > most:
        return Choice("dense", f"{kept}, so dense attention is faster")
    return Choice(backend, kept + passed)


def _hurdle(name: str, q, k, v, mask, bias, pattern, prefix, grid, dropout) -> str:
    """Why a backend can't serve a call; empty if it can."""
    if name == "reference":
        return "it has no dropout" if dropout else ""
    if name == "dense":
        return ""
    if pattern is None:
        return "there is no pattern"
    if 0 in (*q.shape, *k.shape, *v.shape):
        return "a tensor is empty"
    if mask is not None and mask.ndim == 4 and mask.shape[1:3] != (1, 1):
        return "the mask differs by query or head"
    if derivative := special_derivative():
        return f"it has no {derivative}"
    if name == "blockwise":
        return ""
    if bias is not None:
        return "a bias needs blockwise"
    if name == "flex":
        if dropout:
            return "it has no dropout"
        if not torch.compiler.is_compiling() and in_dispatch_mode():
            return "a TorchDispatchMode is active, in which FlexAttention is not compiled"
        learns = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
        return why_not_flex(str(pattern), max(q.shape[2], k.shape[2]), prefix, grid, q.device.type, learns)
    if q.device.type != "cpu":
        return "it is for CPUs"
    return native.why_not()


# --- Which backend ran, and what it attended to ---------------------------------------------------------------------

_forced: Scoped[str | None] = Scoped("the backend that is forced")


@contextmanager
def attention_backend(name: str) -> Iterator[None]:
    """Force every `attend` inside the `with` to one backend (as torch's `sdpa_kernel` does), in this thread or task."""
    if name not in BACKENDS:
        raise ValueError(f"Unknown attention backend {name!r}: choose one of {', '.join(BACKENDS)}.")
    with _forced.set(name):
        yield
