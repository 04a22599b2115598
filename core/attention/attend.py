"""Attention: one function, one module, one mask contract on every backend.

The contract, checked by tests/core/attention/test_attention.py:

1. `mask` is boolean, True = may be attended: "b m" masks keys, "b h n m" (each axis may be 1) masks pairs.
2. A query with no allowed key returns exactly 0, with zero gradients.
3. What is masked never leaks, not even NaN or inf in masked keys and values.
4. Padding never changes the result.
5. Half precision errs at most twice as much as dense attention of the same dtype.
6. No silent fallback: `record_attention` tells which backend ran, `explain` which one would run and why, and
   `attention_backend` forces one.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from ..sparse import Pattern
from ..sparse.plan import pattern_mask
from .arguments import autocast_dtype, check_arguments
from .backends import SPARSE, _choose
from .dense import attend_dense
from .flex import attend_flex
from .recording import AttentionCall, _record
from .reference import attend_reference
from .sparse import attend_sparse


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
