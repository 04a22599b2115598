"""Attention in a row of several sequences: none attends to another.

On a CPU one operator computes all sequences of the row, each by its own plan. Anything else attends to the sequences
in groups: all of them at once, padded, if there is no pattern; else those of the same length and grid together.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..private_torch import in_forward_mode, is_legacy_batch
from ..sparse import Pattern, native
from ..sparse.blockwise import BlockwisePass
from ..sparse.call import KernelCall, empty_by_tokens
from ..sparse.plan import PackedPlan, make_plan, whole_plan
from .call import RESULTS, Call, check_results
from .packing import Packing, Place, check_places
from .relation import Relation

VARLEN_DTYPES = (torch.bfloat16, torch.float16)


# --- Every sequence by its own plan -----------------------------------------------------------------------------------


def attend_packed(call: Call) -> Float[Tensor, "1 h n e"]:
    """Attention in a row by the native kernel."""
    relation = call.relation
    assert relation.packing is not None
    key_places = None if relation.key_packing is None else relation.key_packing.places
    pattern = "" if relation.pattern is None else str(relation.pattern)
    numbers = [call.factor, call.dropout]
    return _forward(call.q, call.k, call.v, relation.packing.places, key_places, pattern, numbers)[0]


@lru_cache(maxsize=64)
def _plan(pattern: str, places: bytes, key_places: bytes | None) -> PackedPlan:
    numbers = np.frombuffer(places, np.int64).reshape(-1, 4)
    if pattern:
        kinds, which = np.unique(numbers, axis=0, return_inverse=True)
        parsed = Pattern.parse(pattern)
        plans = [
            make_plan(parsed, length, prefix, (rows, columns) if rows else None)
            for length, prefix, rows, columns in kinds.tolist()
        ]
    else:  # only the lengths matter
        keys = numbers if key_places is None else np.frombuffer(key_places, np.int64).reshape(-1, 4)
        kinds, which = np.unique(np.stack([numbers[:, 0], keys[:, 0]], axis=1), axis=0, return_inverse=True)
        plans = [whole_plan(*lengths) for lengths in kinds.tolist()]
    which = torch.from_numpy(which.ravel().astype(np.int64))
    sizes = [[getattr(plan, name) for plan in plans] for name in ("length", "key_length")]
    return PackedPlan(tuple(plans), which, *(int(np.array(size, dtype=np.int64)[which].sum()) for size in sizes))


def packed_plan(pattern: str, places: Tensor, key_places: Tensor | None) -> PackedPlan:
    """As the operators take them."""
    return _plan(pattern, places.numpy().tobytes(), None if key_places is None else key_places.numpy().tobytes())


# The arguments of the operators.
# places: of the queries' sequences. key_places: of the keys' sequences if those are others. pattern: its text, empty
# for none. numbers: the factor of the logits, and the probability of dropout. The backward pass takes them behind the
# gradient of the output and the forward pass's results.
ARGUMENTS = "Tensor q, Tensor k, Tensor v, Tensor places, Tensor? key_places, str pattern, float[] numbers"


@torch.library.custom_op(
    "trivium::packed_attention",
    mutates_args=(),
    schema=f"({ARGUMENTS}) -> (Tensor, Tensor, Tensor)",
    tags=(torch.Tag.nondeterministic_seeded,),
)
def _forward(q, k, v, places, key_places, pattern, numbers) -> tuple[Tensor, Tensor, Tensor]:
    """Output, the log-sum-exp of each query's logits ("1 h n"), and the seed that dropout was drawn from."""
    call = _call(q, k, v, places, key_places, pattern, numbers)
    seed = torch.randint(2**31, ()) if call.dropout else torch.zeros((), dtype=torch.int64)
    with torch.autocast("cpu", enabled=False):
        work = _kernel_call(call, places, key_places, seed)
        out, lse, finite = native.forward(work)
        if not finite and pattern:  # a forbidden NaN may have come in through a weight of 0
            for tokens, part in _parts(work):
                if not torch.isfinite(out[:, :, tokens].sum()):
                    out[:, :, tokens], lse[:, :, tokens] = BlockwisePass(part, clean=True).forward()
        return out, lse, seed


@_forward.register_fake
def _(q, k, v, places, key_places, pattern, numbers):
    _shapes_of(q, k, v, places, key_places, numbers)
    lse = q.new_empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))
    out = empty_by_tokens(q, *q.shape[:3], v.shape[-1])
    return out, lse, torch.empty((), dtype=torch.int64, device="cpu")


