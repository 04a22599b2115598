"""Random calls of attention in a packed row, right and wrong, by every way in; see fuzz.py."""

import random
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from fuzz_calls import DTYPES, GRIDS, LINES, WRONG, restride, spoilt_tensor
from fuzz_ways import compare, results, spoil_results
from torch import Tensor

from core import UserError, attend, attend_reference, attention_backend
from core.attention.packed import packed_plan
from core.attention.packing import Packing, Place
from core.sparse import Pattern, native
from core.sparse.call import KernelCall

LENGTHS = (0, 1, 1, 2, 3, 5, 17, 33, 63, 64, 65, 70, 129)


@dataclass
class Row:
    q: Any = field(repr=False)
    k: Any = field(repr=False)
    v: Any = field(repr=False)
    grad: Any = field(repr=False)
    places: list[Any]
    pattern: Any = None
    scale: Any = 0.3
    dropout: Any = 0.0
    spoilt: list[str] = field(default_factory=list)


def right_row(rng: random.Random) -> Row:
    """A call that must be served."""
    pattern, count = rng.choice((None, None, *LINES, *GRIDS)), rng.randrange(6)
    own = places(rng, count, pattern is not None and pattern.on_grid)
    rows = [own] if pattern is not None or rng.random() < 0.5 else [own, places(rng, count)]
    h, c, e = (rng.choice(sizes) for sizes in ((1, 2, 4), (1, 4, 8, 17), (1, 4, 8, 19)))
    n, m, dtype = int(rows[0][:, 0].sum()), int(rows[-1][:, 0].sum()), rng.choice(DTYPES)
    q, k, v, grad = (
        restride(rng, torch.randn(1, h, *shape, dtype=torch.float64).to(dtype))
        for shape in ((n, c), (m, c), (m, e), (n, e))
    )
    return Row(q, k, v, grad, rows, pattern, rng.choice((0.3, 0.3, -0.2, 0.0)))


def places(rng: random.Random, count: int, on_grid: bool = False) -> Tensor:
    made = []
    for _ in range(count):
        prefix = rng.choice((0, 0, 1, 3))
        if on_grid:
            grid = rng.choice((1, 3, 8, 13)), rng.choice((1, 5, 8))
            made.append(Place(prefix + grid[0] * grid[1], prefix, grid))
        else:
            length = rng.choice(LENGTHS)
            made.append(Place(length, min(prefix, length)))
    return Packing.of(made).places


def wrong_row(rng: random.Random) -> Row:
    """A call of which something was made wrong; now and then it is right all the same."""
    call = right_row(rng)
    name = rng.choice(("q", "k", "v", "places", "places", "places", "pattern", "scale", "dropout", "nothing"))
    if name in ("q", "k", "v"):
        how, value = spoilt_tensor(rng, getattr(call, name))
        setattr(call, name, value)
    elif name == "places":
        how = spoil_places(rng, call)
    elif name == "nothing":  # but what the ways make wrong themselves
        how = ""
    else:
        how = rng.choice(WRONG[name])
        setattr(call, name, how)
    call.spoilt.append(f"{name}: {how}")
    return call


def spoil_places(rng: random.Random, call: Row) -> str:
    which = rng.randrange(len(call.places))
    own = call.places[which].clone()
    kinds = ("number", "number", "number", "fewer", "more", "swapped", "a row", "tensor")
    match kind := rng.choice(kinds):
        case "number" if len(own):
            place = rng.randrange(len(own)), rng.randrange(4)
            own[place] += rng.choice((-1, 1, -200, 300, 2**31, 2**62, -(2**62)))
        case "fewer":
            own = own[:-1]
        case "more":
            own = torch.cat([own, torch.tensor([[rng.choice((0, 1, 2**31, -1)), 0, 0, 0]])])
        case "swapped" if len(own):
            own = own[torch.randperm(len(own), generator=torch.Generator().manual_seed(rng.randrange(99)))]
        case "a row":
            own = own.flatten()
        case "tensor":
            kind, own = spoilt_tensor(rng, own)
    call.places[which] = own
    return f"{kind} {own}"


# --- The ways in ------------------------------------------------------------------------------------------------------


def by_attend(rng: random.Random, call: Row) -> tuple[Tensor, ...]:
    packing, key_packing = (*(Packing(each) for each in call.places), None)[:2]
    backends = ("blockwise", "native") if call.pattern is not None and packing.total else ()
    backend = rng.choice((None, None, "dense", *backends))
    tensors = [call.q, call.k, call.v]
    learns = call.dropout == 0 and all(isinstance(t, Tensor) and t.is_floating_point() for t in tensors)
    tensors = [t.detach().requires_grad_() for t in tensors] if learns else tensors
    how = {"pattern": call.pattern, "scale": call.scale, "dropout": call.dropout}
    with nullcontext() if backend is None else attention_backend(backend):
        out = attend(*tensors, packing=packing, key_packing=key_packing, **how)
    if not learns:
        return (out,)
    call.grad = restride(rng, torch.randn_like(out))
    return (out.detach(), *torch.autograd.grad(out, tensors, call.grad))


