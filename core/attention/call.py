"""A call of attention: the one value that travels from `attend` to the backend, checked when it is made."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from typing_extensions import Unpack

from ..errors import UserError
from ..sparse import Pattern
from ..sparse.plan import check_place
from .packing import Packing
from .relation import Relation

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# What a kernel's backward pass takes first: the gradient of the output, and the results of the forward pass.
RESULTS = "Tensor grad, Tensor out, Tensor lse, Tensor seed"
LARGEST = torch.finfo(torch.float64).max
NUMBERS = (int, float, np.integer, np.floating, torch.SymInt, torch.SymFloat)


class RelationOptions(TypedDict, total=False):
    """The fields of a `Relation`."""

    mask: Tensor | None
    bias: Tensor | Sequence[Tensor] | None
    pattern: Pattern | None
    prefix: int
    grid: tuple[int, int] | None
    packing: Packing | None
    key_packing: Packing | None


class Options(RelationOptions, total=False):
    """The options of `attend` and `explain`; `attend` describes them."""

    dropout: float
    scale: float | None


@dataclass(frozen=True, eq=False)
class Call:
    """A call of `attend`.

    Making one raises a ValueError that names the argument which is wrong in itself, or does not fit the others. Under
    autocast q, k and v may differ in dtype.
    """

    q: Float[Tensor, "b h n c"]
    k: Float[Tensor, "b h m c"]
    v: Float[Tensor, "b h m e"]
    relation: Relation
    dropout: float = 0.0
    scale: float | None = None

    def __post_init__(self):
        _check_tensors(self.q, self.k, self.v)
        _check_relation(self.relation, self.q, self.k)
        if not (isinstance(self.dropout, NUMBERS) and 0 <= self.dropout <= 1):
            raise ValueError(f"Attention: dropout must be a probability, from 0 to 1, not {self.dropout!r}.")
        if self.scale is not None and not (isinstance(self.scale, NUMBERS) and abs(self.scale) <= LARGEST):
            raise ValueError(f"Attention: scale must be a finite number, not {self.scale!r}.")

    @property
    def allowed(self) -> Bool[Tensor, "#b #h #n #m"] | None:
        """The pairs that mask and pattern allow together; None for all."""
        return self.relation.allowed(self.q, self.k)

    @property
    def factor(self) -> float:
        """The factor of the logits."""
        return self.q.shape[-1] ** -0.5 if self.scale is None else self.scale

    def converted(self, dtype: torch.dtype) -> "Call":
        """The call with q, k and v in another dtype, except those in double precision."""
        q, k, v = (t if t.dtype == torch.float64 else t.to(dtype) for t in (self.q, self.k, self.v))
        return replace(self, q=q, k=k, v=v)


def make_call(
    q: Any, k: Any, v: Any, *, dropout: Any = 0.0, scale: Any = None, **relation: Unpack[RelationOptions]
) -> Call:
    """The call of `attend` with these arguments, which may be of any type."""
    if unknown := relation.keys() - RelationOptions.__annotations__.keys():
        known = ", ".join((*RelationOptions.__annotations__, "dropout", "scale"))
        raise ValueError(f"Attention: there is no argument {min(unknown)}; they are {known}.")
    return Call(q, k, v, Relation(**relation), dropout, scale)


def autocast_dtype(t: Tensor) -> torch.dtype | None:
    """The dtype that autocast converts a tensor to, on its device; None where autocast is off."""
    device = t.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def check_results(call: Call, seed: Tensor, **results: Tensor) -> None:
    """Raise a ValueError if what a backward pass is given is not of the call's forward pass."""
    if seed.shape != () or seed.dtype != torch.int64 or seed.device.type != "cpu":
        given = f"{tuple(seed.shape)} {seed.dtype} on {seed.device}"
        raise ValueError(f"Attention: seed must be one 64-bit integer on the CPU, not {given}.")
    q = call.q
    like_v, wide = (*q.shape[:3], call.v.shape[3]), torch.promote_types(q.dtype, torch.float32)
    wanted = {"grad": (like_v, q.dtype), "out": (like_v, q.dtype), "lse": (q.shape[:3], wide)}
    for name, t in results.items():
        shape, dtype = wanted[name]
        if t.shape != shape or t.dtype != dtype or t.device != q.device:
            given = f"{tuple(t.shape)} {t.dtype} on {t.device}"
            raise ValueError(f"Attention: {name} must be {tuple(shape)} {dtype} on {q.device}, not {given}.")


def _check_tensors(q: Any, k: Any, v: Any) -> None:
    for name, t in (("q", q), ("k", k), ("v", v)):
        _check_tensor(name, t, DTYPES, q)
        if t.ndim != 4:
            raise ValueError(f"Attention: {name} must have 4 axes, batch, heads, tokens and features, not {t.ndim}.")
        if t.dtype != q.dtype and autocast_dtype(q) is None:
            raise ValueError(f"Attention: {name} is {t.dtype}, but q is {q.dtype}: convert one to the other.")
    (b, h, _, c), (k_b, k_h, m, k_c), (v_b, v_h, v_m, _) = q.shape, k.shape, v.shape
    if (k_b, k_h, k_c) != (b, h, c):
        given = f"k of shape {tuple(k.shape)} does not fit q of shape {tuple(q.shape)}"
        raise ValueError(f"Attention: {given}: batch, heads and features must be equal.")
    if (v_b, v_h, v_m) != (k_b, k_h, m):
        given = f"v of shape {tuple(v.shape)} does not fit k of shape {tuple(k.shape)}"
        raise ValueError(f"Attention: {given}: batch, heads and tokens must be equal.")
    if c == 0:
        raise ValueError("Attention: q and k must have at least one feature.")


