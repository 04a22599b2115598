"""Attention: one function, one module, one mask contract on every backend.

The contract, checked by tests/core/test_attention.py:

1. `mask` is boolean, True = may be attended: "b m" masks keys, "b h n m" (each axis may be 1) masks pairs.
2. A query with no allowed key returns exactly 0, with zero gradients.
3. What is masked never leaks, not even NaN or inf in masked keys and values.
4. Padding never changes the result.
5. Half precision errs at most twice as much as dense attention of the same dtype.
6. No silent fallback: `record_attention` tells which backend ran, `explain` which one would run and why, and
   `attention_backend` forces one.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .arguments import autocast_dtype, check_arguments
from .dense import attend_dense
from .derivatives import special_derivative
from .errors import UserError
from .positions import rotate
from .reference import attend_reference, attention_weights
from .scoped import Scoped
from .sparse import Pattern, native
from .sparse.flex import attend_flex
from .sparse.flex import why_not as why_not_flex
from .sparse.operator import attend_sparse
from .sparse.plan import pattern_density, pattern_mask

BACKENDS = ("dense", "native", "blockwise", "flex", "reference")
SPARSE = ("native", "blockwise", "flex")
FASTEST = {"cpu": ["native"], "cuda": ["flex"]}  # if they can serve
# Where a sparse backend begins to be faster than dense attention under the pattern's mask: fewest tokens, and largest
# share of pairs kept (`python -m benchmarks.backends crossover`; flex: not measured).
CROSSOVER = {"native": (1, math.inf), "blockwise": (256, 0.6), "flex": (1024, 0.6)}
Norm = Callable[[int], nn.Module]
RotaryTable = tuple[Float[Tensor, "n c"], Float[Tensor, "n c"]]


def attend(
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
) -> Float[Tensor, "b h n e"]:
    """Scaled dot-product attention under the mask contract (see the top of this file).

    q, k, v: of one dtype; under autocast they are converted to its dtype, as by torch's own attention.
    bias: added to the logits; -inf forbids a pair, as a mask does.
    pattern: who may attend to whom by position; queries and keys of different lengths both begin at the first one. The
    first `prefix` tokens are class and register tokens; the others form a grid of (rows, columns), or a sequence if
    `grid` is None.
    dropout: probability with which an attention weight is dropped. It is always applied: pass 0 in evaluation.
    scale: what the logits are multiplied with; c ** -0.5 by default.
    """
    check_arguments(q, k, v, mask, bias, pattern, prefix, grid, dropout, scale)
    if (dtype := autocast_dtype(q)) is not None:
        q, k, v = (t if t.dtype == torch.float64 else t.to(dtype) for t in (q, k, v))
        with torch.autocast(q.device.type, enabled=False):
            how = {"mask": mask, "bias": bias, "pattern": pattern, "prefix": prefix, "grid": grid}
            return attend(q, k, v, **how, dropout=dropout, scale=scale)
    if pattern is not None and q.shape[2] != k.shape[2]:
        return _attend_across(q, k, v, mask, bias, prefix, pattern=pattern, dropout=dropout, scale=scale)
    pairs = _pair_mask(mask)
    backend, why = _choose(q, k, v, mask, bias, pattern, prefix, grid, dropout)
    if (record := _record.get()) is not None:
        held = (None if t is None else t.detach() for t in (q, k, pairs, bias))
        record.append(AttentionCall(backend, why, *held, scale, pattern, prefix, grid, (q.shape[2], k.shape[2])))
    if backend in SPARSE:
        keys = None if pairs is None else pairs[:, 0, 0].expand(-1, k.shape[2])
        if backend == "flex":
            return attend_flex(q, k, v, pattern, prefix, grid, keys, scale)
        return attend_sparse(q, k, v, pattern, prefix, grid, keys, bias, dropout, scale, backend)
    if pattern is not None:
        near = pattern_mask(q, pattern, prefix, grid)[None, None]
        pairs = near if pairs is None else pairs & near
    if backend == "reference":
        return attend_reference(q, k, v, pairs, bias, scale)
    return attend_dense(q, k, v, pairs, bias, dropout, scale)


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
        learns = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
        return why_not_flex(str(pattern), max(q.shape[2], k.shape[2]), prefix, grid, q.device.type, learns)
    if q.device.type != "cpu":
        return "it is for CPUs"
    return native.why_not()


def _attend_across(q, k, v, mask, bias, prefix, **how) -> Tensor:
    """By a pattern from n queries to m keys: as in the longer of the two sequences, of which some is not there."""
    n, m = q.shape[2], k.shape[2]
    longer = max(n, m)

    def lengthen(pairs: Tensor) -> Tensor:
        rows, columns = (length != 1 and longer - length for length in pairs.shape[2:])
        return F.pad(pairs, (0, columns, 0, rows))

    real = torch.arange(longer, device=q.device)[None, None, None] < m
    pairs = _pair_mask(mask)
    pairs = real if pairs is None else real & lengthen(pairs)
    bias = None if bias is None else lengthen(bias)
    q, k, v = (F.pad(t, (0, 0, 0, longer - t.shape[2])) for t in (q, k, v))
    out = attend(q, k, v, mask=pairs, bias=bias, prefix=prefix, **how)[:, :, :n]
    if (record := _record.get()) is not None:
        record[-1] = replace(record[-1], shape=(n, m))
    return out


def _pair_mask(mask: Tensor | None) -> Tensor | None:
    """The mask as "b h n m", each axis full or 1."""
    return mask[:, None, None, :] if mask is not None and mask.ndim == 2 else mask


# --- Which backend ran, and what it attended to ---------------------------------------------------------------------

_forced: Scoped[str | None] = Scoped("the backend that is forced")
_record: Scoped[list | None] = Scoped("the calls that are recorded")


@dataclass(frozen=True)
class AttentionCall:
    """One call of `attend`: the backend that served it, why, and what its weights are found from."""

    backend: str
    why: str
    q: Float[Tensor, "b h n c"] = field(repr=False)
    k: Float[Tensor, "b h m c"] = field(repr=False)
    mask: Bool[Tensor, "#b #h #n #m"] | None = field(repr=False)
    bias: Float[Tensor, "#b #h #n #m"] | None = field(repr=False)
    scale: float | None
    pattern: Pattern | None
    prefix: int
    grid: tuple[int, int] | None
    shape: tuple[int, int]

    @property
    def allowed(self) -> Bool[Tensor, "#b #h #n #m"] | None:
        """Which pairs mask and pattern allow; None for all."""
        if self.pattern is None:
            return self.mask
        near = pattern_mask(self.q, self.pattern, self.prefix, self.grid)[None, None]
        return near if self.mask is None else self.mask & near

    @property
    def weights(self) -> Float[Tensor, "b h n m"]:
        """Its attention weights: all pairs of them, found anew each time."""
        weights = attention_weights(self.q, self.k, self.allowed, self.bias, self.scale)
        return weights[:, :, : self.shape[0], : self.shape[1]]


@contextmanager
def attention_backend(name: str) -> Iterator[None]:
    """Force every `attend` inside the `with` to one backend (as torch's `sdpa_kernel` does), in this thread or task."""
    if name not in BACKENDS:
        raise ValueError(f"Unknown attention backend {name!r}: choose one of {', '.join(BACKENDS)}.")
    with _forced.set(name):
        yield


@contextmanager
def record_attention() -> Iterator[list[AttentionCall]]:
    """Collect an `AttentionCall` for each `attend` inside the `with`, in order: attention maps of any model.

    Calls of other threads and tasks are not among them.
    """
    with _record.set([]) as calls:
        yield calls


class Recomputation:
    """For what a backward pass computes once more: inside, the backend is forced that was forced when this was made,
    and nothing is recorded."""

    def __init__(self):
        self.forced = _forced.get()
        self.entered: list[ExitStack] = []

    def __enter__(self) -> None:
        inside = ExitStack()
        inside.enter_context(_forced.set(self.forced))
        inside.enter_context(_record.set(None))
        self.entered.append(inside)

    def __exit__(self, *error) -> None:
        self.entered.pop().close()


def attention_rollout(layers: Sequence[Float[Tensor, "b h n n"]]) -> Float[Tensor, "b n n"]:
    """How much of each input token (column) is in each output token (row), over a stack of layers.

    Abnar and Zuidema 2020, section 3: heads averaged, half of each layer passed by on the residual path.
    """
    flow = torch.eye(layers[0].shape[-1], device=layers[0].device)
    for weights in layers:
        flow = 0.5 * flow + 0.5 * weights.float().mean(dim=1) @ flow
    return flow


# --- The module -----------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Multi-head attention: self-attention, or cross-attention to a context of width `context_dim`.

    head_dim: width of one head; dim / heads by default.
    qk_norm: makes the norm applied to each head's queries and keys (Dehghani et al. 2023, section 2), or None.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        context_dim: int | None = None,
        head_dim: int | None = None,
        bias: bool = True,
        out_bias: bool = True,
        qk_norm: Norm | None = None,
        dropout: float = 0.0,
    ):
        super().__init__()
        if head_dim is None and dim % heads:
            raise UserError(f"Attention: dim {dim} is not divisible by {heads} heads; set head_dim to choose freely.")
        head_dim = head_dim or dim // heads
        self.heads, self.dropout = heads, dropout
        inner = heads * head_dim
        if context_dim is None:
            self.qkv = nn.Linear(dim, 3 * inner, bias=bias)
        else:
            self.q = nn.Linear(dim, inner, bias=bias)
            self.kv = nn.Linear(context_dim, 2 * inner, bias=bias)
        self.q_norm = qk_norm(head_dim) if qk_norm else nn.Identity()
        self.k_norm = qk_norm(head_dim) if qk_norm else nn.Identity()
        self.out = nn.Linear(inner, dim, bias=out_bias)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        context: Float[Tensor, "b m e"] | None = None,
        mask: Bool[Tensor, "b m"] | Bool[Tensor, "#b #h #n #m"] | None = None,
        bias: Float[Tensor, "#b #h #n #m"] | None = None,
        rotary: RotaryTable | None = None,
        pattern: Pattern | None = None,
        prefix: int = 0,
        grid: tuple[int, int] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """rotary: the table made by `rotary_table`; it turns queries and keys (self-attention only).

        pattern, prefix, grid: as for `attend`.
        """
        if hasattr(self, "qkv"):
            q, k, v = rearrange(self.qkv(x), "b n (three h c) -> three b h n c", three=3, h=self.heads)
        else:
            q = rearrange(self.q(x), "b n (h c) -> b h n c", h=self.heads)
            k, v = rearrange(self.kv(context), "b m (two h c) -> two b h m c", two=2, h=self.heads)
        q, k = self.q_norm(q), self.k_norm(k)
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        dropout = self.dropout if self.training else 0.0
        out = attend(q, k, v, mask=mask, bias=bias, pattern=pattern, prefix=prefix, grid=grid, dropout=dropout)
        return self.out(rearrange(out, "b h n c -> b n (h c)"))