def by_operator(rng: random.Random, call: Row) -> tuple[Tensor, ...]:
    """torch.ops.trivium.packed_attention and its backward, without `attend`."""
    pattern = "" if call.pattern is None else str(call.pattern)
    how = (call.q, call.k, call.v, *(*call.places, None)[:2], pattern, [call.scale, call.dropout])
    out, lse, seed = torch.ops.trivium.packed_attention(*how)
    given = spoil_results(rng, call, out, lse)
    if call.spoilt and rng.random() < 0.2:
        seed = rng.choice((seed.to("meta"), seed[None, None].expand(2, 2), torch.tensor(float("nan"))))
    grads = torch.ops.trivium.packed_attention_backward(given["grad"], given["out"], given["lse"], seed, *how)
    return results(call, given, out, lse, grads)


def by_kernel(rng: random.Random, call: Row) -> tuple[Tensor, ...]:
    """native.forward and native.backward."""
    places = (*(Packing(each).places for each in call.places), None)[:2]
    plan = packed_plan("" if call.pattern is None else str(call.pattern), *places)
    if spoilt := bool(call.spoilt) and rng.random() < 0.6:
        first = plan.plans[:1]
        wrong = {
            "which": plan.which + rng.choice((-1, 1)),
            "fewer": plan.which[:-1],
            "pairs": plan.which[:, None],
            "floats": plan.which.float(),
            "plans": plan.plans[1:],
            "one plan": first * len(plan.plans),
            "parts": tuple(replace(each, key_length=each.key_length + 1) for each in plan.plans),
            "blocks": tuple(replace(each, length=each.length + 1) for each in plan.plans),
            "length": plan.length + rng.choice((-1, 1)),
            "key_length": plan.key_length + rng.choice((-1, 1)),
        }
        name = rng.choice(list(wrong))
        own = name if name in ("length", "key_length") else "which" if isinstance(wrong[name], Tensor) else "plans"
        plan = replace(plan, **{own: wrong[name]})
        call.spoilt.append(f"{name} of the plan")
    work = KernelCall(call.q, call.k, call.v, plan, call.scale, dropout=call.dropout)
    out, lse, _ = native.forward(work)
    given = spoil_results(rng, call, out, lse)
    grads = native.backward(work, given["grad"], given["out"], given["lse"])[:3]
    return () if spoilt else results(call, given, out, lse, grads)  # of other pairs, if it is served


WAYS = {"attend": by_attend, "operator": by_operator, "kernel": by_kernel}


# --- What must come out -----------------------------------------------------------------------------------------------


def reference(call: Row, derivatives: bool) -> tuple[Tensor, ...]:
    """Output and gradients of each sequence by itself, by the reference in double precision."""
    q, k, v = (t.detach().double().requires_grad_(derivatives) for t in (call.q, call.k, call.v))
    pattern = Pattern.parse(call.pattern) if isinstance(call.pattern, str) else call.pattern
    outs, n, m = [call.q.new_zeros(*q.shape[:2], 0, v.shape[3], dtype=torch.float64)], 0, 0
    for own, keys in zip(call.places[0].tolist(), call.places[-1].tolist(), strict=True):
        (length, *_), (key_length, prefix, rows, columns) = own, keys
        size = (rows, columns) if rows else max(length, key_length) - prefix
        near = None  # an empty sequence may lack the grid that the pattern is about
        if pattern is not None and max(length, key_length):
            near = pattern.dense(size, prefix)[None, None, :length, :key_length]
        parts = q[:, :, n : n + length], k[:, :, m : m + key_length], v[:, :, m : m + key_length]
        outs.append(attend_reference(*parts, near, None, float(call.scale or 0) if call.scale is not None else None))
        n, m = n + length, m + key_length
    out = torch.cat(outs, dim=2)
    if not derivatives:
        return (out.detach(),)
    out = out + 0 * (q.sum() + k.sum() + v.sum())  # which need a gradient, if there are no sequences
    return (out.detach(), *torch.autograd.grad(out, (q, k, v), call.grad.double()))


def run_row(rng: random.Random, right: bool) -> tuple[str, str]:
    """As `run` of fuzz_ways.py."""
    torch.manual_seed(rng.randrange(2**31))
    call = right_row(rng) if right else wrong_row(rng)
    ways = list(WAYS)
    if right and not (call.q.numel() and call.k.numel()):
        ways = ["attend"]
    way = rng.choice(ways)
    try:
        found = WAYS[way](rng, call)
    except (ValueError, UserError) as error:
        assert not right, f"a right call was refused: {way}, {error}; {call}"
        return f"{way} in a row", "error"
    except Exception as error:  # of torch itself, which reads an operator's arguments
        assert way != "attend" and not right, f"{type(error).__name__}, no sentence: {error}; {call.spoilt}"
        return f"{way} in a row", "error"
    if found:
        assert call.dropout == 0, f"a wrong call was served: {call.spoilt}"
        compare(found, reference(call, len(found) > 1), f"{way}, {call.spoilt}, {call}")
    return f"{way} in a row", "result"