def _check_relation(relation: Relation, q: Tensor, k: Tensor) -> None:
    mask, bias, pattern = relation.mask, relation.bias, relation.pattern
    if relation.packing is not None or relation.key_packing is not None:
        _check_packing(relation, q, k)
        return
    if mask is not None:
        _check_mask(mask, q, k)
    if bias is not None:
        _check_bias(bias, q, (*q.shape[:3], k.shape[2]))
    if pattern is None:
        check_place(relation.prefix, relation.grid)
        return
    _check_pattern(pattern)
    n, m = q.shape[2], k.shape[2]
    if n != m and relation.grid is not None:
        raise UserError(f"A grid relates a sequence to itself, but {n} queries meet {m} keys.")
    check_place(relation.prefix, relation.grid, max(n, m))


def _check_packing(relation: Relation, q: Tensor, k: Tensor) -> None:
    for name, packing, t in (("packing", relation.packing, q), ("key_packing", relation.keys, k)):
        if not isinstance(packing, Packing):
            raise ValueError(f"Attention: {name} must be a Packing, not {type(packing).__name__}.")
        if t.shape[0] != 1:
            raise ValueError(f"Attention: packed sequences lie in one row, but there are {t.shape[0]}.")
        if not torch.compiler.is_compiling() and packing.total != t.shape[2]:
            given = f"the {len(packing)} sequences of {name} have {packing.total} tokens together"
            raise ValueError(f"Attention: {given}, but the row has {t.shape[2]}.")
    assert relation.packing is not None and relation.keys is not None
    if len(relation.packing.places) != len(relation.keys.places):
        given = f"{len(relation.packing)} sequences of queries cannot attend to {len(relation.keys)} of keys"
        raise ValueError(f"Attention: {given}: there must be as many.")
    if relation.mask is not None:
        raise ValueError("Attention: packed sequences have no padding: leave out the mask (pack() takes one away).")
    if relation.prefix or relation.grid is not None:
        raise ValueError("Attention: the packing says which prefix and grid each sequence has: give no others.")
    if relation.pattern is not None:
        _check_pattern(relation.pattern)
        if relation.key_packing is not None and relation.packing.on_grid.any():
            raise UserError("A grid relates a sequence to itself, but the keys are of other sequences.")
    if (biases := relation.bias) is not None:
        if isinstance(biases, Tensor) or len(biases) != len(relation.packing):
            raise ValueError(
                f"Attention: packed sequences need a bias each, {len(relation.packing)} tensors in a sequence."
            )
        for (queries, keys, _), bias in zip(relation.parts(), biases, strict=True):
            _check_bias(bias, q, (1, q.shape[1], queries.stop - queries.start, keys.stop - keys.start))


def _check_pattern(pattern: Any) -> None:
    if not isinstance(pattern, Pattern):
        raise ValueError(f"Attention: pattern must be a Pattern, not {pattern!r}; Pattern.parse makes one of a text.")


def _check_bias(bias: Any, q: Tensor, full: tuple[int, ...]) -> None:
    _check_tensor("bias", bias, DTYPES, q)
    if bias.ndim != 4 or not _broadcasts(bias.shape, full):
        raise ValueError(f"Attention: bias of shape {tuple(bias.shape)} does not broadcast to {full}.")


def _check_mask(mask: Any, q: Tensor, k: Tensor) -> None:
    _check_tensor("mask", mask, (torch.bool,), q)
    full = (*q.shape[:3], k.shape[2])
    pairs = mask.shape if mask.ndim == 4 else (*mask.shape[:1], 1, 1, *mask.shape[1:])
    if mask.ndim not in (2, 4) or not _broadcasts(pairs, full):
        raise ValueError(f'Attention: mask of shape {tuple(mask.shape)} is neither "b m" nor broadcasts to {full}.')


def _check_tensor(name: str, t: Any, dtypes: tuple[torch.dtype, ...], q: Tensor) -> None:
    if not isinstance(t, Tensor):
        raise ValueError(f"Attention: {name} must be a tensor, not {type(t).__name__}.")
    if t.dtype not in dtypes:
        kind = "boolean (True = may be attended)" if torch.bool in dtypes else "of floating-point numbers"
        raise ValueError(f"Attention: {name} must be {kind}, not {t.dtype}.")
    if t.is_nested or t.layout != torch.strided:
        raise ValueError(f"Attention: {name} must be a plain tensor, neither nested nor sparse.")
    if t.device != q.device:
        raise ValueError(f"Attention: {name} is on {t.device}, but q is on {q.device}.")


def _broadcasts(shape: tuple[int, ...], full: tuple[int, ...]) -> bool:
    return all(have in (1, want) for have, want in zip(shape, full, strict=True))