def _setup(ctx, inputs, output):
    *tensors, pattern, numbers = inputs
    ctx.settings = pattern, numbers
    ctx.save_for_backward(*output, *tensors)


def _differentiate(ctx, grad, _lse, _seed):
    if is_legacy_batch(grad):
        raise RuntimeError("Packed attention takes no batches of gradients (is_grads_batched): use torch.func.vmap.")
    return *_backward(grad, *ctx.saved_tensors, *ctx.settings), None, None, None, None


@torch.library.custom_op(
    "trivium::packed_attention_backward",
    mutates_args=(),
    schema=f"({RESULTS}, {ARGUMENTS}) -> (Tensor, Tensor, Tensor)",
)
def _backward(grad, out, lse, seed, q, k, v, places, key_places, pattern, numbers) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v."""
    call = _call(q, k, v, places, key_places, pattern, numbers)
    check_results(call, seed, grad=grad, out=out, lse=lse)
    with torch.autocast("cpu", enabled=False):
        work = _kernel_call(call, places, key_places, seed)
        dq, dk, dv, _, finite = native.backward(work, grad, out, lse)
        if not finite and pattern:
            for tokens, part in _parts(work):
                own = [t[:, :, tokens] for t in (grad, out, lse)]
                if not all(torch.isfinite(t.sum()) for t in own[:2]):
                    for whole, t in zip((dq, dk, dv), BlockwisePass(part, clean=True).backward(*own), strict=True):
                        whole[:, :, tokens] = t
        return dq, dk, dv


@_backward.register_fake
def _(grad, out, lse, seed, q, k, v, places, key_places, pattern, numbers):
    check_results(_shapes_of(q, k, v, places, key_places, numbers), seed, grad=grad, out=out, lse=lse)
    return tuple(empty_by_tokens(t, *t.shape) for t in (q, k, v))


def _no_second_derivative(ctx, *grads):
    raise RuntimeError("Packed attention has no second derivative: use attention_backend('reference') for it.")


_forward.register_autograd(_differentiate, setup_context=_setup)
_backward.register_autograd(_no_second_derivative)


def _shapes_of(q, k, v, places, key_places, numbers) -> Call:
    """A call to take shapes from, without the numbers in `places`, which a graph does not have. It is checked: torch
    takes shapes alone, too, if any tensor is on the meta device."""
    for each in (places, key_places):
        if each is not None:
            check_places(each)
    scale, dropout = numbers
    return Call(q, k, v, Relation(), dropout, scale)


def _call(q, k, v, places, key_places, pattern, numbers) -> Call:
    """The operator's arguments as a call, checked: the operators can be called without `attend`."""
    if in_forward_mode():
        raise RuntimeError("Packed attention has no forward-mode derivative: use attention_backend('dense') for it.")
    packing, key_packing = (None if each is None else Packing(each) for each in (places, key_places))
    relation = Relation(pattern=Pattern.parse(pattern) if pattern else None, packing=packing, key_packing=key_packing)
    scale, dropout = numbers
    call = Call(q, k, v, relation, dropout, scale)
    if pattern and key_packing is not None:
        raise ValueError("Packed attention: a pattern relates sequences to themselves, not to others.")
    return call


def _kernel_call(call: Call, places: Tensor, key_places: Tensor | None, seed: Tensor) -> KernelCall:
    plan = packed_plan("" if call.relation.pattern is None else str(call.relation.pattern), places, key_places)
    return KernelCall(call.q, call.k, call.v, plan, call.factor, dropout=call.dropout, seed=int(seed))


def _parts(work: KernelCall) -> Iterator[tuple[slice, KernelCall]]:
    """Each sequence by itself; they attend to themselves."""
    assert isinstance(work.plan, PackedPlan)
    start = 0
    for number in work.plan.which.tolist():
        plan = work.plan.plans[number]
        tokens = slice(start, start + plan.length)
        if plan.length:
            q, k, v = (t[:, :, tokens] for t in (work.q, work.k, work.v))
            yield tokens, work._replace(q=q, k=k, v=v, plan=plan)
        start += plan.length


# --- Sequences in groups ----------------------------------------------------------------------------------------------


