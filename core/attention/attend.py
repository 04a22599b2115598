"""`attend`: scaled dot-product attention on any backend, under one mask contract.

The contract, checked by tests/core/attention/test_attention.py:

1. `mask` is boolean, True = may be attended: "b m" masks keys, "b h n m" (each axis may be 1) masks pairs.
2. A query with no allowed key returns exactly 0, with zero gradients.
3. What is masked never leaks, not even NaN or inf in masked keys and values.
4. Padding never changes the result.
5. Half precision errs at most twice as much as dense attention of the same dtype.
6. No silent fallback: `record_attention` says which backend ran, `explain` which one would run and why, and
   `attention_backend` forces one.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from typing_extensions import Unpack

from .backends import SPARSE, choose
from .call import Call, Options, autocast_dtype, make_call
from .dense import attend_dense
from .flex import attend_flex
from .packed import attend_in_groups, attend_packed, attend_varlen
from .recording import RECORD
from .reference import attend_reference
from .sparse import attend_sparse


def attend(
    q: Float[Tensor, "b h n c"],
    k: Float[Tensor, "b h m c"],
    v: Float[Tensor, "b h m e"],
    **options: Unpack[Options],
) -> Float[Tensor, "b h n e"]:
    """Scaled dot-product attention under the mask contract (see the top of this file).

    q, k, v: of one dtype; under autocast they are converted to its dtype, as by torch's own attention.
    mask: boolean, True = may be attended to; "b m" masks keys, "b h n m" (each axis may be 1) masks pairs.
    bias: "b h n m" (each axis may be 1), added to the logits; -inf forbids a pair, as a mask does.
    pattern: who may attend to whom by position. Queries and keys of different lengths both start at the first position.
    prefix, grid: the first `prefix` tokens (0 by default) are class and register tokens; the others form a grid of
        (rows, columns), or a sequence if `grid` is None.
    packing: the sequences that lie one behind the other in the only row of the batch, each with its own prefix and
        grid; none attends to another. key_packing: those of the keys, if they are others. A bias is then a sequence of
        biases "1 h n m", and there is no mask.
    dropout: probability with which an attention weight is dropped. It is always applied: pass 0 in evaluation.
    scale: the factor of the logits; c ** -0.5 by default.
    """
    return attend_call(make_call(q, k, v, **options))


def attend_call(call: Call) -> Float[Tensor, "b h n e"]:
    """`attend` for a call that has been made before."""
    dtype = autocast_dtype(call.q)
    if dtype is None:
        return _attend(call)
    with torch.autocast(call.q.device.type, enabled=False):
        return _attend(call.converted(dtype))


def _attend(call: Call) -> Tensor:
    backend, why = choose(call)
    if call.relation.packing is not None and backend not in ("native", "varlen", "flex", "reference"):
        out = attend_in_groups(call, lambda part: _compute(part, backend))
    else:
        out = _compute(call, backend)
    if (record := RECORD.get()) is not None:
        record.add(call, backend, why, out)
    return out


def _compute(call: Call, backend: str) -> Tensor:
    if call.relation.packing is not None and backend == "native":
        return attend_packed(call)
    if backend == "varlen":
        return attend_varlen(call)
    if backend in SPARSE:
        n, m = call.q.shape[2], call.k.shape[2]
        call = call if n == m or call.relation.pattern is None else _padded(call)
        out = attend_flex(call) if backend == "flex" else attend_sparse(call, backend)
        return out[:, :, :n]
    if backend == "reference":
        bias = call.relation.bias_in_row(call.q, call.k)
        return attend_reference(call.q, call.k, call.v, call.allowed, bias, call.scale)
    return attend_dense(call)


def _padded(call: Call) -> Call:
    """The call with as many queries as keys: the longer of the two sequences, of which some tokens are padding."""
    n, m = call.q.shape[2], call.k.shape[2]
    longer = max(n, m)

    def lengthen(pairs: Tensor) -> Tensor:
        rows, columns = (length != 1 and longer - length for length in pairs.shape[2:])
        return F.pad(pairs, (0, columns, 0, rows))

    real = torch.arange(longer, device=call.q.device)[None, None, None] < m
    mask, bias = call.relation.pair_mask, call.relation.pair_bias
    mask = real if mask is None else real & lengthen(mask)
    bias = None if bias is None else lengthen(bias)
    q, k, v = (F.pad(t, (0, 0, 0, longer - t.shape[2])) for t in (call.q, call.k, call.v))
    return replace(call, q=q, k=k, v=v, relation=replace(call.relation, mask=mask, bias=bias))
