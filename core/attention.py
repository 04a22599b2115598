"""Attention: one function, one module, one mask contract on every backend.

The contract, checked by tests/core/test_attention.py:

1. `mask` is boolean, True = may be attended: "b m" masks keys, "b h n m" (each axis may be 1) masks pairs.
2. A query with no allowed key returns exactly 0, with zero gradients.
3. What is masked never leaks, not even NaN or inf in masked keys and values.
4. Padding never changes the result.
5. Half precision errs at most twice as much as dense attention of the same dtype.
6. No silent fallback: `record_attention` tells which backend ran, `attention_backend` forces one.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .dense import attend_dense
from .errors import UserError
from .positions import rotate
from .reference import attend_reference, attention_weights
from .sparse import Pattern
from .sparse.blockwise import attend_blockwise
from .sparse.plan import pattern_density, pattern_mask

BACKENDS = ("dense", "blockwise", "reference")
CROSSOVER = 1024  # tokens
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

    bias: added to the logits; -inf forbids a pair, as a mask does.
    pattern: who may attend to whom by position (self-attention only). The first `prefix` tokens are class and register
    tokens; the others form a grid of (rows, columns), or a sequence if `grid` is None.
    dropout: probability with which an attention weight is dropped. It is always applied: pass 0 in evaluation.
    scale: what the logits are multiplied with; c ** -0.5 by default.
    """
    pairs = _pair_mask(mask, q, k)
    backend, why = choose_backend(q, k, pairs, pattern, prefix, grid)
    if _forced is not None:
        backend = _forced
    if backend == "blockwise":
        if (pattern is None or q.shape != k.shape) or (pairs is not None and pairs.shape[1:3] != (1, 1)):
            raise ValueError(f"The blockwise backend cannot serve this call: {why}.")
        keys = None if pairs is None else pairs[:, 0, 0]
        out = attend_blockwise(q, k, v, pattern, prefix, grid, keys, bias, dropout, scale)
    if pattern is not None and (backend != "blockwise" or _record is not None):
        near = pattern_mask(q, pattern, prefix, grid)[None, None]
        pairs = near if pairs is None else pairs & near
    if backend == "reference":
        if dropout:
            raise ValueError("The reference backend has no dropout: use the dense backend or set dropout to 0.")
        out = attend_reference(q, k, v, pairs, bias, scale)
    elif backend == "dense":
        out = attend_dense(q, k, v, pairs, bias, dropout, scale)
    if _record is not None:
        _record.append(AttentionCall(backend, attention_weights(q, k, pairs, bias, scale).detach()))
    return out


def choose_backend(
    q: Float[Tensor, "b h n c"],
    k: Float[Tensor, "b h m c"],
    mask: Bool[Tensor, "#b #h #n #m"] | None = None,
    pattern: Pattern | None = None,
    prefix: int = 0,
    grid: tuple[int, int] | None = None,
) -> tuple[str, str]:
    """The backend that `attend` takes, and why."""
    if pattern is None:
        return "dense", "there is no pattern"
    n = q.shape[2]
    if n != k.shape[2]:
        raise UserError(f"A pattern relates a sequence to itself, but there are {n} queries and {k.shape[2]} keys.")
    if mask is not None and mask.shape[1:3] != (1, 1):
        return "dense", "the mask differs by query or head"
    if n < CROSSOVER:
        return "dense", f"{n} tokens are fewer than {CROSSOVER}, below which dense attention is faster"
    density = pattern_density(str(pattern), n, prefix, grid)
    if density > 0.5:
        return "dense", f"the pattern keeps {density:.0%} of all pairs"
    return "blockwise", f"the pattern keeps {density:.1%} of all pairs of {n} tokens"


def _pair_mask(mask: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
    """The mask as "b h n m", each axis full or 1."""
    if mask is None:
        return None
    if mask.dtype != torch.bool:
        raise ValueError(f"attend: mask must be boolean (True = may be attended), not {mask.dtype}.")
    full = (*q.shape[:3], k.shape[2])
    pairs = mask[:, None, None, :] if mask.ndim == 2 else mask
    if pairs.ndim != 4 or any(have not in (1, want) for have, want in zip(pairs.shape, full, strict=True)):
        raise ValueError(f'attend: mask of shape {tuple(mask.shape)} is neither "b m" nor broadcasts to {full}.')
    return pairs


# --- Which backend ran, and what it attended to ---------------------------------------------------------------------

_forced: str | None = None
_record: list | None = None


@dataclass(frozen=True)
class AttentionCall:
    """One call of `attend`: the backend that served it and its attention weights."""

    backend: str
    weights: Float[Tensor, "b h n m"]


@contextmanager
def attention_backend(name: str) -> Iterator[None]:
    """Force every `attend` inside the `with` to one backend (as torch's `sdpa_kernel` does)."""
    global _forced
    if name not in BACKENDS:
        raise ValueError(f"Unknown attention backend {name!r}: choose one of {', '.join(BACKENDS)}.")
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


@contextmanager
def record_attention() -> Iterator[list[AttentionCall]]:
    """Collect an `AttentionCall` for each `attend` inside the `with`, in order: attention maps of any model."""
    global _record
    before, _record = _record, []
    try:
        yield _record
    finally:
        _record = before


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