def attend_in_groups(call: Call, attend: Callable[[Call], Tensor]) -> Float[Tensor, "1 h n e"]:
    """Attention in a row by any backend: `attend` computes a batch of sequences.

    Without a pattern they are one batch, padded; else those of the same length, prefix and grid are one. A bias makes
    each sequence a batch.
    """
    relation, device = call.relation, call.q.device
    assert relation.packing is not None and relation.keys is not None
    nothing = sum(t[:, :, :0].sum() for t in (call.q, call.k, call.v))  # 0; a row of no sequences has gradients, too
    result = call.v.new_zeros(*call.q.shape[:3], call.v.shape[3]) + nothing
    for numbers, part in _groups(relation):
        queries, keys = (_group(packing, numbers, device) for packing in (relation.packing, relation.keys))
        if queries.longest and keys.longest:
            tensors = queries.gather(call.q), keys.gather(call.k), keys.gather(call.v)
            own = Call(*tensors, replace(part, mask=keys.real), call.dropout, call.scale)
            result = queries.scatter(result, attend(own))
    return result


Numbers = tuple[int, ...]
"""Of sequences; empty for all of a row."""


def _groups(relation: Relation) -> Iterator[tuple[Numbers, Relation]]:
    """Sequences that are computed together, and the relation of one of them."""
    assert relation.packing is not None and relation.keys is not None
    if relation.bias is not None:
        yield from (((number,), part) for number, (_, _, part) in enumerate(relation.parts()))
    elif relation.pattern is None:
        yield (), Relation()
    else:
        groups: dict[tuple[Place, Place], list[int]] = {}
        for number, places in enumerate(zip(relation.packing, relation.keys, strict=True)):
            groups.setdefault(places, []).append(number)
        for places, numbers in groups.items():
            prefix, grid = relation.place(*places)
            yield tuple(numbers), Relation(pattern=relation.pattern, prefix=prefix, grid=grid)


class _Group(NamedTuple):
    """Some sequences of a row as a batch, padded to the longest.

    index: for each place in the batch its token in the row. real: which places are not padding; None if all. places,
    tokens: those that are not padding, in the batch and in the row.
    """

    longest: int
    index: Int[Tensor, "s n"]
    real: Bool[Tensor, "s n"] | None
    places: Int[Tensor, "tokens"]
    tokens: Int[Tensor, "tokens"]

    def gather(self, t: Float[Tensor, "1 h n c"]) -> Float[Tensor, "s h m c"]:
        batch = t[0].index_select(1, self.index.flatten()).unflatten(1, self.index.shape).transpose(0, 1)
        # Padding is 0, in the backward pass too: a NaN of the token that it is gathered from must not come in.
        return batch if self.real is None else batch.where(self.real[:, None, :, None], 0)

    def scatter(self, row: Float[Tensor, "1 h n c"], t: Float[Tensor, "s h m c"]) -> Float[Tensor, "1 h n c"]:
        found = t.transpose(0, 1).flatten(1, 2).index_select(1, self.places)
        return row.index_copy(2, self.tokens, found[None].to(row.dtype))


@lru_cache(maxsize=64)  # for all layers, which have the same packing
@torch.inference_mode(False)  # what is kept may be part of a graph later
def _group(packing: Packing, numbers: Numbers, device: torch.device) -> _Group:
    own = list(numbers) if numbers else slice(None)
    lengths, starts = packing.lengths[own], packing.starts[own]
    longest = int(lengths.max()) if len(lengths) else 0
    real = torch.arange(longest) < lengths[:, None]
    index = (starts[:, None] + torch.arange(longest)).where(real, 0)
    tensors = index, None if real.all() else real, real.flatten().nonzero()[:, 0], index[real]
    return _Group(longest, *(t if t is None else t.to(device, non_blocking=True) for t in tensors))  # pyright: ignore


# --- Flash attention on CUDA ------------------------------------------------------------------------------------------


def attend_varlen(call: Call) -> Float[Tensor, "1 h n e"]:
    """Attention in a row by torch's flash attention for sequences of various lengths."""
    from torch.nn.attention.varlen import varlen_attn

    assert call.relation.packing is not None and call.relation.keys is not None
    queries, keys = (_bounds(packing, call.q.device) for packing in (call.relation.packing, call.relation.keys))
    q, k, v = (t[0].transpose(0, 1) for t in (call.q, call.k, call.v))
    out = varlen_attn(q, k, v, queries[0], keys[0], queries[1], keys[1], scale=call.factor)
    assert isinstance(out, Tensor)
    return out.transpose(0, 1)[None]


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def _bounds(packing: Packing, device: torch.device) -> tuple[Int[Tensor, "bounds"], int]:
    """Where each sequence begins and the last one ends, and the length of the longest."""
    bounds = torch.cat([packing.starts, packing.lengths.sum()[None]]).to(torch.int32)
    return bounds.to(device, non_blocking=True), int(packing.lengths.max())
